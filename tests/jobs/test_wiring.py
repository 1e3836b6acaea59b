"""What a flag says reaches the run, and what the run has learned reaches the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import datafree
from datafree.config import TrainConfig
from datafree.data import load_data, validation_split
from datafree.jobs import judging
from datafree.jobs.condensing import _plan as condense_plan_of
from datafree.jobs.planning import Plan, make_plan
from datafree.jobs.pretraining import Labelled
from datafree.training import Clock, Trainer

SHORT: dict[str, Any] = {
    "method": "dfq", "student": "resnet8", "steps": 3, "batch_size": 8, "synthesis_batch": 8, "student_steps": 1,
    "generator_steps": 1, "generator_width": 4, "latent": 8, "bank": 100, "warmup": 0.0, "threads": 1, "evaluations": 0,
}  # fmt: skip


def learned(folder: Path, **options: Any) -> dict[str, Tensor]:
    datafree.train(out=folder, **{**SHORT, **options})
    return load_file(folder / "student.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def usual(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return learned(tmp_path_factory.mktemp("wiring") / "usual", teacher=teacher)


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": 4.0}, {"criterion": "l1"}, {"augment": False}, {"attention": 100.0}, {"precision": "bf16"},
        {"prior": (1.0,) * 5 + (0.0,) * 5}, {"inherit": True}, {"lr": 0.05}, {"weight_decay": 0.1}, {"ema": 0.5},
        {"gradient_clip": 0.01}, {"schedule": "constant"}, {"optimizer": "adam"}, {"batch_size": 4}, {"seed": 1},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_a_flag_changes_what_is_learned(
    option: dict[str, Any], usual: dict[str, Tensor], teacher: str, tmp_path: Path
) -> None:
    """And two runs without it learn the same: `test_nothing_else_changes_what_is_learned`."""
    assert not same(usual, learned(tmp_path / "run", teacher=teacher, **option))


def test_nothing_else_changes_what_is_learned(usual: dict[str, Tensor], teacher: str, tmp_path: Path) -> None:
    """How often a student is tested does not: no iterate is chosen by its test."""
    assert same(usual, learned(tmp_path / "run", teacher=teacher, evaluations=3))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_last_iterate_is_saved(ema: float, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --ema, its average; a student's and a pretrained network's."""
    plain, last = Trainer.step, dict[str, Tensor]()

    def step(self: Trainer, *arguments: Any) -> None:
        plain(self, *arguments)
        network = self.result.get_submodule("network")
        last.clear()
        last.update({name: value.clone() for name, value in network.state_dict().items()})
        held = {name: value.clone() for name, value in self.network.get_submodule("network").state_dict().items()}
        assert same(last, held) == (ema == 0)

    monkeypatch.setattr(Trainer, "step", step)
    assert same(learned(tmp_path / "run", teacher=teacher, ema=ema, evaluations=3), last)
    options: dict[str, Any] = {"data": "digits", "arch": "resnet8", "steps": 3, "batch_size": 8, "threads": 1}
    datafree.pretrain(out=tmp_path / "net", ema=ema, **options)
    assert same(load_file(tmp_path / "net" / "model.safetensors"), last)


def pretrained(folder: Path, **options: Any) -> dict[str, Tensor]:
    short: dict[str, Any] = {"data": "digits", "arch": "resnet8", "steps": 4, "batch_size": 8, "threads": 1}
    datafree.pretrain(out=folder, **{**short, **options})
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def usual_network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return pretrained(tmp_path_factory.mktemp("wiring") / "usual")


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 0.05}, {"optimizer": "adam"}, {"weight_decay": 0.1}, {"schedule": "constant"}, {"ema": 0.5},
        {"schedule": "multistep", "milestones": (0.5,)}, {"gradient_clip": 0.01}, {"augment": False}, {"seed": 1},
        {"batch_size": 4}, {"precision": "bf16"}, {"momentum": 0.5}, {"mean": (0.1,)}, {"std": (0.9,)},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_a_flag_changes_a_network(option: dict[str, Any], usual_network: dict[str, Tensor], tmp_path: Path) -> None:
    assert not same(usual_network, pretrained(tmp_path / "run", **option))


def test_nothing_else_changes_a_network(usual_network: dict[str, Tensor], tmp_path: Path) -> None:
    assert same(usual_network, pretrained(tmp_path / "run", checkpoint_every=1e-9))


def plan_of(**options: Any) -> Plan:
    return make_plan(TrainConfig(**{"student": "resnet8", "steps": 1, **options}), {}, torch.device("cpu"))


@pytest.mark.parametrize(("options", "inherits"), [({}, True), ({"inherit": False}, False), ({"method": "dfq"}, False)])
def test_a_student_begins_with_its_teachers_layers(options: dict[str, Any], inherits: bool, teacher: str) -> None:
    """By default `blend`'s, which is the default method. Here all of them fit."""
    plan = plan_of(teacher=teacher, **options)
    theirs, ours = plan.teacher.teacher.network.state_dict(), plan.network.state_dict()
    fit = [name for name in ours if name.startswith("layer1")]
    assert fit
    assert all(torch.equal(ours[name], theirs[name]) for name in fit if ours[name].dim() == 4) == inherits


def test_an_epoch_without_data_is_as_long_as_in_the_field(teacher: str) -> None:
    """400 steps, in all the releases."""
    assert plan_of(teacher=teacher, steps=None, epochs=2).clock().steps == 800


def test_a_set_for_choosing_settings_is_made_without_the_images_that_judge_it() -> None:
    parts = validation_split(load_data("digits"))
    plan = condense_plan_of(None, "digits", {"method": "random", "ipc": 1, "validation": True})
    assert plan.data.x_train is not None
    assert parts.x_train is not None
    assert torch.equal(plan.data.x_train, parts.x_train)


@pytest.mark.parametrize("validation", [True, False])
def test_a_set_is_judged_by_the_split_that_is_named(
    validation: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    def score(images: Tensor, labels: Tensor, data: datafree.Data, *_: Any, **__: Any) -> None:
        raise SeenError(data)

    monkeypatch.setattr(judging, "score_set", score)
    made = datafree.condense(
        method="random", data="digits", ipc=1, validation=validation, threads=1, out=tmp_path / "set"
    )
    whole = load_data("digits")
    wanted = validation_split(whole) if validation else whole
    with pytest.raises(SeenError) as caught:
        datafree.evaluate_set(made.set, "digits", networks=1, validation=validation)
    held = caught.value.args[0]
    for found, right in ((held.x_train, wanted.x_train), (held.x_test, wanted.x_test)):
        assert right is not None
        assert torch.equal(found, right)


def test_an_epoch_shows_each_image_once_as_it_is() -> None:
    domain = datafree.DOMAINS["digits"]
    numbers = torch.arange(12, dtype=torch.uint8)
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    data = datafree.Data(domain=domain, x_train=images, y_train=numbers.long() % 10)
    seen: list[Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert torch.equal(x, x[:, :, :1, :1].expand_as(x)), "neither cropped nor padded"
            seen.append((x[:, 0, 0, 0] * 255).round().long())
            return torch.zeros(len(x), 10)

    source = Labelled(data, Watching(), 4, torch.Generator().manual_seed(0), augmented=False, flip=False)
    for _ in range(6):
        source.terms(Clock(steps=6))
    for epoch in (seen[:3], seen[3:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(12))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:])), "in another order"


@pytest.mark.parametrize("augmented", [True, False])
def test_an_epoch_is_cropped_where_that_is_asked_for(augmented: bool) -> None:
    """White images: what is cropped shows the black border beside them."""
    white = datafree.Data(
        domain=datafree.DOMAINS["digits"],
        x_train=torch.full((8, 1, 8, 8), 255, dtype=torch.uint8),
        y_train=torch.arange(8),
    )
    whole: list[bool] = []

    class Watching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole.append(bool((x == 1).all()))
            return torch.zeros(len(x), 10)

    rng = torch.Generator().manual_seed(0)
    Labelled(white, Watching(), 8, rng, augmented=augmented, flip=False).terms(Clock(steps=1))
    assert whole == [not augmented]
