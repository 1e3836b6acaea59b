from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from datafree.evaluation import evaluate


def table(logits: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A network that looks its logits up by the image's number, and the 1x1 images that hold their own number."""
    numbers = torch.arange(len(logits), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return lambda images: logits[(images.flatten() * 255).round().long()], numbers


def test_by_hand() -> None:
    # Labels 0 0 1 3; predictions 0 1 1 0; teacher's 0 0 1 0. No image of class 2.
    student = torch.tensor([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 4, 0, 0], [4, 0, 0, 0]])
    teacher = torch.tensor([[4.0, 0, 0, 0], [4, 0, 0, 0], [0, 4, 0, 0], [4, 0, 0, 0]])
    net, x = table(student)
    other, _ = table(teacher)
    y = torch.tensor([0, 0, 1, 3])
    scores = evaluate(net, x, y, batch_size=3, teacher=other)
    assert scores.images == 4
    assert scores.accuracy == 0.5
    assert scores.per_class == [0.5, 1.0, None, 0.0]
    assert scores.confusion == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert scores.teacher_accuracy == 0.75
    assert scores.teacher_per_class == [1.0, 1.0, None, 0.0]
    assert scores.agreement == 0.75
    # (teacher, student): (0, 0), (0, 1), (1, 1), (0, 0).
    assert scores.decisions == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # The two networks differ on the second image only. There p = (a, b, b, b), q = (b, a, b, b) with a = e^4 b, hence
    # KL = (a - b) * 4 and b = 1 / (e^4 + 3).
    expected = (math.exp(4) - 1) / (math.exp(4) + 3) * 4 / 4
    assert scores.kl == pytest.approx(expected, rel=1e-6)


def test_against_numpy() -> None:
    rng = np.random.RandomState(0)
    s, t = rng.randn(2, 200, 7).astype(np.float32) * 3
    y = rng.randint(0, 7, 200)
    net, x = table(torch.from_numpy(s))
    other, _ = table(torch.from_numpy(t))
    scores = evaluate(net, x, torch.from_numpy(y), batch_size=64, teacher=other)
    p, q = scipy.special.softmax(t.astype(np.float64), 1), scipy.special.softmax(s.astype(np.float64), 1)
    assert scores.kl == pytest.approx(scipy.special.rel_entr(p, q).sum(1).mean(), rel=1e-5)
    assert scores.agreement == (s.argmax(1) == t.argmax(1)).mean()
    assert scores.accuracy == (s.argmax(1) == y).mean()
    assert scores.teacher_accuracy == (t.argmax(1) == y).mean()
    pairs = np.zeros((7, 7), int)
    np.add.at(pairs, (t.argmax(1), s.argmax(1)), 1)
    assert scores.decisions == pairs.tolist()
    for label in range(7):
        assert scores.per_class[label] == pytest.approx((s.argmax(1) == label)[y == label].mean())


def test_a_network_against_itself() -> None:
    net, x = table(torch.randn(50, 4))
    scores = evaluate(net, x, torch.randint(0, 4, (50,)), teacher=net)
    assert (scores.agreement, scores.kl) == (1.0, 0.0)
    assert scores.teacher_accuracy == scores.accuracy
    assert scores.decisions is not None
    assert sum(row[i] for i, row in enumerate(scores.decisions)) == 50


def test_without_a_teacher_and_as_json() -> None:
    net, x = table(torch.eye(3))
    scores = evaluate(net, x, torch.arange(3))
    assert (scores.accuracy, scores.kl, scores.agreement, scores.teacher_accuracy) == (1.0, None, None, None)
    assert scores.decisions is None
    assert json.loads(json.dumps(scores.to_dict()))["per_class"] == [1.0, 1.0, 1.0]


def test_each_image_is_seen_once_in_order_without_gradient() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert images.dtype == torch.float32
        seen.append(images)
        return images.flatten(1)

    x = torch.randint(0, 256, (10, 1, 1, 2), dtype=torch.uint8)
    evaluate(predict, x, torch.zeros(10, dtype=torch.int64), batch_size=4)
    assert [len(images) for images in seen] == [4, 4, 2]
    assert torch.equal(torch.cat(seen), x.float() / 255)


def test_half_precision_logits_are_raised() -> None:
    logits = torch.randn(40, 5).bfloat16()
    net, x = table(logits)
    exact, _ = table(logits.float())
    y = torch.randint(0, 5, (40,))
    scores = evaluate(net, x, y, teacher=exact)
    assert scores.kl == 0.0


def test_what_cannot_be_evaluated() -> None:
    net, x = table(torch.eye(3))
    y = torch.arange(3)
    with pytest.raises(ValueError, match="no images to evaluate on"):
        evaluate(net, x[:0], y[:0])
    with pytest.raises(ValueError, match="labels go from 0 to 3, the network has 3 classes"):
        evaluate(net, x, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="the teacher has 4 classes, the student 3"):
        evaluate(net, x, y, teacher=lambda images: torch.zeros(len(images), 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate(lambda images: torch.full((len(images), 3), math.nan), x, y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate(net, x, y, teacher=lambda images: torch.full((len(images), 3), math.inf))
    with pytest.raises(ValueError, match=r"must give logits \(N, classes\)"):
        evaluate(lambda images: images, x, y)
