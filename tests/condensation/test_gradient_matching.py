"""Gradient matching (DC, DSA, IDC): against published code, the usual loop over classes, and finite differences.

`gradient_matching.npz` holds the real images of the vectors `dc` and `idc` of tests/losses/condensation.npz, and more
of their gradients for the first image (float64; VICO-UoE/DatasetCondensation 53f63a6 and
snu-mllab/Efficient-Dataset-Condensation ceac95a).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses, parallel
from datafree.condensation.class_gradients import class_by_class, class_gradients, settle_norms, train_step
from datafree.condensation.dc import DC
from datafree.condensation.dsa import DSA
from datafree.condensation.gradient_matching import loops
from datafree.condensation.idc import IDC, IDCConfig, weight
from datafree.condensation.loop import ImageTrainer
from datafree.condensation.networks import cut_and_mixed
from datafree.condensation.second_order import constant_conv, first_block, norm_relu_pool
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig, GradientOptions
from datafree.data import Data, load_data
from datafree.data.augmentation import parse_augmentation
from datafree.data.formation import decode
from datafree.data.mixing import cutmix
from datafree.domain import make_domain
from datafree.jobs.condense_defaults import DEFAULTS
from datafree.models.convnet import ConvNet
from datafree.teacher import Normalised
from datafree.training import Clock

LOSSES = np.load(Path(__file__).parents[1] / "losses" / "condensation.npz", allow_pickle=False)
MORE = np.load(Path(__file__).with_name("gradient_matching.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
CLASSES, SIZE, EACH = 3, 8, 6


class Doubles(Real):
    """Real images in float64."""

    def of_class(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        return super().of_class(label, n, rng).double()

    def batch(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(n, rng)
        return images.double(), labels


def make_setting(*, batch_norm: bool = False, **changes: Any) -> Setting:
    """Three classes of six grey 8x8 images, in float64; a ConvNet-2-4, or a net with batch norm."""
    rng = torch.Generator().manual_seed(1)
    domain = make_domain(shape=(1, SIZE, SIZE), classes=CLASSES, mean=(0.4,), std=(0.3,))
    x = torch.randint(256, (CLASSES * EACH, 1, SIZE, SIZE), generator=rng, dtype=torch.uint8)

    def new_network() -> nn.Module:
        inner: nn.Module = ConvNet(shape=domain.shape, classes=CLASSES, depth=2, width=4)
        if batch_norm:
            inner = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
            )
        return Normalised(inner, domain.mean, domain.std).double()

    values: dict[str, Any] = {
        "real": Doubles(x, torch.arange(CLASSES).repeat_interleave(EACH), CLASSES),
        "domain": domain,
        "new_network": new_network,
        "arch": "convnet2",
        "augmentation": None,
        "rng": torch.Generator().manual_seed(3),
        "device": torch.device("cpu"),
        "clock": Clock(steps=4),
    }
    return Setting(**{**values, **changes})


def make_synthetic(factor: int = 1) -> Synthetic:
    rng = torch.Generator().manual_seed(2)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    return Synthetic(torch.rand(6, 1, SIZE, SIZE, generator=rng, dtype=torch.float64), labels, factor=factor)


def published_net(tag: str) -> nn.Module:
    shape, classes = ((1, 28, 28), 2) if tag == "dc" else ((3, 16, 16), 4)
    places = {"conv0": "features.0", "gn0": "features.1", "conv1": "features.4", "gn1": "features.5"}
    places["linear"] = "classifier"
    state = {
        f"{place}.{name}": torch.from_numpy(LOSSES[f"{tag}.{layer}.{name}"])
        for layer, place in places.items()
        for name in ("weight", "bias")
    }
    network = ConvNet(shape=shape, classes=classes, depth=2, width=8).double()
    network.load_state_dict(state)
    return Normalised(network, [0.0] * shape[0], [1.0] * shape[0])


def next_network(setting: Setting) -> nn.Module:
    """The network that will be made next, without moving the global generator."""
    state = torch.get_rng_state()
    network = setting.new_network()
    torch.set_rng_state(state)
    return network


# Against published code


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_dcs_distance_and_image_gradient_are_the_releases(metric: str) -> None:
    network, real = published_net("dc"), torch.from_numpy(MORE["dc.in_real"])
    images = torch.from_numpy(LOSSES["dc.in_syn"]).requires_grad_()
    targets = class_gradients(network, list(real), [0, 1], metric)
    gradients = class_gradients(network, torch.split(images, 2), [0, 1], metric, create_graph=True)
    value = sum((losses.gradient_distance(a, b, metric) for a, b in zip(targets, gradients, strict=True)))
    assert isinstance(value, Tensor)
    torch.testing.assert_close(value.detach(), torch.from_numpy(LOSSES[f"dc.out_loss_{metric}"]), rtol=1e-8, atol=0)
    (gradient,) = torch.autograd.grad(value, images)
    wanted = torch.from_numpy((LOSSES if metric == "ours" else MORE)[f"dc.grad_images_{metric}"])
    torch.testing.assert_close(gradient[:1], wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_idcs_distance_and_image_gradient_are_the_releases(distance: str) -> None:
    network, real, label = (
        published_net("idc"),
        torch.from_numpy(MORE["idc.in_real"]),
        int(MORE["idc.in_label_real"][0]),
    )
    images = torch.from_numpy(LOSSES["idc.in_syn"]).requires_grad_()
    (targets,) = class_gradients(network, [real], [label], f"idc_{distance}")
    (gradients,) = class_gradients(network, [images], [label], f"idc_{distance}", create_graph=True)
    value = losses.gradient_distance(targets, gradients, f"idc_{distance}")
    torch.testing.assert_close(value.detach(), torch.from_numpy(LOSSES[f"idc.out_{distance}"]), **CLOSE)
    (gradient,) = torch.autograd.grad(value, images)
    wanted = torch.from_numpy((LOSSES if distance == "mse" else MORE)[f"idc.grad_images_{distance}"])
    torch.testing.assert_close(gradient[:1], wanted, **CLOSE)


# The quick way equals the usual one


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (4, 8, 8), (1, 18, 18)])  # folded, folded, not, odd maps
@pytest.mark.parametrize("metric", ["ours", "idc_mse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_gradients_equal_the_usual_loop(shape: tuple[int, int, int], metric: str, dtype: torch.dtype) -> None:
    inner = ConvNet(shape=shape, classes=5, depth=2, width=6)
    network = Normalised(inner, [0.4] * shape[0], [0.3] * shape[0]).to(dtype)
    for parameter in network.parameters():  # norms' scales and shifts are no longer 1 and 0
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    classes, counts = [0, 1, 3, 4], [1, 9, 11, 2]  # three groups on a CPU
    images = torch.rand(sum(counts), *shape, dtype=dtype, requires_grad=True)
    real = list(torch.rand(4, 60, *shape, dtype=dtype))
    found: list[list[Tensor]] = []
    for gradients_of in (class_gradients, class_by_class):
        targets = gradients_of(network, real, classes, metric)
        made = gradients_of(network, torch.split(images, counts), classes, metric, create_graph=True)
        pairs = zip(targets, made, strict=True)
        value = torch.stack([losses.gradient_distance(a, b, metric) for a, b in pairs]).sum()
        (image_gradient,) = torch.autograd.grad(value, images)
        flat = [g.detach().flatten() for gradients in (*targets, *made) for g in gradients]
        found.append([value.detach(), image_gradient, torch.cat(flat)])
    for quick, usual in zip(*found, strict=True):
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(quick, usual, rtol=0, atol=tolerance * float(usual.abs().max()))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_bfloat16_gradients_are_as_near_as_those_of_the_usual_loop() -> None:
    network = Normalised(ConvNet(shape=(1, 16, 16), classes=2, depth=2, width=16), (0.4,), (0.3,))
    batches = list(torch.rand(2, 5, 1, 16, 16))
    exact = torch.cat([g.flatten() for gs in class_by_class(network, batches, [0, 1], "ours") for g in gs])

    def error(gradients_of: Any, create_graph: bool) -> float:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            found = gradients_of(network, batches, [0, 1], "ours", create_graph=create_graph)
        return float(
            (torch.cat([g.detach().flatten().float() for gs in found for g in gs]) - exact).norm() / exact.norm()
        )

    usual = error(class_by_class, False)
    assert usual < 0.03
    assert error(class_gradients, False) < max(1.5 * usual, 0.01)
    assert error(class_gradients, True) < max(1.5 * usual, 0.01)


def test_second_derivatives_of_the_blocks() -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    scale, shift = torch.rand(3, dtype=torch.float64) + 0.5, torch.randn(3, dtype=torch.float64)

    def block(x: Tensor) -> Tensor:
        return norm_relu_pool(x, scale, shift, 1e-2)  # an eps that would show where it is forgotten

    def convolution(x: Tensor) -> Tensor:
        return constant_conv(x, kernel, (1, 1))

    plain = F.avg_pool2d(F.group_norm(maps, 3, scale, shift, 1e-2).relu(), 2)
    torch.testing.assert_close(block(maps), plain, **CLOSE)
    for function in (block, convolution):
        assert torch.autograd.gradcheck(function, (maps,))
        assert torch.autograd.gradgradcheck(function, (maps,))


def test_second_derivatives_of_the_first_block() -> None:
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, 3, 1, 3, 3, dtype=torch.float64, requires_grad=True)  # one an image
    scale, shift = torch.rand(3, dtype=torch.float64) + 0.5, torch.randn(3, dtype=torch.float64)

    def block(images: Tensor, kernels: Tensor) -> Tensor:
        return first_block(kernels, scale, shift, images, 1, 1e-2, torch.float64)

    maps = torch.cat([F.conv2d(image[None], kernel, padding=1) for image, kernel in zip(images, kernels, strict=True)])
    plain = F.avg_pool2d(F.group_norm(maps, 3, scale, shift, 1e-2).relu(), 2)
    torch.testing.assert_close(block(images, kernels), plain, **CLOSE)
    assert torch.autograd.gradcheck(block, (images, kernels))
    assert torch.autograd.gradgradcheck(block, (images, kernels))


@pytest.mark.parametrize("soft", [False, True])
def test_a_training_step_is_torchs(soft: bool) -> None:
    setting = make_setting()
    network, twin = next_network(setting), next_network(setting)
    images = torch.rand(70, 1, SIZE, SIZE, dtype=torch.float64)
    targets = torch.randn(70, CLASSES, dtype=torch.float64) if soft else torch.arange(70) % CLASSES
    train_step(network, torch.optim.SGD(network.parameters(), 0.1), images, targets)
    wanted = targets.softmax(1) if soft else targets
    torch.autograd.backward(F.cross_entropy(twin(images), wanted))
    torch.optim.SGD(twin.parameters(), 0.1).step()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# The objectives


@pytest.mark.parametrize("name", ["dc", "dsa", "idc"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_objective_equals_a_plain_loop_over_classes(name: str, batch_norm: bool) -> None:
    strategy = "color_crop_cutout_flip_scale_rotate" if name != "dc" else "none"
    augmentation = parse_augmentation(strategy, mean=(0.4,), std=(0.3,)) if name != "dc" else None
    factor = 2 if name == "idc" else 1
    setting, twin = (make_setting(batch_norm=batch_norm, augmentation=augmentation) for _ in range(2))
    synthetic, network = make_synthetic(factor), next_network(setting)
    if batch_norm:
        settle_norms(network, torch.cat([twin.real.of_class(label, 16, twin.rng) for label in range(CLASSES)]))
    metric, weights = ("idc_l1", 0.02 * 2 / 10) if name == "idc" else ("ours", 1.0)
    value = torch.zeros((), dtype=torch.float64)
    for label in range(CLASSES):
        images = decode(synthetic.images[synthetic.labels == label], factor)
        real, made = twin.augment_alike(twin.real.of_class(label, 4, twin.rng), images)
        gradients = []
        for batch in (real, made):
            loss = F.cross_entropy(network(batch), torch.full((len(batch),), label))
            gradients.append(torch.autograd.grad(loss, list(network.parameters()), create_graph=True))
        theirs = [g.detach() for g in gradients[0]]
        value = value + weights * losses.gradient_distance(theirs, gradients[1], metric)
    (wanted,) = torch.autograd.grad(value, synthetic.images)
    methods: dict[str, Any] = {"dc": DC, "dsa": DSA, "idc": IDC}
    method = methods[name]
    objective = method(setting, method.Config(real_batch=4))
    (term,) = objective.terms(synthetic).values()
    torch.testing.assert_close(term, value, **CLOSE)
    (gradient,) = torch.autograd.grad(term, synthetic.images)
    torch.testing.assert_close(gradient, wanted, **CLOSE)
    if strategy == "none":  # what is cut out has no gradient
        assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


def test_idc_matches_so_many_small_images_of_a_class_and_step() -> None:
    setting, synthetic = make_setting(), make_synthetic(factor=2)
    (term,) = IDC(setting, IDCConfig(real_batch=4, synthetic_batch=3)).terms(synthetic).values()
    (gradient,) = torch.autograd.grad(term, synthetic.images)
    patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0]  # (6, 2, 2, 4, 4)
    used = patches.abs().sum((3, 4)) > 0
    assert [int(used[synthetic.labels == label].sum()) for label in range(CLASSES)] == [3] * CLASSES


def test_dcs_gradient_is_that_of_finite_differences() -> None:
    synthetic, step = make_synthetic(), 1e-6

    def value() -> Tensor:
        torch.manual_seed(5)
        (term,) = DC(make_setting(), GradientOptions(real_batch=4)).terms(synthetic).values()
        return term

    (gradient,) = torch.autograd.grad(value(), synthetic.images)
    direction = torch.randn_like(synthetic.images)
    values = []
    for sign in (1, -1):
        synthetic.images.data.add_(sign * step * direction)
        values.append(float(value().detach()))
        synthetic.images.data.sub_(sign * step * direction)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def steps(objective: Any, synthetic: Synthetic, trainer: ImageTrainer, first: int, last: int) -> None:
    for step in range(first, last):
        if step:
            objective.advance(synthetic)
        trainer.step(objective.terms(synthetic), 0.0)


def make_trainer(method: Any, synthetic: Synthetic, **changes: Any) -> ImageTrainer:
    options = {**DEFAULTS, **method.LOOP, "factor": 1, "init": "real", **changes}
    return ImageTrainer(synthetic, CondenseConfig(**options))


WITH_AND_WITHOUT: list[tuple[Any, Any]] = [(DC, GradientOptions), (DSA, GradientOptions)]


def test_dsa_without_augmentation_is_dc() -> None:
    results = []
    for make, config in WITH_AND_WITHOUT:
        torch.manual_seed(4)
        synthetic = make_synthetic()
        steps(make(make_setting(), config(outer=3, inner=2)), synthetic, make_trainer(make, synthetic), 0, 5)
        results.append(synthetic.images.detach())
    assert torch.equal(*results)
    assert not torch.equal(results[0], make_synthetic().images.detach())


def test_dsa_augments_where_dc_trains_networks_on_the_images_as_they_are() -> None:
    weights = []
    for make, config in WITH_AND_WITHOUT:
        torch.manual_seed(4)
        setting, synthetic = make_setting(), make_synthetic()
        objective = make(setting, config(inner=1))
        objective.terms(synthetic)
        setting.augmentation = parse_augmentation("color", mean=(0.4,), std=(0.3,))
        objective.advance(synthetic)
        weights.append(torch.cat([p.detach().flatten() for p in objective.learner.take().parameters()]))
    assert float((weights[0] - weights[1]).norm()) > 1e-6


@pytest.mark.parametrize("name", ["dc", "dsa", "idc"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_five_steps_are_two_and_three(name: str, batch_norm: bool) -> None:
    augmentation = parse_augmentation("color_crop", mean=(0.4,), std=(0.3,))
    method, config = {
        "dc": (DC, GradientOptions(outer=3, inner=2)),
        "dsa": (DSA, GradientOptions(outer=3, inner=2)),
        "idc": (IDC, IDCConfig(train_steps=1)),
    }[name]

    def begin() -> tuple[Setting, Synthetic, Any, ImageTrainer]:
        torch.manual_seed(4)
        setting = make_setting(
            batch_norm=batch_norm, augmentation=augmentation, nets="trained", net_pool=1, net_steps=2
        )
        synthetic = make_synthetic()
        return setting, synthetic, method(setting, config), make_trainer(method, synthetic)

    _, whole, objective, trainer = begin()
    steps(objective, whole, trainer, 0, 5)
    setting, part, objective, trainer = begin()
    steps(objective, part, trainer, 0, 2)
    saved = objective.state_dict(), trainer.state_dict(), setting.rng.get_state(), torch.get_rng_state()
    setting, part, objective, trainer = begin()
    objective.load_state_dict(saved[0])
    trainer.load_state_dict(saved[1])
    setting.rng.set_state(saved[2])
    torch.set_rng_state(saved[3])
    steps(objective, part, trainer, 2, 5)
    assert torch.equal(part.images, whole.images)


def test_networks_learn_from_the_set_by_plain_descent_on_its_labels() -> None:
    setting, images = make_setting(), make_synthetic().images.detach()
    logits = torch.randn(6, CLASSES, dtype=torch.float64)
    synthetic = Synthetic(images, torch.tensor([0, 0, 1, 2, 2, 2]), label_logits=logits)
    twin = next_network(setting)
    objective = DC(setting, GradientOptions(real_batch=4, outer=2, inner=2, net_lr=0.3))
    objective.terms(synthetic)
    objective.advance(synthetic)
    for _ in range(2):
        loss = -(logits.softmax(1) * twin(images).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            torch._foreach_add_(list(twin.parameters()), gradients, alpha=-0.3)
    for name, tensor in objective.state_dict()["network"].items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-7, atol=1e-9)


def test_a_network_serves_outer_matches() -> None:
    torch.manual_seed(4)
    synthetic, objective = make_synthetic(), DC(make_setting(), GradientOptions(outer=2, inner=1))
    served = []
    for step in range(4):
        if step:
            objective.advance(synthetic)
        objective.terms(synthetic)
        served.append(objective.learner.network)
    assert served[0] is served[1]
    assert served[2] is served[3]
    assert served[1] is not served[2]


def test_loops_are_the_published_ones() -> None:
    published = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {images: loops(images, GradientOptions()) for images in published} == published
    assert loops(5, GradientOptions()) == (5, 100)
    assert loops(1000, GradientOptions()) == (1000, 1)
    assert loops(10, GradientOptions(outer=2, inner=3)) == (2, 3)


def test_settled_norms_have_the_images_statistics_and_let_no_image_see_another() -> None:
    network = next_network(make_setting(batch_norm=True)).train()
    images = torch.rand(8, 1, SIZE, SIZE, dtype=torch.float64)
    settle_norms(network, images)
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.momentum == 0.1
    assert norm.running_mean is not None
    assert isinstance(network, Normalised)
    assert isinstance(network.network, nn.Sequential)
    maps = network.network[0]((images - 0.4) / 0.3)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network(images)[:2], network(images[:2]), **CLOSE)


@pytest.mark.parametrize("name", ["dc", "idc"])
def test_processes_terms_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = []
    for size in (1, 2, 4):  # four processes share out three classes
        total = torch.zeros((), dtype=torch.float64)
        for rank in range(size):
            monkeypatch.setattr(parallel, "world_size", lambda size=size: size)
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            torch.manual_seed(4)
            setting, synthetic = make_setting(augmentation=parse_augmentation("color_crop")), make_synthetic()
            dc = name == "dc"
            objective: Any = DC(setting, GradientOptions()) if dc else IDC(setting, IDCConfig(synthetic_batch=2))
            (term,) = objective.terms(synthetic).values()
            term.backward()
            total += term.detach()
        values.append(total)
    torch.testing.assert_close(values[1], values[0], **CLOSE)
    torch.testing.assert_close(values[2], values[0], **CLOSE)


def test_networks_without_convolutions_are_refused() -> None:
    """Theirs are the gradients that IDC matches."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES))

    def new_network() -> nn.Module:
        return Normalised(network, (0.4,), (0.3,)).double()

    objective = IDC(make_setting(new_network=new_network), IDCConfig())
    with pytest.raises(ValueError, match="Sequential has no convolutions whose gradients to match: take a"):
        objective.terms(make_synthetic())


def test_distances_are_chosen_by_the_images() -> None:
    assert IDC(make_setting(), IDCConfig()).distance == "l1"
    assert IDC(make_setting(), IDCConfig(distance="mse")).distance == "mse"
    colour = make_domain(shape=(3, 32, 32), classes=CLASSES, mean=(0.4,) * 3, std=(0.3,) * 3)
    assert IDC(make_setting(domain=colour), IDCConfig()).distance == "mse"
    large = make_domain(shape=(3, 128, 128), classes=CLASSES, mean=(0.4,) * 3, std=(0.3,) * 3)
    assert IDC(make_setting(domain=large), IDCConfig()).distance == "l1"


def test_distances_weights_stand_for_the_releases_rates() -> None:
    """Rates for 10 images a class, over the one of squares, which is our --image-lr."""
    assert IDC.LOOP["image_lr"] == pytest.approx(5e-3)
    for distance, shape, classes, rate in [
        ("mse", (3, 32, 32), 10, 5e-3),
        ("l1", (1, 28, 28), 10, 1e-4),
        ("l1", (3, 224, 224), 10, 3e-3),
        ("l1", (3, 224, 224), 100, 1e-3),
        ("l1", (3, 128, 128), 10, 3e-3 * (128 / 224) ** 2),
        ("mse", (3, 224, 224), 10, 5e-3),
    ]:
        assert 5e-3 * weight(distance, shape, classes) == pytest.approx(rate, rel=1e-12)
    # The term has that weight: the same images, said to be of another size.
    values = []
    for side in (8, 128):
        domain = make_domain(shape=(1, side, side), classes=CLASSES, mean=(0.4,), std=(0.3,))
        torch.manual_seed(1)
        objective = IDC(make_setting(domain=domain), IDCConfig())
        values.append(float(objective.terms(make_synthetic())["match"].detach()))
    assert values[1] / values[0] == pytest.approx(0.6 * (128 / 224) ** 2 / 0.02)


# IDC's training of networks


def test_mixed_labels_have_the_shares_of_the_pixels() -> None:
    """Images that are their labels: a one where the channel is the class. What is mixed of both is equal."""
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    images = F.one_hot(labels, 3).double()[:, :, None, None].repeat(1, 1, 7, 9).requires_grad_()
    rng, shares = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        mixed, targets = cut_and_mixed(images, labels, 3, rng)
        torch.testing.assert_close(mixed.mean((2, 3)), targets, **CLOSE)
        torch.testing.assert_close(targets.sum(1), torch.ones(6).double(), **CLOSE)
        shares.add(round(float(targets.detach().amax(1).min()), 3))
        (slope,) = torch.autograd.grad(mixed.sum(), images)
        assert slope.sum() == images.numel(), "each pixel that is shown has a gradient, wherever it comes from"
    assert len(shares) > 10, "the box differs from batch to batch"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_networks_are_trained_as_the_release_does(share: float) -> None:
    """CutMix after the augmentation, with that probability; the loss is the shares' sum of the two labels' losses.

    Where there is CutMix, there is no cutout. Without it the draws are those of a training that never heard of it.
    """
    augmentation = parse_augmentation("color_crop_cutout", mode="all", mean=(0.4,), std=(0.3,))
    changes: dict[str, Any] = {"augmentation": augmentation, "nets": "trained", "net_pool": 1, "net_steps": 9}
    setting, twin = make_setting(**changes), make_setting(**changes)
    network = next_network(setting)
    objective = IDC(setting, IDCConfig(train_steps=6, cutmix=share))
    objective.networks.batch_size = 5
    objective.networks.take()
    objective.networks.advance()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=5e-4)
    if share:
        twin.augmentation = parse_augmentation("color_crop", mode="all", mean=(0.4,), std=(0.3,))
    mixed = 0
    for _ in range(6):
        images, labels = twin.real.batch(5, twin.rng)
        images = twin.augment_each(images)
        if share and float(torch.rand((), generator=twin.rng)) < share:
            mixed += 1
            images, order, own = cutmix(images, twin.rng)
            logits = network(images)
            loss = own * F.cross_entropy(logits, labels) + (1 - own) * F.cross_entropy(logits, labels[order])
        else:
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert (mixed == 0, mixed == 6) == (share == 0.0, share == 1.0)
    torch.randint(1, (1,), generator=twin.rng)  # the next of the pool
    assert torch.equal(setting.rng.get_state(), twin.rng.get_state())
    for a, b in zip(objective.networks.pool[0].parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_a_probability_of_mixing_is_one() -> None:
    for impossible in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"--cutmix is .*: give a number from 0 to 1"):
            IDCConfig(cutmix=impossible)


# On digits


def accuracy(images: Tensor, labels: Tensor, data: Data, make: Any) -> float:
    """On the test split, of a network that is trained on the images."""
    torch.manual_seed(1)
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9)
    for _ in range(60):
        train_step(network, optimizer, images, labels)
    assert data.y_test is not None
    assert data.x_test is not None
    with torch.no_grad():
        return float((network(data.x_test / 255).argmax(1) == data.y_test).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "config", "image_lr"),
    # a short run
    [(DC, GradientOptions(), 0.01), (DSA, GradientOptions(), 0.01), (IDC, IDCConfig(train_steps=1), 0.05)],
)
def test_condensed_digits_beat_the_real_ones_they_began_as(method: Any, config: Any, image_lr: float) -> None:
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
        clock=Clock(steps=100),
        nets=options["nets"],
        net_pool=options["net_pool"],
        net_steps=100,
    )
    labels = torch.arange(10)
    images = torch.cat([setting.real.of_class(label, 1, setting.rng) for label in range(10)])
    synthetic = Synthetic(images, labels)
    steps(method(setting, config), synthetic, make_trainer(method, synthetic, image_lr=image_lr), 0, 100)
    before, after = (accuracy(x, labels, data, make) for x in (images, synthetic.images.detach()))
    assert after > before + 0.03
