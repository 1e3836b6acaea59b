"""The steps on a synthetic set: the optimisers against their papers, and what is kept at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.condensation import load_method
from datafree.condensation.loop import ImageTrainer, check_finite
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.jobs import condense, resume_condense
from datafree.jobs.condense_defaults import DEFAULTS
from datafree.training import TermError

LABELS = torch.arange(3)


def make(**options: Any) -> tuple[Synthetic, ImageTrainer]:
    """Three images of 2x2 pixels around a half, with learned labels and rate, in float64."""
    rng = torch.Generator().manual_seed(1)
    images = 0.4 + 0.2 * torch.rand(3, 1, 2, 2, generator=rng, dtype=torch.float64)
    logits = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    synthetic = Synthetic(images, LABELS, label_logits=logits, learn_labels=True, learning_rate=0.03)
    return synthetic, ImageTrainer(synthetic, CondenseConfig(**{**DEFAULTS, **options}))


def loss(synthetic: Synthetic, step: int) -> dict[str, Tensor]:
    """Another gradient for each parameter and step, which depends on the parameter."""
    parameters = synthetic.parameters().values()
    return {str(i): ((step + 1 + i) * p.square() + p).sum() for i, p in enumerate(parameters)}


def gradient(value: np.ndarray[Any, Any], index: int, step: int) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = 2 * (step + 1 + index) * value + 1
    return result


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_and_its_decoupled_decay_are_the_papers(optimizer: str, schedule: str) -> None:
    """Kingma & Ba 2015, alg. 1; Loshchilov & Hutter 2019, alg. 2, as torch has it: the decay is times the rate.

    Decay is of the images alone: labels would lose what they say, and the rate's logarithm would go to a rate of 1.
    """
    synthetic, trainer = make(optimizer=optimizer, image_lr=0.01, label_lr=0.02, schedule=schedule)
    wanted = [p.detach().numpy().copy() for p in synthetic.parameters().values()]
    assert list(synthetic.parameters()) == ["images", "labels", "rate"]
    rates, decays = [0.01, 0.02, 0.01], [0.01 if optimizer == "adamw" else 0.0, 0.0, 0.0]
    first, second = ([np.zeros_like(value) for value in wanted] for _ in range(2))
    for step in range(4):
        trainer.step(loss(synthetic, step), step / 4)
        factor = 0.5 * (1 + math.cos(math.pi * step / 4)) if schedule == "cosine" else 1.0
        for i, value in enumerate(wanted):
            slope, rate = gradient(value, i, step), rates[i] * factor
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            wanted[i] = (1 - rate * decays[i]) * value - rate * mean / (np.sqrt(square) + 1e-8)
    for found, value in zip(synthetic.parameters().values(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), torch.from_numpy(np.asarray(value)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_descents_momentum_is_the_images_own(schedule: str) -> None:
    """SGD by hand; labels and rate have a momentum of 0.9, whatever the images'."""
    synthetic, trainer = make(optimizer="sgd", image_lr=1e-3, image_momentum=0.5, label_lr=0.02, schedule=schedule)
    wanted = [p.detach().numpy().copy() for p in synthetic.parameters().values()]
    moving = [np.zeros_like(value) for value in wanted]
    for step in range(3):
        trainer.step(loss(synthetic, step), step / 3)
        factor = 0.5 * (1 + math.cos(math.pi * step / 3)) if schedule == "cosine" else 1.0
        for i, (momentum, rate) in enumerate([(0.5, 1e-3), (0.9, 0.02), (0.9, 0.01)]):
            moving[i] = momentum * moving[i] + gradient(wanted[i], i, step)
            wanted[i] = wanted[i] - rate * factor * moving[i]
    for found, value in zip(synthetic.parameters().values(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), torch.from_numpy(np.asarray(value)), rtol=1e-12, atol=1e-14)


def test_adamw_goes_on_where_it_was() -> None:
    whole, trainer = make(optimizer="adamw", image_lr=0.01)
    for step in range(4):
        trainer.step(loss(whole, step), 0.0)
    part, early = make(optimizer="adamw", image_lr=0.01)
    for step in range(2):
        early.step(loss(part, step), 0.0)
    again, late = make(optimizer="adamw", image_lr=0.01)
    late.load_state_dict(early.state_dict())
    for step in range(2, 4):
        late.step(loss(again, step), 0.0)
    for name, parameter in whole.parameters().items():
        assert torch.equal(parameter, again.parameters()[name])


@pytest.mark.parametrize("clip", ["step", "save"])
def test_settled_images_are_the_average_within_bounds(clip: str) -> None:
    synthetic, trainer = make(image_ema=0.5, clip=clip, image_lr=2.0, image_momentum=0.0)
    average = synthetic.images.detach().clone()
    for step in range(3):
        trainer.step(loss(synthetic, step), 0.0)
        average = (average + synthetic.images.detach()) / 2
    assert not torch.equal(average, synthetic.images)
    trainer.settle()
    torch.testing.assert_close(synthetic.images.detach(), average.clamp(0, 1))
    assert synthetic.images.requires_grad
    assert bool((average < 0).any()) == (clip == "save"), "this is where clipping does something"


TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1, "real_batch": 4}


@pytest.mark.parametrize("clip", ["step", "save"])
def test_finish_sees_the_images_that_are_kept(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--image-ema` the average, not the last iterate; and the checkpoint holds what steps go on from."""
    seen = []

    def finish(_: Any, synthetic: Synthetic) -> None:
        seen.append(synthetic.images.detach().clone())

    monkeypatch.setattr(load_method("dm"), "finish", finish, raising=False)
    options: dict[str, Any] = {**TINY, "steps": 3, "image_lr": 5.0, "clip": clip}
    plain = condense(method="dm", out=tmp_path / "plain", **options)
    mean = condense(method="dm", out=tmp_path / "mean", image_ema=0.5, **options)
    assert torch.equal(seen[0], plain.set.images)
    assert torch.equal(seen[1], mean.set.images)
    assert not torch.equal(seen[0], seen[1])
    # A run that ends between its last checkpoint and its result gives the same result when it goes on.
    (tmp_path / "mean" / "result.json").unlink()
    again = resume_condense(tmp_path / "mean")
    assert torch.equal(again.set.images, mean.set.images)
    assert torch.equal(seen[2], mean.set.images)


def test_sre2l_labels_the_average_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = load_method("sre2l")
    held: list[Any] = []
    finish = method.finish

    def watched(self: Any, synthetic: Synthetic) -> None:
        held.append(self)
        finish(self, synthetic)

    monkeypatch.setattr(method, "finish", watched)
    options = {name: value for name, value in TINY.items() if name != "real_batch"}
    result = condense(method="sre2l", steps=3, image_ema=0.9, image_lr=0.1, out=tmp_path / "run", **options)
    images, _ = result.set.decoded()
    torch.testing.assert_close(result.set.labels, held[0].first_labels(images, result.set.classes()))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_rate_beyond_single_precision_is_named(optimizer: str) -> None:
    _, trainer = make(optimizer=optimizer, image_lr=1e38, label_lr=0.5)
    for parameter in trainer.parameters.values():
        parameter.data = parameter.data.float()
    with pytest.raises(TermError, match=r"^a step became infinite: give a lower --image-lr \(1e\+38\) or --label-lr"):
        trainer.step(loss(trainer.synthetic, 0), 0.0)


def test_what_is_learned_and_not_finite_names_its_rate() -> None:
    synthetic, _ = make()
    check_finite(synthetic.parameters(), 3)
    for name, flag in (("rate", "--rate"), ("labels", "--label-lr"), ("images", "--image-lr")):
        synthetic.parameters()[name].data.view(-1)[0] = torch.nan
        with pytest.raises(TermError, match=f"^the {name} became NaN or infinite by step 3: give a lower {flag}$"):
            check_finite(synthetic.parameters(), 3)


def test_a_last_step_that_spoils_the_set_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No term comes after it to tell."""
    method = load_method("datm")
    monkeypatch.setattr(method, "advance", lambda *_: None)
    honest = ImageTrainer.step

    def step(self: ImageTrainer, *arguments: Any) -> None:
        honest(self, *arguments)
        self.parameters["labels"].data[0] = torch.nan

    monkeypatch.setattr(ImageTrainer, "step", step)
    small: dict[str, Any] = {"data": "digits", "method": "datm", "ipc": 1, "arch": "mlp", "threads": 1}
    small |= {"experts": 2, "expert_epochs": 1, "expert_images": 64, "expert_batch": 16, "expert_every": 1}
    for steps in (1, 2):  # DATM masks a student's NaN, which these labels would give
        with pytest.raises(TermError, match=r"^the labels became NaN or infinite by step 1: give a lower --label-lr"):
            condense(steps=steps, out=tmp_path / str(steps), **small)
