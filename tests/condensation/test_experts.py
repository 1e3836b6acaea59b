"""Recorded experts, and the methods that match them, on three easy classes and on digits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import parallel
from datafree.condensation.datm import DATM, DATMConfig
from datafree.condensation.expert_files import INDEX, checksum, expert_file
from datafree.condensation.experts import (
    Recipe,
    describe,
    find_experts,
    make_recipe,
    record,
    scaled_recipe,
    train_step,
)
from datafree.condensation.mtt import MTT, last_start
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.tesla import TESLA
from datafree.condensation.unrolling import PLAIN, Unrolled, flat, plain_forward, quick
from datafree.config import ExpertsConfig, TrajectoryOptions
from datafree.data.augmentation import parse_augmentation
from datafree.data.tensors import to_float
from datafree.data.whitening import Whitening
from datafree.domain import Domain
from datafree.jobs.recording import record_experts
from datafree.models import build_model
from datafree.teacher import Normalised
from datafree.training import Clock, TermError

DOMAIN = Domain(name="three", shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.3,), flip=False)
RECIPE = Recipe(count=2, steps=6, every=2, lr=0.1, batch_size=20)
SHORT: dict[str, Any] = {"inner_steps": 4, "batch_synthetic": 2, "expert_span": 1, "rate": 0.1, "expert_batch": 20}
SHORT |= {"experts": 2, "expert_epochs": 2, "expert_every": 2, "expert_lr": 0.1}


class Small(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(F.softplus(self.first(images.flatten(1))))
        return logits


def make_setting(folder: Path, make: Callable[[], nn.Module] = Small, **changes: Any) -> Setting:
    rng = torch.Generator().manual_seed(5)
    y = torch.arange(60) % 3
    patterns, noise = torch.rand(3, 1, 8, 8, generator=rng), torch.rand(60, 1, 8, 8, generator=rng)
    x = (patterns[y] * 150 + noise * 100).to(torch.uint8)
    values: dict[str, Any] = {
        "real": Real(x, y, 3),
        "domain": DOMAIN,
        "new_network": lambda: Normalised(make(), DOMAIN.mean, DOMAIN.std),
        "arch": "small",
        "augmentation": None,
        "rng": torch.Generator().manual_seed(3),
        "device": torch.device("cpu"),
        "clock": Clock(steps=5),
        "cache": folder,
    }
    return Setting(**{**values, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tensors(folder: Path) -> list[Tensor]:
    return [t.clone() for file in sorted(folder.glob("*.safetensors")) for t in load_file(file).values()]


# Recording


def test_an_expert_is_plain_sgd_on_shuffled_data(tmp_path: Path) -> None:
    setting = make_setting(tmp_path)
    experts = record(setting, RECIPE)
    seed, x, y = 1, setting.real.x, setting.real.y  # that of expert 1
    torch.manual_seed(seed)
    network = setting.new_network()
    rng, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    wanted = [flat([p.detach() for p in network.parameters()])]
    for step in range(6):
        if step % 3 == 0:  # 60 images make 3 batches
            order = torch.randperm(60, generator=rng)
        rows = order[step % 3 * 20 :][:20]
        optimizer.zero_grad()
        F.cross_entropy(network(to_float(x[rows])), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 2:
            wanted.append(flat([p.detach() for p in network.parameters()]))
    found = experts.at(1, 0, 1, 2, 3)
    assert (experts.count, experts.records) == (2, 3)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        # Half precision of the way gone, not of the parameters.
        assert float((mine - theirs).norm()) < 6e-4 * float((theirs - wanted[0]).norm())


def test_a_sharpness_aware_step_takes_the_gradient_uphill() -> None:
    network, recipe = Small().double(), Recipe(count=1, steps=1, every=1, lr=0.5, rho=0.3)
    images, labels = torch.rand(7, 1, 8, 8, dtype=torch.float64), torch.arange(7) % 3
    parameters = list(network.parameters())
    start = flat([p.detach() for p in parameters])

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, parameters)
        return flat(torch.autograd.grad(F.cross_entropy(network(images), labels), parameters))

    first = gradient(start)
    wanted = start - 0.5 * gradient(start + 0.3 * first / first.norm())
    nn.utils.vector_to_parameters(start, parameters)
    train_step(plain_forward, network, images, labels, recipe)
    torch.testing.assert_close(flat([p.detach() for p in parameters]), wanted, rtol=1e-6, atol=1e-8)


def test_experts_are_found_again_and_what_is_torn_is_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    setting = make_setting(tmp_path, say=said.append)
    state = torch.get_rng_state(), setting.rng.get_state()
    folder = record(setting, RECIPE).folder
    assert all(map(torch.equal, state, (torch.get_rng_state(), setting.rng.get_state())))
    assert "MB" in said[0]
    assert len(said) == 3
    first, made = content(folder), tensors(folder)
    assert record(setting, RECIPE).count == 2
    assert content(folder) == first
    assert len(said) == 3
    torn = bytearray(first["expert-0000.safetensors"])
    torn[-9] ^= 1  # one bit of the last record
    for damage in (torn, torn[:200], b""):
        (folder / "expert-0000.safetensors").write_bytes(damage)
        record(setting, RECIPE)
        assert all(map(torch.equal, tensors(folder), made))
    expert_file(folder, 1).unlink()
    more = record(setting, dataclasses.replace(RECIPE, count=3))
    assert more.count == 3
    assert more.folder == folder
    assert all(map(torch.equal, tensors(folder), made))


def test_what_experts_depend_on_parts_them(tmp_path: Path) -> None:
    keys = [record(make_setting(tmp_path), RECIPE).key]
    for changes in ({"lr": 0.2}, {"rho": 0.1}, {"seed": 1}, {"batch_size": 10}):
        keys.append(record(make_setting(tmp_path), dataclasses.replace(RECIPE, **changes)).key)
    keys.append(record(make_setting(tmp_path, augmentation=parse_augmentation("crop")), RECIPE).key)
    keys.append(record(make_setting(tmp_path, lambda: Small(6)), RECIPE).key)
    assert len(set(keys)) == len(keys)


def test_an_expert_that_cannot_be_written_leaves_no_part_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any, to: Any) -> None:
        if str(to).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        replace(_, to)

    replace = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ValueError, match=r"cannot write .*expert-0000"):
        record(make_setting(tmp_path), RECIPE, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == [INDEX]


def test_what_experts_see_is_part_of_their_name(tmp_path: Path) -> None:
    plain = make_setting(tmp_path)
    real = Real(plain.real.x, plain.real.y.roll(1), 3)
    others: list[dict[str, Any]] = [
        {"real": real},
        {"domain": dataclasses.replace(DOMAIN, mean=(0.41,))},
        {"domain": dataclasses.replace(DOMAIN, std=(0.31,))},
        {"augmentation": parse_augmentation("crop")},
        {"augmentation": parse_augmentation("crop_scale")},
        {"cast": lambda: torch.autocast("cpu", torch.bfloat16)},
    ]
    told = [json.dumps(describe(make_setting(tmp_path, **changes)), sort_keys=True) for changes in ({}, *others)]
    assert len(set(told)) == len(told)


def test_a_stop_keeps_finished_experts(tmp_path: Path) -> None:
    asked = [False]
    setting = make_setting(tmp_path, stopping=lambda: asked[0], say=lambda text: asked.__setitem__(0, "1 of" in text))
    assert record(setting, RECIPE).count == 1
    asked[0] = False
    assert record(make_setting(tmp_path), RECIPE).count == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_processes_share_the_experts(
    order: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one is finished before the other looks which are missing: all go by what the first process found."""
    alone = tensors(record(make_setting(tmp_path / "alone"), RECIPE).folder)
    told = json.dumps([0, 1])  # what the first process finds in an empty folder
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "latest", lambda value: value)
    monkeypatch.setattr(parallel, "from_first", lambda text: text if parallel.rank() == 0 else told)
    made = []
    for rank in order:
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        folder = record(make_setting(tmp_path / "two"), dataclasses.replace(RECIPE)).folder
        made.append(sum(expert_file(folder, i).exists() for i in range(2)))
    assert made == [1, 2]
    assert all(map(torch.equal, tensors(folder), alone))


def test_whitening_is_known_by_its_rule_and_not_by_its_bits(tmp_path: Path) -> None:
    """Another processor's last bits give the same experts; the data, which whitening is fitted to, are hashed."""
    setting = make_setting(tmp_path)
    whitening = Whitening.fit(to_float(setting.real.x))
    other = whitening._replace(matrix=torch.nextafter(whitening.matrix, torch.tensor(9.0)))
    assert not torch.equal(other.matrix, whitening.matrix)
    plain, here, there = (describe(make_setting(tmp_path, whitening=w)) for w in (None, whitening, other))
    assert here == there
    assert here != plain
    assert {name for name in here["network"] if here["network"][name] != plain["network"][name]} == {"whitening"}


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch norm, whose running statistics"):
        describe(make_setting(tmp_path, lambda: nn.Sequential(nn.BatchNorm2d(1), Small())))
    folder = record(make_setting(tmp_path), RECIPE, tmp_path / "mine").folder
    options = TrajectoryOptions(expert_folder=str(folder))
    assert find_experts(make_setting(tmp_path), options).count == 2
    with pytest.raises(ValueError, match="another network"):
        find_experts(make_setting(tmp_path, lambda: Small(6)), options)
    other = make_setting(tmp_path)
    other.real.x[0] ^= 1
    with pytest.raises(ValueError, match="other data"):
        find_experts(other, options)
    with pytest.raises(ValueError, match="no experts: datafree experts --out"):
        find_experts(make_setting(tmp_path), TrajectoryOptions(expert_folder=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="holds 2 whole experts"):
        find_experts(make_setting(tmp_path), TrajectoryOptions(expert_folder=str(folder), experts=3))
    with pytest.raises(ValueError, match="another recipe"):
        record(make_setting(tmp_path), dataclasses.replace(RECIPE, lr=0.3), folder)
    with pytest.raises(ValueError, match="too few"):
        MTT(make_setting(tmp_path), TrajectoryOptions(expert_folder=str(folder), expert_span=4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"whitening": True}, "without --zca"),
        ({"domain": dataclasses.replace(DOMAIN, std=(0.5,))}, r"normalised by \[0.4\] and \[0.3\]"),
        ({"make": lambda: Small(6)}, "of other sizes"),
        ({"make": lambda: Small(6), "arch": "large"}, "small, of other sizes"),
    ],
)
def test_experts_of_another_network_say_what_differs(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    setting = make_setting(tmp_path)
    folder = record(setting, RECIPE).folder
    if "whitening" in changes:
        changes = {"whitening": Whitening.fit(to_float(setting.real.x))}
    with pytest.raises(ValueError, match=rf"are of another network \({says}\): record some with datafree experts$"):
        find_experts(make_setting(tmp_path, **changes), TrajectoryOptions(expert_folder=str(folder)))


@pytest.mark.parametrize(
    ("method", "config", "says"),
    [
        (MTT, TrajectoryOptions(**SHORT, max_start=9), "3 records are too few for --max-start 9"),
        (TESLA, TrajectoryOptions(**{**SHORT, "expert_span": 9}), "too few"),
        (DATM, DATMConfig(**SHORT, min_start=9), "--min-start and --first-max-start lie at or below the last .* 1$"),
        (DATM, DATMConfig(**SHORT, first_max_start=9), "--min-start and --first-max-start"),
    ],
)
def test_what_experts_cannot_serve_is_told_before_they_are_made(
    method: Any, config: TrajectoryOptions, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        method(make_setting(tmp_path), config)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=says):
        method.beforehand(make_setting(tmp_path), config)


def test_experts_are_scaled_to_the_run(tmp_path: Path) -> None:
    clocks = (Clock(seconds=s) for s in (0.001, 1.0))
    short, long = (scaled_recipe(make_setting(tmp_path, clock=clock), TrajectoryOptions()) for clock in clocks)
    assert short.count * short.steps < long.count * long.steps
    assert long == scaled_recipe(make_setting(tmp_path, clock=Clock(seconds=1.0)), TrajectoryOptions())
    assert long.steps % long.every == 0
    few = scaled_recipe(make_setting(tmp_path, clock=Clock(steps=2)), TrajectoryOptions(inner_steps=2, expert_batch=32))
    assert few.count * few.steps < 300
    asked = TrajectoryOptions(
        experts=4, expert_epochs=3, expert_images=50, expert_every=2, expert_batch=20, expert_lr=0.3
    )
    assert scaled_recipe(make_setting(tmp_path), asked) == Recipe(count=4, steps=8, every=2, lr=0.3, batch_size=20)
    assert make_recipe(count=1, epochs=2, images=None, every=None, available=60, batch_size=20).every == 3


def test_the_quick_passes_are_the_networks_own() -> None:
    def new_network() -> nn.Module:
        return Normalised(build_model("convnet3", shape=(1, 8, 8), classes=3), DOMAIN.mean, DOMAIN.std)

    passes = quick(make_setting(Path(), new_network=new_network))
    network, images = new_network(), torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(passes.forward(network, images), network(images), rtol=1e-4, atol=1e-5)
    given = network, images, torch.arange(3), [torch.randn_like(p) for p in network.parameters()]
    torch.testing.assert_close(passes.slope(*given), PLAIN.slope(*given), rtol=1e-4, atol=1e-5)


def test_experts_recorded_ahead_are_those_a_condensation_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.jobs.condensing import condense

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ExpertsConfig(arch="mlp", count=2, epochs=1, images=256, every=1, threads=1)
    made = record_experts(config)
    assert made["experts"] == 2
    assert made["records"] == 4
    assert made["bytes"] == sum(file.stat().st_size for file in Path(made["folder"]).iterdir())
    said: list[str] = []
    options: dict[str, Any] = {
        "experts": 2,
        "expert_epochs": 1,
        "expert_images": 256,
        "expert_every": 1,
        "inner_steps": 1,
    }
    condense(method="mtt", arch="mlp", steps=1, ipc=1, out=tmp_path / "run", say=said.append, threads=1, **options)
    assert not any("expert" in line for line in said)
    index = json.loads((Path(made["folder"]) / INDEX).read_text())
    assert index["about"]["network"]["arch"] == "mlp"


@pytest.mark.parametrize("rate", [1e5, 1e30, 1e200])
def test_an_expert_that_diverges_is_an_error_and_is_not_kept(tmp_path: Path, rate: float) -> None:
    """Also one that is finite, and too far away for the records' half precision."""
    folder, recipe = tmp_path / "mine", dataclasses.replace(RECIPE, lr=rate)
    says = f"expert 1 of 2 diverged by step 2 of 6, in pass 1 through the images: give a lower --lr, which is {rate:g}"
    with pytest.raises(TermError, match=re.escape(says)):
        record(make_setting(tmp_path), recipe, folder)
    assert not folder.exists()  # so that the corrected command is not in its own way
    assert record(make_setting(tmp_path), RECIPE, folder).count == 2
    options = TrajectoryOptions(**{**SHORT, "expert_lr": rate})
    with pytest.raises(TermError, match="give a lower --expert-lr, which is"):
        find_experts(make_setting(tmp_path), options)


def test_a_folder_with_an_expert_that_diverged_is_refused(tmp_path: Path) -> None:
    """As older versions wrote them; in the cache such a file counts as missing."""
    folder = record(make_setting(tmp_path), RECIPE).folder
    made = tensors(folder)
    with safe_open(expert_file(folder, 1), framework="pt") as file:
        about = json.loads(file.metadata()["datafree"])
    held = load_file(expert_file(folder, 1))
    held["moves"][-1, 3] = torch.inf
    about["crc"] = checksum(held)
    save_file(held, expert_file(folder, 1), metadata={"datafree": json.dumps(about)})
    options = TrajectoryOptions(expert_folder=str(folder))
    with pytest.raises(ValueError, match=f"^expert 2 of {folder} diverged, .*: record others with datafree experts"):
        find_experts(make_setting(tmp_path), options)
    assert find_experts(make_setting(tmp_path), dataclasses.replace(options, experts=1)).count == 1
    record(make_setting(tmp_path), RECIPE)
    assert all(map(torch.equal, tensors(folder), made))


# Matching

METHODS: list[tuple[Any, type[TrajectoryOptions]]] = [(method, method.Config) for method in (MTT, TESLA, DATM)]


def start(tmp_path: Path, method: Any, config: type[TrajectoryOptions], **changes: Any) -> tuple[Any, Synthetic]:
    setting = make_setting(tmp_path, augmentation=parse_augmentation("color_crop_rotate"))
    objective = method(setting, config(**{**SHORT, **changes}))
    labels = torch.tensor([0, 1, 2])
    images = torch.cat([setting.real.of_class(label, 1, torch.Generator().manual_seed(8)) for label in range(3)])
    logits = objective.first_labels(images, labels) if isinstance(objective, DATM) else None
    return objective, Synthetic(images, labels, label_logits=logits, learn_labels=True, learning_rate=0.1)


def setting_of(objective: Any) -> Setting:
    setting: Setting = (objective if isinstance(objective, MTT) else objective.mtt).setting
    return setting


def steps(objective: Any, synthetic: Synthetic, count: int) -> list[float]:
    held, values = list(synthetic.parameters().values()), []
    for _ in range(count):
        total = torch.stack(list(objective.terms(synthetic).values())).sum()
        for parameter, gradient in zip(held, torch.autograd.grad(total, held), strict=True):
            parameter.data -= 0.1 * gradient
        objective.advance(synthetic)
        setting_of(objective).clock.step += 1
        values.append(float(total.detach()))
    return values


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_resuming_changes_nothing(tmp_path: Path, method: Any, config: type[TrajectoryOptions]) -> None:
    whole, set_whole = start(tmp_path, method, config)
    values = steps(whole, set_whole, 5)
    first, set_first = start(tmp_path, method, config)
    assert steps(first, set_first, 2) == values[:2]
    second, set_second = start(tmp_path, method, config)
    second.load_state_dict(first.state_dict())
    set_second.load_state_dict(set_first.state_dict())
    setting_of(second).rng.set_state(setting_of(first).rng.get_state())
    setting_of(second).clock.step = 2
    assert steps(second, set_second, 3) == values[2:]
    assert torch.equal(set_second.images, set_whole.images)
    assert set_second.log_rate is not None
    assert set_whole.log_rate is not None
    assert torch.equal(set_second.log_rate, set_whole.log_rate)
    with pytest.raises(ValueError, match="not those that the run began with"):
        second.load_state_dict({"experts": "", "count": 2})


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_gradients_reach_all_that_is_learned(tmp_path: Path, method: Any, config: type[TrajectoryOptions]) -> None:
    changes = {"threshold": 0.0} if method is DATM else {}
    objective, synthetic = start(tmp_path, method, config, **changes)
    held = synthetic.parameters()
    assert set(held) == {"images", "rate"} | ({"labels"} if method is DATM else set())
    found = torch.autograd.grad(objective.terms(synthetic)["trajectory"], list(held.values()))
    for gradient in found:
        assert bool((gradient.reshape(len(gradient) if gradient.dim() else 1, -1).abs().amax(1) > 0).all())


def test_batches_are_pieces_of_one_order_after_another(tmp_path: Path) -> None:
    objective, _ = start(tmp_path, MTT, TrajectoryOptions)
    objective.setting.augmentation = None
    images, labels = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8), torch.arange(3)
    found = [make(images, labels) for make in objective._batches(images)]
    assert [len(seen) for seen, _ in found] == [2, 1, 2, 1]
    assert all(torch.equal(seen[:, 0, 0, 0], wanted.float()) for seen, wanted in found)
    for pieces in (found[:2], found[2:]):
        assert sorted(torch.cat([wanted for _, wanted in pieces]).tolist()) == [0, 1, 2]


def test_tesla_is_mtt_for_one_inner_step(tmp_path: Path) -> None:
    one = {"inner_steps": 1}
    mine, theirs = start(tmp_path, MTT, TrajectoryOptions, **one), start(tmp_path, TESLA, TrajectoryOptions, **one)
    assert steps(*mine, 3) == steps(*theirs, 3)
    assert torch.equal(mine[1].images, theirs[1].images)


def test_two_processes_share_a_steps_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Tensor] = []  # of the rate's gradient, one a process

    def mean(x: Tensor) -> Tensor:
        shares.append(x.clone())
        return torch.stack(shares[:2]).mean(0)

    def one(rank: int, world: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(parallel, "world_size", lambda: world)
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        monkeypatch.setattr(parallel, "mean_over_processes", mean if world == 2 else lambda x: x)
        objective, synthetic = start(tmp_path, MTT, TrajectoryOptions, experts_per_step=3)
        assert synthetic.log_rate is not None
        synthetic.log_rate.data.fill_(-7.0)
        term = objective.terms(synthetic)["trajectory"]
        return term.detach(), *torch.autograd.grad(term, [synthetic.images, synthetic.log_rate])

    monkeypatch.setattr(parallel, "latest", lambda value: value)
    monkeypatch.setattr(parallel, "from_first", lambda text: text)
    alone = one(0, 1)
    for rank in (0, 1):
        one(rank, 2)  # the second of them, and both of the next, know both shares
    parts = [one(rank, 2) for rank in (0, 1)]
    for first, second, whole in zip(*parts, alone, strict=True):
        torch.testing.assert_close(first + second, whole)
    assert 0 < abs(float(alone[2])) < 1, "or its bound would hide what it was"
    assert float(one(3, 4)[0]) == 0.0  # more processes than experts


def test_the_window_grows_to_its_end(tmp_path: Path) -> None:
    changes = {"expert_epochs": 7, "max_start": 8, "first_max_start": 2, "min_start": 1, "expansion_end": 0.5}
    objective, _ = start(tmp_path, DATM, DATMConfig, **changes)
    objective.setting.clock = clock = Clock(steps=12)
    seen = []
    for clock.step in range(13):
        seen.append(objective.starts())
    assert seen == [(1, high) for high in (2, 3, 4, 5, 6, 7, *[8] * 7)]
    with pytest.raises(ValueError, match="last start, which is 8"):
        start(tmp_path, DATM, DATMConfig, **{**changes, "min_start": 9})


def test_a_student_led_astray_moves_the_rate_alone(tmp_path: Path) -> None:
    objective, synthetic = start(tmp_path, DATM, DATMConfig, threshold=1e-6)
    held = synthetic.parameters()
    found = torch.autograd.grad(objective.terms(synthetic)["trajectory"], list(held.values()))
    moved = {name: bool(gradient.abs().amax() > 0) for name, gradient in zip(held, found, strict=True)}
    assert moved == {"images": False, "labels": False, "rate": True}


def test_a_student_that_is_lost_lowers_the_rate_alone(tmp_path: Path) -> None:
    """As any roll-out beyond measure: the gradient of the rate's logarithm is 1."""
    objective, synthetic = start(tmp_path, DATM, DATMConfig, threshold=1.1)
    assert synthetic.log_rate is not None
    synthetic.log_rate.data.fill_(80.0)
    term = objective.terms(synthetic)["trajectory"]
    assert float(term.detach()) == pytest.approx(1.1)
    for name, gradient in zip(
        synthetic.parameters(), torch.autograd.grad(term, list(synthetic.parameters().values())), strict=True
    ):
        assert float(gradient.abs().max()) == pytest.approx(1.0 if name == "rate" else 0.0)
        assert name != "rate" or float(gradient) > 0


def test_a_lost_students_part_spoils_no_other(tmp_path: Path) -> None:
    """One of two is finite in value, and not in the images' gradient."""
    objective, _ = start(tmp_path, DATM, DATMConfig, threshold=1.1)
    good = Unrolled(torch.tensor(0.5), torch.ones(3, 1, 8, 8), torch.ones(3, 3), torch.tensor(2.0))
    assert objective.kept(good) is good
    for name in good._fields:
        bad = good._replace(**{name: getattr(good, name) * torch.nan})
        kept = objective.kept(bad)
        assert float(kept.value) == pytest.approx(1.1)
        assert not bool(kept.images.any() or kept.labels.any())
        assert float(kept.rate) == torch.inf  # bounded where all are added up


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_a_lost_student_is_an_error_that_says_what_to_do(
    tmp_path: Path, method: Any, config: type[TrajectoryOptions]
) -> None:
    """DATM's too, where it skips none."""
    objective, synthetic = start(tmp_path, method, config, **({"threshold": 0.0} if method is DATM else {}))
    assert synthetic.log_rate is not None
    synthetic.log_rate.data.fill_(80.0)
    setting_of(objective).clock.step = 7
    wanted = "'trajectory' became (nan|inf) at step 7: .* again .* lower --rate or --image-lr, or fewer --inner-steps"
    with pytest.raises(TermError, match=wanted):
        objective.terms(synthetic)


def test_first_labels_are_the_experts_logits_with_the_right_class_first(tmp_path: Path) -> None:
    objective, _ = start(tmp_path, DATM, DATMConfig, expert_epochs=6)
    assert isinstance(objective, DATM)
    real = objective.setting.real
    images, labels = to_float(real.x), real.y.clone()
    labels[:10] = (labels[:10] + 1) % 3  # the experts know better
    logits, judged = objective.first_labels(images, labels), objective.judge(images)
    right = judged.argmax(1) == labels
    assert right.tolist() == [False] * 10 + [True] * 50
    assert bool((logits.argmax(1) == labels).all())
    assert torch.equal(logits[right], judged[right])
    assert torch.equal(logits.sort(1).values, judged.sort(1).values)
    real.rows[1] = torch.cat([real.rows[0][:9], real.rows[1][:4]])
    chosen, classes = objective.first_images([2, 4, 3])
    assert classes.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert bool((objective.judge(chosen).argmax(1) == classes).all())
    assert {tuple(map(float, i.flatten())) for i in chosen} <= {tuple(map(float, i.flatten())) for i in images}


def test_the_command_says_what_it_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datafree.cli.experts import experts

    arguments = ["--arch", "mlp", "--count", "1", "--epochs", "2", "--images", "128", "--out", str(tmp_path / "mine")]
    experts.main([*arguments, "--threads", "1"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "1, 2 records each" in shown
    assert str(tmp_path / "mine") in shown
    assert expert_file(tmp_path / "mine", 0).exists()


def test_learning_the_set_brings_students_nearer_to_the_expert(tmp_path: Path) -> None:
    """Of images that start as grey noise: all that is learned is learned from the trajectory."""
    setting = make_setting(tmp_path)
    options = {**SHORT, "experts": 1, "expert_span": 3, "max_start": 0, "inner_steps": 6, "batch_synthetic": 3}
    objective = MTT(setting, TrajectoryOptions(**options))
    images = 0.5 + 0.1 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    synthetic = Synthetic(images, torch.arange(3), learning_rate=0.1)
    optimizer = torch.optim.Adam(synthetic.parameters().values(), 0.03)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective.terms(synthetic)["trajectory"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        synthetic.project()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]
    assert values[-1] < 0.5


def test_a_steps_distance_is_the_mean_over_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"experts_per_step": 2, "expert_span": 2, "inner_steps": 2, "expert_epochs": 6}
    objective, synthetic = start(tmp_path, MTT, TrajectoryOptions, **changes)
    assert isinstance(objective, MTT)
    drawn = iter((1, 0, 0, 1))  # the second expert from its first record, the first from its second
    monkeypatch.setattr(objective, "_draw", lambda *_: next(drawn))
    monkeypatch.setattr(objective, "_batches", lambda _: [lambda images, labels: (images, labels)] * 2)
    names = [name for name, _ in objective.network.named_parameters()]
    sizes = [p.numel() for p in objective.network.parameters()]
    images, rate = synthetic.decoded(), synthetic.rate
    wanted = torch.zeros(())
    for expert, first in ((1, 0), (0, 1)):
        begin, end = objective.experts.at(expert, first, first + 2)
        at = begin.requires_grad_()
        for _ in range(2):
            parts = zip(torch.split(at, sizes), objective.network.parameters(), strict=True)
            weights = dict(zip(names, [part.view_as(p) for part, p in parts], strict=True))
            logits = torch.func.functional_call(objective.network, weights, (images,))
            loss = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
            at = at - rate * torch.autograd.grad(loss, at, create_graph=True)[0]
        wanted = wanted + (at - end).square().sum() / (begin - end).square().sum() / 2
    value = objective.terms(synthetic)["trajectory"]
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)
    ours, theirs = (torch.autograd.grad(each, synthetic.images, retain_graph=True)[0] for each in (value, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize(("records", "asked", "wanted"), [(10, None, 5), (6, None, 3), (5, None, 2), (6, 4, 4)])
def test_students_start_in_the_first_half_unless_asked(records: int, asked: int | None, wanted: int) -> None:
    assert last_start(records, TrajectoryOptions(expert_span=2, max_start=asked)) == wanted


def test_judges_are_the_experts_ends_and_all_that_they_take_rightly_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, _ = start(tmp_path, DATM, DATMConfig)
    assert isinstance(objective, DATM)
    images, mtt, logits = torch.rand(4, 1, 8, 8), objective.mtt, []
    for index in range(mtt.experts.count):
        (vector,) = mtt.experts.at(index, mtt.experts.records)
        nn.utils.vector_to_parameters(vector, mtt.network.parameters())
        logits.append(mtt.network(images).detach())
    torch.testing.assert_close(objective.judge(images), torch.stack(logits).mean(0), rtol=1e-5, atol=1e-6)
    seen: list[Tensor] = []

    def judge(images: Tensor) -> Tensor:
        """By how much each is the first class: wrong, barely, surely and hardly wrong."""
        seen.append(images)
        return F.pad(torch.tensor([-2.0, 0.5, 3.0, -1.0] + [-9.0] * 99)[: len(images), None], (0, 2))

    monkeypatch.setattr(objective, "judge", judge)
    monkeypatch.setattr(objective, "CANDIDATES", 4)
    for count, wanted in ((1, [1]), (3, [1, 2, 3])):
        chosen, _ = objective.first_images([count])
        assert torch.equal(chosen, seen[-1][wanted])
