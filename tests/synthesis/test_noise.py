"""Noise whose teacher answers with the batch's statistics: as a copy in training mode does, and unchanged by it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.distillation import Alternation
from datafree.synthesis.noise import Noise, NoiseConfig
from datafree.synthesis.setting import Setting
from datafree.training import Clock

Toy = Callable[..., Setting]


class Activated(nn.BatchNorm2d):
    """Its activation is inside of it, as in timm's networks."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Activated])
def test_answers_are_those_of_a_copy_in_training_mode(toy: Toy, kind: type[nn.BatchNorm2d]) -> None:
    at = toy()
    (norm,) = at.teacher.norms
    norm.__class__, norm.eps = kind, 0.05
    for parameter in (norm.weight, norm.bias):
        nn.init.uniform_(parameter, 0.5, 1.5)
    method = Noise(at, NoiseConfig(batch_statistics=True))
    images = torch.rand(16, 3, 8, 8)
    before = {name: t.clone() for name, t in at.teacher.network.state_dict().items()}
    twin = copy.deepcopy(at.teacher.classifier).train()
    torch.testing.assert_close(method.answer(images), twin(images), rtol=1e-4, atol=1e-5)
    assert (method.answer(images) - at.teacher(images)).abs().max() > 0.1
    assert all(torch.equal(t, before[name]) for name, t in at.teacher.network.state_dict().items())
    assert not any(m.training or m._forward_pre_hooks for m in at.teacher.classifier.modules())


def test_the_teacher_is_as_it_was_after_an_error_too(toy: Toy) -> None:
    at = toy()
    images = torch.rand(2, 3, 8, 8)
    before = at.teacher(images)
    with pytest.raises(RuntimeError):
        Noise(at, NoiseConfig(batch_statistics=True)).answer(torch.rand(2, 3, 9, 9))  # the last layer does not fit
    assert not any(m._forward_pre_hooks for m in at.teacher.classifier.modules())
    assert torch.equal(at.teacher(images), before)


def test_without_the_flag_the_teacher_answers_as_it_is(toy: Toy) -> None:
    at, images = toy(), torch.rand(6, 3, 8, 8)
    source = Alternation(Noise(at, NoiseConfig()), at, criterion="kl", temperature=1.0, augmented=False)
    torch.testing.assert_close(source.answer(images), at.teacher(images), rtol=1e-4, atol=1e-5)
    assert source.answer is not at.teacher  # its copy without batch norms, which answers sooner
    assert not hasattr(source.method, "answer")


def test_the_student_matches_the_answer(toy: Toy) -> None:
    at = toy()
    method = Noise(at, NoiseConfig(batch_statistics=True))
    state = at.rng.get_state()
    images = method.sample(8).images
    at.rng.set_state(state)
    wanted = losses.kl(at.student.train()(images), method.answer(images))
    terms = Alternation(method, at, criterion="kl", temperature=1.0, augmented=False).terms(Clock(steps=5))
    torch.testing.assert_close(terms["kl"], wanted)


def test_half_precision_is_taken(toy: Toy) -> None:
    method, images = Noise(toy(), NoiseConfig(batch_statistics=True)), torch.rand(64, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.answer(images)
    # bf16 keeps 8 bits: 2^-8 of activations of size 1, through two layers.
    assert (half.float() - method.answer(images)).abs().max() < 0.1


def test_a_teacher_without_batch_norm_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match="--batch-statistics: the teacher has no batch norm; give --no-batch"):
        Noise(toy(norm=False), NoiseConfig(batch_statistics=True))
