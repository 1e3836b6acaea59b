"""Feature matching (DM, CAFE, DataDAM, NCFM): against published code, plain computations, and finite differences.

`features.npz` holds the real images, by class, of the vectors `dm` and `dm_bn` of tests/losses/condensation.npz, where
their class means stand for them (float64; VICO-UoE/DatasetCondensation 53f63a6).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import parallel
from datafree.condensation import ncfm
from datafree.condensation.cafe import CAFE, CAFEConfig
from datafree.condensation.datadam import DataDAM, DataDAMConfig
from datafree.condensation.dm import DM, DMConfig
from datafree.condensation.loop import ImageTrainer
from datafree.condensation.ncfm import NCFM, NCFMConfig, Sampler
from datafree.condensation.networks import Networks, embed, look, look_at_layers
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.data import Data, load_data
from datafree.data.augmentation import parse_augmentation
from datafree.data.tensors import to_float
from datafree.domain import make_domain
from datafree.jobs.condense_defaults import DEFAULTS
from datafree.models import build_model
from datafree.models.batches import mixes
from datafree.models.convnet import ConvNet
from datafree.teacher import Normalised
from datafree.training import Clock

LOSSES = np.load(Path(__file__).parents[1] / "losses" / "condensation.npz", allow_pickle=False)
REAL = np.load(Path(__file__).with_name("features.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
CLASSES, SIZE, EACH = 3, 8, 6
MARGIN = 0.03


class Given(Real):
    """Real images of any type. `of_class` is theirs, with the type kept."""

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        super().__init__((x * 255).to(torch.uint8), y, classes)
        self.given = x

    def of_class(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        rows = self.rows[label]
        return self.given[rows[torch.randperm(len(rows), generator=rng)[:n]]]


def batch_norm_net(shape: tuple[int, int, int], width: int, classes: int, padding: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, pad in ((shape[0], padding), (width, 1)):
        layers += [nn.Conv2d(inputs, width, 3, padding=pad), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2)]
    side = (shape[1] + 2 * padding - 2) // 4
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, classes))


def make_setting(*, batch_norm: bool = False, dtype: torch.dtype = torch.float64, **changes: Any) -> Setting:
    """Three classes of six grey 8x8 images, ConvNet-2-4 behind a normalisation."""
    rng = torch.Generator().manual_seed(1)
    domain = make_domain(shape=(1, SIZE, SIZE), classes=CLASSES, mean=(0.4,), std=(0.3,))
    x = torch.rand(CLASSES * EACH, 1, SIZE, SIZE, generator=rng, dtype=torch.float64).to(dtype)
    y = torch.arange(CLASSES).repeat_interleave(EACH)

    def new_network() -> nn.Module:
        inner = (
            batch_norm_net(domain.shape, 4, CLASSES)
            if batch_norm
            else ConvNet(shape=domain.shape, classes=CLASSES, depth=2, width=4)
        )
        return Normalised(inner, domain.mean, domain.std).to(dtype)

    values: dict[str, Any] = {
        "real": Given(x, y, CLASSES),
        "domain": domain,
        "new_network": new_network,
        "arch": "convnet2",
        "augmentation": None,
        "rng": torch.Generator().manual_seed(3),
        "device": torch.device("cpu"),
        "clock": Clock(steps=4),
    }
    return Setting(**{**values, **changes})


def make_synthetic(dtype: torch.dtype = torch.float64, factor: int = 1) -> Synthetic:
    rng = torch.Generator().manual_seed(2)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    images = torch.rand(len(labels), 1, SIZE, SIZE, generator=rng, dtype=torch.float64).to(dtype)
    return Synthetic(images, labels, factor=factor)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def real_batches(setting: Setting, n: int) -> list[Tensor]:
    """What the method will draw, without moving the generator."""
    twin = torch.Generator()
    twin.set_state(setting.rng.get_state())
    return [setting.real.of_class(label, n, twin) for label in range(CLASSES)]


def next_network(setting: Setting) -> nn.Module:
    """The network that will be made next, without moving the global generator."""
    state = torch.get_rng_state()
    network = setting.new_network()
    torch.set_rng_state(state)
    return network


# DM


def published_net(tag: str) -> nn.Module:
    if tag == "dm":
        network: nn.Module = ConvNet(shape=(1, 28, 28), classes=2, depth=2, width=8)
        places = {"conv0": "features.0", "gn0": "features.1", "conv1": "features.4", "gn1": "features.5"}
    else:
        network = batch_norm_net((1, 28, 28), 4, 2, padding=3)
        places = {"conv0": "0", "bn0": "1", "conv1": "4", "bn1": "5"}
    state = {
        f"{place}.{name}": torch.from_numpy(LOSSES[f"{tag}.{layer}.{name}"])
        for layer, place in places.items()
        for name in ("weight", "bias")
    }
    network.double().load_state_dict(state, strict=False)
    return network


@pytest.mark.parametrize("tag", ["dm", "dm_bn"])
def test_dm_equals_published_code(tag: str) -> None:
    x = torch.from_numpy(REAL["dm.in_real"])
    domain = make_domain(shape=(1, 28, 28), classes=2, mean=(0.0,), std=(1.0,))
    setting = make_setting(
        real=Given(x.flatten(0, 1), torch.arange(2).repeat_interleave(5), 2),
        domain=domain,
        new_network=lambda: published_net(tag),
    )
    synthetic = Synthetic(torch.from_numpy(LOSSES["dm.in_syn"]), torch.arange(2))
    (term,) = DM(setting, DMConfig(real_batch=5)).terms(synthetic).values()
    torch.testing.assert_close(term, torch.from_numpy(LOSSES[f"{tag}.out_loss"]), **CLOSE)
    (gradient,) = torch.autograd.grad(term, synthetic.images)
    torch.testing.assert_close(gradient[:1], torch.from_numpy(LOSSES[f"{tag}.grad_images"]), **CLOSE)


def test_dm_equals_the_plain_way_class_by_class() -> None:
    augmentation = parse_augmentation("color_crop_cutout_flip_scale_rotate", mean=(0.4,), std=(0.3,))
    setting, synthetic = make_setting(augmentation=augmentation), make_synthetic()
    network, twin = next_network(setting), make_setting(augmentation=augmentation)
    value = torch.zeros((), dtype=torch.float64)
    for label in range(CLASSES):
        real = twin.real.of_class(label, 4, twin.rng)
        real, made = twin.augment_alike(real, synthetic.of_class(label))
        value = value + (look(network, real)[0].detach().mean(0) - look(network, made)[0].mean(0)).square().sum()
    (wanted,) = torch.autograd.grad(value, synthetic.images)
    (term,) = DM(setting, DMConfig(real_batch=4)).terms(synthetic).values()
    torch.testing.assert_close(term, value.detach(), **CLOSE)
    (gradient,) = torch.autograd.grad(term, synthetic.images)
    torch.testing.assert_close(gradient, wanted, **CLOSE)


def test_dms_cross_entropy_is_that_of_its_network_on_the_set() -> None:
    setting, synthetic = make_setting(), make_synthetic()
    network = next_network(setting)
    terms = DM(setting, DMConfig(real_batch=4, cross_entropy=0.5)).terms(synthetic)
    wanted = 0.5 * F.cross_entropy(network(synthetic.images), synthetic.labels)
    torch.testing.assert_close(terms["cross_entropy"], wanted.detach(), **CLOSE)


# What all look through


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_quick_embedding_equals_the_plain_one(shape: tuple[int, int, int]) -> None:
    setting = make_setting()
    mean, std = [0.4] * shape[0], [0.3] * shape[0]
    network = Normalised(ConvNet(shape=shape, classes=4, depth=3, width=8), mean, std).double().requires_grad_(False)
    images = torch.rand(70, *shape, dtype=torch.float64, requires_grad=True)  # more than two parts at 32 x 32
    direction = torch.randn_like(look(network, images)[0])
    wanted, found = look(network, images)[0], embed(setting, network, images)
    torch.testing.assert_close(found, wanted, **CLOSE)
    slow, quick = (torch.autograd.grad((x * direction).sum(), images)[0] for x in (wanted, found))
    torch.testing.assert_close(quick, slow, **CLOSE)


def test_embeddings_of_half_precision_are_near_and_of_float32() -> None:
    def cast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)

    setting = make_setting(dtype=torch.float32, cast=cast)
    images = torch.rand(40, 1, SIZE, SIZE)
    for arch in ("convnet3", "resnet20"):
        network = build_model(arch, shape=(1, SIZE, SIZE), classes=CLASSES).eval()
        with torch.no_grad():
            found, wanted = embed(setting, network, images), look(network, images)[0]
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_activations_of_modules_and_of_functions_are_seen() -> None:
    images = torch.rand(5, 1, SIZE, SIZE)
    network = ConvNet(shape=(1, SIZE, SIZE), classes=3, depth=2, width=4)
    maps, features, logits = look_at_layers(network, images, lambda x: x)
    torch.testing.assert_close(maps[0], network.features[:3](images), rtol=0, atol=0)
    torch.testing.assert_close(maps[1], network.features[:7](images), rtol=0, atol=0)
    torch.testing.assert_close(network.classifier(features), logits, rtol=0, atol=0)
    # ResNet-20 calls the function: once at the entry, twice in each of its nine blocks.
    resnet = build_model("resnet20", shape=(3, 32, 32), classes=3)
    assert len(look_at_layers(resnet, torch.rand(2, 3, 32, 32), lambda x: x)[0]) == 19
    with pytest.raises(ValueError, match="convolutional --arch"):
        look_at_layers(build_model("mlp", shape=(1, SIZE, SIZE), classes=3), images, lambda x: x)


@pytest.mark.parametrize(
    "kind",
    [
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
        nn.Hardswish, nn.Hardtanh, nn.Tanh,
    ],
)  # fmt: skip
def test_every_usual_activation_is_seen_once(kind: type[nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), kind(), nn.Flatten(), nn.Linear(2 * (SIZE - 2) ** 2, 3))
    images = torch.rand(2, 1, SIZE, SIZE)
    maps, _, _ = look_at_layers(network, images, lambda x: x)
    torch.testing.assert_close(maps, [network[:2](images)])


def test_a_network_with_one_activation_is_too_shallow_for_datadam() -> None:
    def one() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * (SIZE - 2) ** 2, 3)).double()

    setting = make_setting(new_network=one)
    with pytest.raises(ValueError, match=r"^datadam leaves the last activation out, .* take a deeper --arch$"):
        DataDAM(setting, DataDAMConfig())


def test_batch_norm_in_training_mixes() -> None:
    network = batch_norm_net((1, SIZE, SIZE), 4, 3)
    assert mixes(network)
    assert not mixes(network.eval())
    assert not mixes(ConvNet(shape=(1, SIZE, SIZE), classes=3, depth=2, width=4))


def test_networks_between_their_first_and_present_weights() -> None:
    setting = make_setting(nets="trained", net_pool=1, net_steps=3, dtype=torch.float32)
    networks = Networks(setting, batch_size=4, keep_initial=True)
    first = {k: v.clone() for k, v in networks.take().state_dict().items()}
    networks.advance()
    last = networks.take().state_dict()
    for share in (0.0, 0.25, 1.0):
        for name, weight in networks.between(share).state_dict().items():
            torch.testing.assert_close(weight, (1 - share) * first[name] + share * last[name])
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_the_pool_of_a_short_run_is_young() -> None:
    """2 steps: 10 training steps of 64 images are affordable, so 2 * 10 * 64 / 16 / 2 = 40 of 16 for each of two."""
    for steps, age in ((2, 20), (4000, 60)):
        setting = make_setting(nets="trained", net_pool=2, net_steps=120, clock=Clock(steps=steps), dtype=torch.float32)
        setting.real.x = setting.real.x.repeat(1000, 1, 1, 1)
        setting.real.y = setting.real.y.repeat(1000)
        networks = Networks(setting, batch_size=16)
        networks.take()
        assert networks.ages == [0, age]


# DataDAM


def test_datadam_equals_a_plain_computation() -> None:
    setting, synthetic = make_setting(), make_synthetic()
    network, real = next_network(setting), real_batches(setting, 4)
    inner = network.network
    assert isinstance(inner, ConvNet)
    wanted = {"attention": 0.0, "embedding": 0.0}
    for label in range(CLASSES):
        means = []
        for images in (real[label], synthetic.of_class(label).detach()):
            first = inner.features[:3]((images - 0.4) / 0.3).detach().numpy()
            maps = (np.abs(first) ** 2).sum(1).reshape(len(images), -1)
            maps = maps / np.linalg.norm(maps, axis=1, keepdims=True)
            means.append((maps.mean(0), look(network, images)[0].detach().numpy().mean(0)))
        wanted["attention"] += 10.0 * ((means[0][0] - means[1][0]) ** 2).sum()
        wanted["embedding"] += 10.0 * 0.5 * ((means[0][1] - means[1][1]) ** 2).sum()
    config = DataDAMConfig(real_batch=4, attention=10.0, balance=0.5, power=2.0)
    terms = DataDAM(setting, config).terms(synthetic)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(wanted, rel=1e-9)


# CAFE


def test_cafe_equals_a_plain_computation() -> None:
    setting, synthetic = make_setting(nets="reused"), make_synthetic()
    config = CAFEConfig(real_batch=4, shallow=0.3, discrimination=0.7, check_batch=2)
    network = next_network(setting)
    inner = network.network
    assert isinstance(inner, ConvNet)
    method = CAFE(setting, config)
    method._current()  # draws the images that are watched
    real = real_batches(setting, 4)
    means: list[list[list[np.ndarray[Any, Any]]]] = []
    for batches in (real, [synthetic.of_class(label).detach() for label in range(CLASSES)]):
        means.append([])
        for images in batches:
            entry = (images - network.get_buffer("mean")) / network.get_buffer("std")
            layers = [inner.features[:3](entry), inner.features[:7](entry), inner.features(entry)]
            means[-1].append([x.detach().numpy().mean(0).ravel() for x in layers])
    weights = [0.3, 1.0, 1.0]
    wanted = {
        "layers": sum(
            w * ((means[0][c][k] - means[1][c][k]) ** 2).sum() for c in range(3) for k, w in enumerate(weights)
        ),
        "centres": sum(((means[0][c][2] - means[1][c][2]) ** 2).sum() for c in range(3)),
    }
    centres, entropy = np.stack([means[1][c][2] for c in range(3)]), 0.0
    for label in range(CLASSES):
        logits = look(network, real[label])[0].detach().numpy() @ centres.T
        entropy += (np.log(np.exp(logits).sum(1)) - logits[:, label]).sum()
    wanted["discrimination"] = 0.7 * entropy
    terms = method.terms(synthetic)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(wanted, rel=1e-9)


def test_cafe_trains_its_network_until_the_accuracy_moves_and_then_takes_a_new_one() -> None:
    synthetic = make_synthetic()
    for until, epochs in ((0.5, 4), (-1.0, 2)):  # never moves that much: as many as allowed; always: a full window
        config = CAFEConfig(real_batch=2, check_batch=2, window=2, renew_below=0.0, most_epochs=4)
        method = CAFE(make_setting(nets="reused"), config)
        object.__setattr__(config, "train_until", until)
        trained: list[int] = []
        method._epoch = lambda s, seen=trained: seen.append(1)  # type: ignore[method-assign, misc]
        method._accuracy = lambda: 0.5  # type: ignore[method-assign]
        method.terms(synthetic)
        method.advance(synthetic)
        assert len(trained) == epochs
    config = CAFEConfig(real_batch=2, check_batch=2, window=2, renew_below=0.1, most_epochs=1)
    method = CAFE(make_setting(nets="reused"), config)
    found = iter([0.1, 0.1, 0.5, 0.5, 0.55])  # step, epoch, step, epoch, step
    method._accuracy = lambda: next(found)  # type: ignore[method-assign]
    method.terms(synthetic)
    network = method.network
    method.advance(synthetic)
    method.advance(synthetic)
    assert method.network is network  # 0.1 and 0.5 differ
    method.advance(synthetic)
    assert method.network is None  # 0.5 and 0.55 do not


def test_by_default_cafe_waits_for_the_accuracy_longer_than_it_looks_back() -> None:
    """It stands still for 15 epochs, then moves by more than the default asks for: that epoch is the last."""
    config = CAFEConfig(real_batch=4, check_batch=2)
    assert config.most_epochs >= 2 * config.window
    method, synthetic = CAFE(make_setting(nets="reused"), config), make_synthetic()
    trained: list[int] = []
    method._epoch = lambda synthetic: trained.append(1)  # type: ignore[method-assign]
    method._accuracy = lambda: 0.5 if len(trained) <= 15 else 0.6  # type: ignore[method-assign]
    method.terms(synthetic)
    method.advance(synthetic)
    assert len(trained) == 16
    # Where it moves at once, a full window is seen, as in the release.
    method._accuracy = lambda: 0.1 * len(trained)  # type: ignore[method-assign]
    trained.clear()
    method.advance(synthetic)
    assert len(trained) == config.window


def test_cafes_training_lowers_the_loss_on_the_set() -> None:
    setting, synthetic = make_setting(nets="reused"), make_synthetic()
    method = CAFE(setting, CAFEConfig(real_batch=2, check_batch=2))
    network = method._current()

    def loss() -> float:
        return float(F.cross_entropy(network(synthetic.images), synthetic.labels).detach())

    before = loss()
    for _ in range(5):
        method._epoch(synthetic)
    assert loss() < before
    assert synthetic.images.grad is None


# NCFM


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    network: nn.Module = make_setting().new_network().requires_grad_(False)
    monkeypatch.setattr(ncfm, "trained_network", lambda setting: network)
    return network


def test_ncfm_equals_a_plain_computation(judge: nn.Module) -> None:
    setting, synthetic = make_setting(), make_synthetic()
    config = NCFMConfig(real_batch=4, frequencies=50, amplitude=0.3, calibration=0.2)
    method = NCFM(setting, config)
    network = next_network(setting)
    twin = make_setting()
    torch.rand((), generator=twin.rng)  # where between first and trained weights
    real = [twin.real.of_class(label, 4, twin.rng) for label in range(CLASSES)]
    terms = method.terms(synthetic)
    t, wanted = None, {"distance": 0.0, "calibration": 0.0}
    for label in range(CLASSES):
        made = synthetic.of_class(label).detach()
        features = [look(network, x)[0].detach().numpy() for x in (real[label], made)]
        x, s = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in features)
        if t is None:
            t = torch.randn((50, x.shape[1]), generator=twin.rng).double().numpy()
        p, q = (np.exp(1j * y @ t.T).mean(0) for y in (x, s))
        amplitudes = (abs(p) - abs(q)) ** 2
        phases = 2 * (abs(p) * abs(q) - (p * q.conj()).real)
        wanted["distance"] += 300 * np.sqrt(0.3 * amplitudes + 0.7 * phases).mean()
        logits = judge(made).detach().numpy()
        wanted["calibration"] += 0.2 * (np.log(np.exp(logits).sum(1)) - logits[:, label]).mean()
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(wanted, rel=1e-7)


def test_learned_frequencies_start_as_normal_ones_and_raise_the_distance() -> None:
    assert torch.equal(Sampler(5)(torch.randn(64, Sampler.NOISE)), torch.ones(64, 5))
    setting, synthetic = make_setting(dtype=torch.float32), make_synthetic(torch.float32)
    config = NCFMConfig(real_batch=6, frequencies=64, sampler="learned", sampler_lr=1e-2, calibration=0.0)
    method, weights = NCFM(setting, config), setting.new_network().state_dict()
    taken = setting.new_network()
    taken.load_state_dict(weights)
    method.networks.take = lambda: taken.requires_grad_(False)  # type: ignore[method-assign]
    values = [float(method.terms(synthetic)["distance"].detach())]
    assert method.sampler is not None
    # Adam's first step is its rate long.
    assert method.sampler.outer.bias.abs().max().item() == pytest.approx(1e-2, rel=1e-3)
    values += [float(method.terms(synthetic)["distance"].detach()) for _ in range(59)]
    assert np.mean(values[-10:]) > 1.1 * np.mean(values[:3])
    assert synthetic.images.grad is None


@pytest.mark.parametrize("interpolate", [False, True])
def test_networks_lie_before_their_trained_weights_only_where_asked(interpolate: bool) -> None:
    setting = make_setting(dtype=torch.float32, nets="trained", net_pool=1, net_steps=2)
    networks = NCFM(setting, NCFMConfig(interpolate=interpolate, calibration=0.0)).networks
    assert (networks.between(0.5) is networks.take()) is not interpolate


def test_by_default_ncfm_colours_crops_and_cuts_out_at_every_step() -> None:
    """All three one after the other, as in its release (DiffAug without a draw among them), as for IDC."""
    values = {**DEFAULTS, **NCFM.LOOP}
    assert (values["augmentation"], values["augmentation_mode"]) == ("color_crop_cutout", "all")
    augmentation = parse_augmentation(values["augmentation"], mode=values["augmentation_mode"], mean=(0.4,), std=(0.3,))
    drawn = [make_setting(augmentation=augmentation, rng=torch.Generator().manual_seed(i)) for i in range(5)]
    for setting in drawn:
        image = torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64)
        (seen,) = setting.augment_alike(image)
        cut = (seen - 0.4).abs() < 1e-12  # to zero in standardised pixels
        assert int(cut.sum()) >= (SIZE // 4) ** 2  # a block of 4 x 4 whose centre lies within the image
        bright = (seen - image)[~cut]
        assert float(bright.abs().min()) > 0  # no other pixel is as it was


# Contracts of all four

Maker = Callable[[Setting], Any]
METHODS: dict[str, Maker] = {
    "dm": lambda s: DM(s, DMConfig(real_batch=4, cross_entropy=0.1)),
    "datadam": lambda s: DataDAM(s, DataDAMConfig(real_batch=4)),
    "cafe": lambda s: CAFE(s, CAFEConfig(real_batch=4, check_batch=2, window=2, most_epochs=3, renew_below=0.2)),
    "ncfm": lambda s: NCFM(s, NCFMConfig(real_batch=4, frequencies=20)),
    "ncfm-learned": lambda s: NCFM(s, NCFMConfig(real_batch=4, frequencies=20, sampler="learned", calibration=0.0)),
}


def nets(name: str, kind: str = "fresh") -> dict[str, Any]:
    return {"nets": "reused" if name == "cafe" else kind, "net_pool": 2, "net_steps": 3}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_all_images_and_equal_finite_differences(name: str, judge: nn.Module) -> None:
    augmentation = parse_augmentation("crop", mean=(0.4,), std=(0.3,))
    setting, synthetic = make_setting(augmentation=augmentation, **nets(name)), make_synthetic()
    method = METHODS[name](setting)
    method.terms(synthetic)  # what is made at the first call is there now
    states = setting.rng.get_state(), torch.get_rng_state()
    kept = method.state_dict()

    def value() -> Tensor:
        setting.rng.set_state(states[0])
        torch.set_rng_state(states[1])
        method.load_state_dict(kept)
        torch.set_rng_state(states[1])
        return total(method.terms(synthetic))

    (gradient,) = torch.autograd.grad(value(), synthetic.images)
    assert bool((gradient.abs().amax((1, 2, 3)) > 0).all())
    direction, step = torch.randn_like(gradient), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            synthetic.images.add_(sign * step * direction)
        ends.append(float(value().detach()))
        with torch.no_grad():
            synthetic.images.sub_(sign * step * direction)
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dm", "fresh"),
        ("dm", "trained"),
        ("dm", "reused"),
        ("datadam", "fresh"),
        ("cafe", "reused"),
        ("ncfm", "trained"),
        ("ncfm-learned", "trained"),
    ],
)
def test_going_on_from_a_state_is_going_on_bit_for_bit(name: str, kind: str, judge: nn.Module) -> None:
    augmentation = parse_augmentation("color_crop", mean=(0.4,), std=(0.3,))

    def start(seed: int) -> tuple[Setting, Synthetic, Any]:
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        setting = make_setting(dtype=torch.float32, augmentation=augmentation, rng=rng, **nets(name, kind))
        return setting, make_synthetic(torch.float32), METHODS[name](setting)

    judge.float()

    def steps(method: Any, synthetic: Synthetic, wanted: range) -> None:
        for step in wanted:
            if step:
                method.advance(synthetic)
            (gradient,) = torch.autograd.grad(total(method.terms(synthetic)), synthetic.images)
            with torch.no_grad():
                synthetic.images.sub_(1e-3 * gradient)

    setting, synthetic, method = start(0)
    steps(method, synthetic, range(2))
    state, images, randoms = method.state_dict(), synthetic.images.detach().clone(), setting.rng.get_state()
    state = {"held": state, "torch": torch.get_rng_state()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    steps(method, synthetic, range(2, 5))
    wanted = synthetic.images.detach().clone()

    setting, synthetic, method = start(7)
    buffer.seek(0)
    held = torch.load(buffer, weights_only=True)
    method.load_state_dict(held["held"])
    with torch.no_grad():
        synthetic.images.copy_(images)
    setting.rng.set_state(randoms)
    torch.set_rng_state(held["torch"])
    steps(method, synthetic, range(2, 5))
    assert torch.equal(synthetic.images, wanted)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ncfm-learned"])
def test_terms_of_two_processes_add_up(
    name: str, batch_norm: bool, judge: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmentation = parse_augmentation("color_crop", mean=(0.4,), std=(0.3,))
    found: dict[tuple[int, int], dict[str, float]] = {}
    for size, rank in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(0)
        setting = make_setting(batch_norm=batch_norm, augmentation=augmentation, **nets(name))
        monkeypatch.setattr(parallel, "world_size", lambda size=size: size)
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        terms = METHODS[name](setting).terms(make_synthetic())
        found[size, rank] = {key: float(term.detach()) for key, term in terms.items()}
    for key, value in found[1, 0].items():
        assert found[2, 0][key] + found[2, 1][key] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DMConfig(real_batch=0),
        lambda: DataDAMConfig(power=0.0),
        lambda: CAFEConfig(window=0),
        lambda: NCFMConfig(amplitude=1.0),
        lambda: NCFMConfig(sampler="other"),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings_say_so(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"give|take"):
        make()


def accuracy(images: Tensor, labels: Tensor, data: Data, make: Callable[[], nn.Module]) -> float:
    """Of networks trained on the images, on the test images; the mean of three."""
    assert data.x_test is not None
    assert data.y_test is not None
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = make()
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(100):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images), labels))
            optimizer.step()
        with torch.no_grad():
            found.append(float((network(to_float(data.x_test)).argmax(1) == data.y_test).float().mean()))
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "config", "margin"),
    [
        (DM, DMConfig(), MARGIN),
        (DataDAM, DataDAMConfig(), MARGIN),
        (CAFE, CAFEConfig(), MARGIN),
        (NCFM, NCFMConfig(frequencies=512), MARGIN),
    ],
)
def test_condensed_digits_beat_the_real_ones_they_began_as(method: Any, config: Any, margin: float) -> None:
    data = load_data("digits", device=torch.device("cpu"))
    assert data.x_train is not None
    assert data.y_train is not None
    domain = data.domain

    def make() -> nn.Module:
        return Normalised(ConvNet(shape=domain.shape, classes=10, depth=2, width=32), domain.mean, domain.std)

    torch.manual_seed(0)
    options = {**DEFAULTS, **method.LOOP, "factor": 1, "init": "real"}
    augmentation = parse_augmentation(
        options["augmentation"], mode=options["augmentation_mode"], flip=False, mean=domain.mean, std=domain.std
    )
    setting = Setting(
        real=Real(data.x_train, data.y_train, 10),
        domain=domain,
        new_network=make,
        arch="convnet2",
        augmentation=augmentation,
        rng=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
        clock=Clock(steps=80),
        nets=options["nets"],
    )
    labels = torch.arange(10)
    images = torch.cat([setting.real.of_class(label, 1, setting.rng) for label in range(10)])
    synthetic, objective = Synthetic(images, labels), method(setting, config)
    trainer = ImageTrainer(synthetic, CondenseConfig(**{k: v for k, v in options.items() if k != "nets"}))
    for step in range(80):
        if step:
            objective.advance(synthetic)
        trainer.step(objective.terms(synthetic), step / 80)
    before, after = (accuracy(x, labels, data, make) for x in (images, synthetic.images.detach()))
    assert after > before + margin
