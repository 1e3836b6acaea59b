"""Selections of real images, and the trained networks that they look through."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.condensation import rded, subsets, trained
from datafree.condensation.cafe import CAFE
from datafree.condensation.datadam import DataDAM
from datafree.condensation.dm import DM
from datafree.condensation.frepo import FRePo
from datafree.condensation.ncfm import NCFM
from datafree.condensation.networks import look
from datafree.condensation.setting import Real, Setting
from datafree.condensation.trained import trained_network, training_steps
from datafree.config import NoOptions
from datafree.data import load_data
from datafree.data.formation import decode, encode
from datafree.data.mixing import random_resized_crop
from datafree.data.tensors import augment, to_float
from datafree.data.whitening import Whitening
from datafree.domain import Domain
from datafree.models import build_model, load_model
from datafree.models.checkpoint import read_checkpoint
from datafree.teacher import Normalised
from datafree.training import Clock

COUNTS = [2, 1, 3]
DOMAIN = Domain(name="three", shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.3,), flip=False)


class Flat(nn.Module):
    """Pixels as features, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def make_setting(x: Tensor, y: Tensor, domain: Domain, arch: str = "flat", **changes: Any) -> Setting:
    def new_network() -> nn.Module:
        inner = Flat() if arch == "flat" else build_model(arch, shape=domain.shape, classes=domain.classes)
        return Normalised(inner, domain.mean, domain.std)

    values: dict[str, Any] = {
        "real": Real(x, y, domain.classes),
        "domain": domain,
        "new_network": new_network,
        "arch": arch,
        "augmentation": None,
        "rng": torch.Generator().manual_seed(3),
        "device": torch.device("cpu"),
        "clock": Clock(steps=1),
    }
    return Setting(**{**values, **changes})


@pytest.fixture
def three() -> Setting:
    """60 images of 3 classes, 8x8, each class around a pattern of its own."""
    y = torch.arange(60) % 3
    x = (torch.rand(3, 1, 8, 8)[y] * 150 + torch.rand(60, 1, 8, 8) * 100).to(torch.uint8)
    return make_setting(x, y, DOMAIN, clock=Clock(steps=12))


def digits(**changes: Any) -> Setting:
    data = load_data("digits", splits=("train",))
    assert data.x_train is not None
    assert data.y_train is not None
    return make_setting(data.x_train, data.y_train, data.domain, **changes)


def places(setting: Setting, images: Tensor) -> list[int]:
    """Which real image each one is."""
    real = to_float(setting.real.x)
    return [int((real == image).flatten(1).all(1).nonzero().flatten()[0]) for image in images]


def slow_herding(features: Tensor, n: int) -> list[int]:
    chosen: list[int] = []
    for k in range(n):
        wanted = (k + 1) * features.mean(0) - features[chosen].sum(0)
        chosen.append(min(set(range(len(features))) - set(chosen), key=lambda i: float((features[i] - wanted).norm())))
    return chosen


@pytest.mark.parametrize("name", ["Random", "Herding", "KCenter", "KMeans"])
def test_a_selection_is_of_different_real_images_sorted_by_class(three: Setting, name: str) -> None:
    method = getattr(subsets, name)
    images, labels = method(three, method.Config()).build(COUNTS)
    assert labels.tolist() == [0, 0, 1, 2, 2, 2]
    found = places(three, images)
    assert len(set(found)) == 6
    assert three.real.y[found].tolist() == labels.tolist()


def test_herding_takes_the_rows_that_the_definition_says(three: Setting) -> None:
    network = trained_network(three, selecting=True)
    with torch.no_grad():
        features = look(network, to_float(three.real.x))[0]
    for label, (rows, n) in enumerate(zip(subsets.herding_rows(three, COUNTS, selecting=True), COUNTS, strict=True)):
        own = three.real.rows[label]
        assert rows.tolist() == own[slow_herding(features[own].double(), n)].tolist()


def test_k_means_for_one_image_is_the_one_nearest_to_the_mean(three: Setting) -> None:
    images, _ = subsets.KMeans(three, NoOptions()).build([1, 1, 1])
    herded = torch.cat(subsets.herding_rows(three, [1, 1, 1], selecting=True))
    assert places(three, images) == herded.tolist()


def test_mean_is_the_mean_and_needs_no_network(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(subsets, "trained_network")
    images, labels = subsets.Mean(three, NoOptions()).build([1, 1, 4])
    for label in range(2):
        wanted = to_float(three.real.x[three.real.y == label]).double().mean(0)
        torch.testing.assert_close(images[label].double(), wanted, rtol=0, atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 2, 2, 2]
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


@pytest.mark.parametrize("method", [subsets.Herding, subsets.KCenter, subsets.KMeans, NCFM, DM, DataDAM, CAFE, FRePo])
def test_a_network_without_embedding_is_refused_before_it_is_trained(
    method: Any, three: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("trained"))
    inner = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    three.new_network = lambda: Normalised(inner, DOMAIN.mean, DOMAIN.std)
    with pytest.raises(ValueError, match="no linear layer to read features before: take another --arch"):
        method(three, method.Config()).build(COUNTS)


@pytest.mark.parametrize("method", [CAFE, DataDAM])
def test_a_network_without_activations_is_refused_before_it_is_trained(method: Any, three: Setting) -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    three.new_network = lambda: Normalised(inner, DOMAIN.mean, DOMAIN.std)
    with pytest.raises(ValueError, match="Sequential has no activations of maps to look at"):
        method(three, method.Config())


def test_random_is_what_the_run_starts_from(three: Setting) -> None:
    from datafree.condensation.initial import initial_images

    first, _ = subsets.Random(three, NoOptions()).build(COUNTS)
    three.rng.manual_seed(3)
    assert torch.equal(first, initial_images(three, COUNTS, "real", 1)[0])


# RDED


def flat_teacher(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> Normalised:
    network = setting.new_network().requires_grad_(False)
    assert isinstance(network, Normalised)
    monkeypatch.setattr(rded, "trained_network", lambda *_, **__: network)
    return network


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The crops that are drawn, class by class."""
    seen: list[Tensor] = []
    plain = random_resized_crop

    def crop(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
        seen.append(plain(images, smallest, generator))
        return seen[-1]

    monkeypatch.setattr(rded, "random_resized_crop", crop)
    return seen


def test_rded_takes_the_best_crop_of_the_best_images(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    network, crops = flat_teacher(monkeypatch, three), recorded(monkeypatch)
    images, logits = rded.RDED(three, rded.RDEDConfig(crops=4)).build(COUNTS)
    start = 0
    for label, n in enumerate(COUNTS):
        scores = F.cross_entropy(network(crops[label]), torch.full((80,), label), reduction="none")
        best: dict[int, int] = {}  # of an image: its best crop
        for i in sorted(range(80), key=lambda i: float(scores[i])):
            best.setdefault(i // 4, i)
        wanted = torch.stack([crops[label][i] for i in list(best.values())[:n]])
        torch.testing.assert_close(images[start : start + n], wanted)
        start += n
    torch.testing.assert_close(logits.softmax(1), network(images).softmax(1))


def test_rded_looks_at_so_many_crops_of_so_many_images(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    flat_teacher(monkeypatch, three)
    asked: list[tuple[int, float]] = []

    def crop(images: Tensor, smallest: float, _: torch.Generator) -> Tensor:
        asked.append((len(images), smallest))
        return images

    monkeypatch.setattr(rded, "random_resized_crop", crop)
    rded.RDED(three, rded.RDEDConfig(candidates=6, crops=2, smallest_crop=0.4)).build(COUNTS)
    assert asked == [(12, 0.4)] * 3


def test_rded_stitches_crops_and_averages_their_labels(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    network = flat_teacher(monkeypatch, three)
    images, logits = rded.RDED(three, rded.RDEDConfig(tiles=2)).build(COUNTS)
    assert images.shape == (6, 1, 8, 8)
    wanted = torch.zeros(6, 3)
    for row, image in enumerate(images):
        for tile in (image[:, :4, :4], image[:, :4, 4:], image[:, 4:, :4], image[:, 4:, 4:]):
            large = F.interpolate(tile[None], size=(8, 8), mode="bilinear", align_corners=False)
            wanted[row] += network(large)[0].softmax(0) / 4
    torch.testing.assert_close(logits.softmax(1), wanted)


def test_rded_scores_what_is_seen(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    network = flat_teacher(monkeypatch, three)
    method = rded.RDED(three, rded.RDEDConfig(tiles=2))
    method.teacher = network
    crops = torch.rand(8, 1, 8, 8)
    seen = decode(encode(crops, 2), 2)
    wanted = F.cross_entropy(network(seen), torch.full((8,), 1), reduction="none")
    torch.testing.assert_close(method.scores(crops, 1), wanted)


def test_rded_repeats_images_where_a_class_has_too_few(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    flat_teacher(monkeypatch, three)
    images, logits = rded.RDED(three, rded.RDEDConfig(tiles=3, candidates=5)).build([20, 1, 1])  # 180 crops of 20
    assert images.shape == (22, 1, 8, 8)
    assert logits.shape == (22, 3)


@pytest.mark.parametrize("wrong", [{"tiles": 0}, {"smallest_crop": 1.5}, {"smallest_crop": 0.0}, {"crops": -1}])
def test_rded_says_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(wrong)).replace('_', '-')} is "):
        rded.RDEDConfig(**wrong)


# Trained networks


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in network.parameters()])


@pytest.mark.parametrize("flip", [False, True])
def test_training_is_its_recipe_written_down(three: Setting, flip: bool) -> None:
    """SGD with Nesterov momentum and decay, a cosine, and whole batches of one order after another."""
    three.domain = dataclasses.replace(three.domain, flip=flip)
    recipe = trained.Recipe(steps=5, lr=0.1, batch_size=16, weight_decay=0.05)
    network, rng = three.new_network(), torch.Generator().manual_seed(5)
    twin = copy.deepcopy(network)
    trained.train(network, three, recipe, torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, 0.9, weight_decay=0.05, nesterov=True)
    for step in range(5):
        if step % 3 == 0:  # 60 images are three batches of 16, and 12 that are left out
            order = torch.randperm(60, generator=rng)
        rows = order[16 * (step % 3) :][:16]
        images = augment(to_float(three.real.x[rows]), rng, pad=1, flip=flip)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(twin(images), three.real.y[rows]))
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 5))
        optimizer.step()
    torch.testing.assert_close(weights(network), weights(twin), rtol=1e-4, atol=1e-5)


def test_crops_are_padded_by_an_eighth_of_each_side(three: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wide images, padded by their width on all sides, most crops would hold no pixel."""
    wide = make_setting(three.real.x.repeat(1, 1, 1, 8), three.real.y, dataclasses.replace(DOMAIN, shape=(1, 8, 64)))
    pads: list[Any] = []

    def crop(images: Tensor, _: torch.Generator, *, pad: Any, flip: bool) -> Tensor:
        pads.append(pad)
        return images

    monkeypatch.setattr(trained, "augment", crop)
    trained.train(nn.Sequential(nn.Flatten(), nn.Linear(512, 3)), wide, trained.Recipe(steps=1, lr=0.1), wide.rng)
    assert pads == [(1, 8)]


def test_a_network_is_found_again_and_the_run_draws_the_same_numbers(
    three: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.cache = tmp_path / "deep" / "cache"
    before = three.rng.get_state(), torch.get_rng_state()
    made = trained_network(three)
    assert len(list(three.cache.iterdir())) == 1
    monkeypatch.setattr(trained, "train", None)
    found = trained_network(three)
    assert torch.equal(weights(made), weights(found))
    assert torch.equal(before[0], three.rng.get_state())
    assert torch.equal(before[1], torch.get_rng_state())
    assert not any(p.requires_grad for p in found.parameters())
    assert not any(m.training for m in found.modules())


def test_what_a_network_depends_on_has_its_own_file(three: Setting, tmp_path: Path) -> None:
    three.cache = tmp_path
    three.clock = Clock(steps=1)
    trained_network(three)
    trained_network(three, "mlp")
    three.real.x[0, 0, 0, 0] += 1
    trained_network(three)
    three.rng.manual_seed(4)
    trained_network(three)
    three.clock = Clock(steps=20)
    trained_network(three)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


@pytest.mark.parametrize(("zca", "arch", "says"), [(False, None, [0.4]), (True, None, None), (True, "mlp", [0.4])])
def test_a_file_says_the_normalisation_that_its_network_saw(
    zca: bool, arch: str | None, says: list[float] | None, three: Setting, tmp_path: Path
) -> None:
    three.cache, three.whitening = tmp_path, Whitening.fit(to_float(three.real.x)) if zca else None
    trained_network(three, arch)
    (file,) = tmp_path.iterdir()
    assert read_checkpoint(file).metadata.get("mean") == says
    if says is None:
        with pytest.raises(ValueError, match="images as condense --zca whitened them"):
            load_model(file)


def test_a_damaged_file_is_made_again(three: Setting, tmp_path: Path) -> None:
    three.cache = tmp_path
    made = trained_network(three)
    (path,) = tmp_path.iterdir()
    for content in (path.read_bytes()[:-100], b"", b"something else"):
        path.write_bytes(content)
        assert torch.equal(weights(trained_network(three)), weights(made))
    assert path.read_bytes() != b"something else"


def test_a_run_does_not_fail_for_its_cache(three: Setting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    three.cache, three.say = tmp_path / "file" / "cache", said.append
    made = trained_network(three)
    three.cache = None
    assert torch.equal(weights(made), weights(trained_network(three)))
    assert "not kept" in said[1]


def test_stopping_leaves_nothing_behind(three: Setting, tmp_path: Path) -> None:
    three.cache, three.stopping = tmp_path, lambda: True
    with pytest.raises(KeyboardInterrupt):
        trained_network(three)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("clock", "selecting", "macs", "steps"),
    [
        (Clock(steps=2), False, 10**6, 10),
        (Clock(steps=15), False, 10**6, 15),
        (Clock(steps=15), True, 10**6, 15),
        # 60 images, 20 epochs, batches of 64.
        (Clock(steps=1000), False, 10**6, 19),
        (Clock(steps=1), True, 10**6, 19),
        (Clock(seconds=3600), False, 10**6, 19),
        # 0.15 of 600 seconds at 1e11 operations a second, 6 a multiply-add, 64 images: 9e12 / 384e9 = 23.4.
        (Clock(seconds=600), False, 16 * 10**8, 14),
        (Clock(steps=1), True, 16 * 10**8, 14),
        (Clock(seconds=300), False, 10**9, 11),
    ],
)
def test_training_is_scaled_to_the_run(three: Setting, clock: Clock, selecting: bool, macs: int, steps: int) -> None:
    three.clock = clock
    assert training_steps(three, macs, selecting=selecting) == steps


def test_a_trained_network_knows_the_digits() -> None:
    setting = digits(arch="convnet3", clock=Clock(steps=60))
    images, labels = setting.real.batch(500, setting.rng)
    network = trained_network(setting, "resnet8")
    assert float((network(images).argmax(1) == labels).float().mean()) > 0.8


def accuracy(images: Tensor, labels: Tensor, real: Real) -> float:
    """Of the nearest image's label: how well the images stand for the data, without a network."""
    near = torch.cdist(to_float(real.x).flatten(1), images.flatten(1)).argmin(1)
    return float((labels[near] == real.y).float().mean())


def mean_accuracy(name: str, counts: Sequence[int]) -> float:
    found = []
    for seed in range(3):
        setting = digits(arch="convnet3", clock=Clock(steps=150), rng=torch.Generator().manual_seed(seed))
        method = getattr(subsets, name)
        images, labels = method(setting, method.Config()).build(counts)
        found.append(accuracy(images, labels, setting.real))
    return sum(found) / 3


@pytest.mark.slow
def test_central_images_stand_for_the_digits_better_than_random_ones() -> None:
    chance = mean_accuracy("Random", [1] * 10)
    for name in ("Herding", "KMeans", "KCenter", "Mean"):
        assert mean_accuracy(name, [1] * 10) > chance + 0.05, name
    assert mean_accuracy("Mean", [5] * 10) > mean_accuracy("Random", [5] * 10) + 0.05


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from datafree import parallel
parallel.initialise("cpu")
from test_selections import *
setting = digits(arch="convnet3", clock=Clock(steps=10), rng=torch.Generator().manual_seed(parallel.rank()))
torch.save(weights(trained_network(setting)), sys.argv[1] + f"/{{parallel.rank()}}.pt")
parallel.finish()
"""


@pytest.mark.slow
def test_all_processes_have_the_first_ones_network(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(script), str(tmp_path)], env=env, check=True, timeout=200)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
