"""Trajectory matching: against published code, plain unrolled autograd, finite differences, and its own special cases.

The vectors are those of tests/losses (see the README there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.condensation.unrolling import Batch, attach, flat, pieces, unroll, write
from datafree.data.augmentation import apply, draw, parse_augmentation

PARITY = np.load(Path(__file__).parents[1] / "losses" / "condensation.npz", allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
NAMES = ["conv0.weight", "conv0.bias", "gn0.weight", "gn0.bias", "linear.weight", "linear.bias"]


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def published_net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3)).double()


def expert(place: str) -> Tensor:
    return flat([held(f"mtt.{place}.{name}") for name in NAMES])


def picks(rows: list[Tensor]) -> list[Batch]:
    def pick(index: Tensor) -> Batch:
        return lambda images, labels: (images[index], labels[index])

    return [pick(index) for index in rows]


def published(labels: Tensor, *, exact: bool) -> Any:
    return unroll(
        published_net(),
        expert("start"),
        expert("target"),
        held("mtt.in_syn"),
        labels,
        held("mtt.par_lr"),
        picks(list(held("mtt.in_batch_index"))),
        exact=exact,
    )


def test_exact_gradient_equals_published_code() -> None:
    found = published(held("mtt.in_labels"), exact=True)
    torch.testing.assert_close(found.value, held("mtt.out_loss"), **CLOSE)
    torch.testing.assert_close(found.images[:1], held("mtt.grad_images"), **CLOSE)
    torch.testing.assert_close(found.rate, held("mtt.grad_lr"), **CLOSE)


def test_teslas_gradient_equals_its_formula_which_its_code_halves() -> None:
    found = published(held("mtt.in_labels"), exact=False)
    torch.testing.assert_close(found.value, held("tesla.out_loss"), **CLOSE)
    torch.testing.assert_close(found.images[:1], held("tesla.grad_images_formula"), **CLOSE)
    torch.testing.assert_close(found.images[:1] / 2, held("tesla.grad_images_reference"), **CLOSE)
    torch.testing.assert_close(found.rate, held("tesla.grad_lr_reference"), **CLOSE)


def test_learned_labels_equal_published_code() -> None:
    found = published(held("datm.in_syn_label_logits"), exact=True)
    torch.testing.assert_close(found.value, held("datm.out_traj_loss"), **CLOSE)
    torch.testing.assert_close(found.images[:1], held("datm.grad_traj_images"), **CLOSE)
    torch.testing.assert_close(found.labels, held("datm.grad_traj_label_logits"), **CLOSE)
    torch.testing.assert_close(found.rate, held("datm.grad_traj_lr"), **CLOSE)


# A problem of its own: two blocks, five steps, augmented batches, soft labels.

AUGMENTATION = parse_augmentation("color_crop_cutout_flip_scale_rotate", mode="all")


def small_net() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def problem(steps: int = 5) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor, list[Batch]]:
    rng = torch.Generator().manual_seed(1)
    network = small_net()
    start = flat([p.detach() for p in network.parameters()])
    target = start + 0.1 * torch.randn(len(start), generator=rng, dtype=torch.float64)
    images = torch.rand(6, 1, 8, 8, generator=rng, dtype=torch.float64)
    labels = torch.randn(6, 3, generator=rng, dtype=torch.float64)

    def batch(rows: Tensor) -> Batch:
        drawn = draw(AUGMENTATION, len(rows), rng)
        return lambda images, labels: (apply(images[rows], drawn, AUGMENTATION), labels[rows])

    batches = [batch(torch.randperm(6, generator=rng)[:4]) for _ in range(steps)]
    return network, start, target, images, labels, torch.tensor(0.7, dtype=torch.float64), batches


def plainly(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    rate: Tensor,
    batches: list[Batch],
) -> Tensor:
    """The loss with one graph through all steps."""
    names, like = [n for n, _ in network.named_parameters()], list(network.parameters())
    here = start.clone().requires_grad_()
    for batch in batches:
        seen, wanted = batch(images, labels)
        logits = torch.func.functional_call(network, dict(zip(names, pieces(here, like), strict=True)), (seen,))
        loss = F.cross_entropy(logits, wanted.softmax(1))
        here = here - rate * torch.autograd.grad(loss, here, create_graph=True)[0]
    return (here - target).square().sum() / (start - target).square().sum()


def test_exact_gradient_equals_a_graph_through_all_steps() -> None:
    network, start, target, images, labels, rate, batches = problem()
    leaves = [t.clone().requires_grad_() for t in (images, labels, rate)]
    loss = plainly(network, start, target, leaves[0], leaves[1], leaves[2], batches)
    wanted = torch.autograd.grad(loss, leaves)
    found = unroll(network, start, target, images, labels, rate, batches)
    for mine, theirs in zip(found, (loss.detach(), *wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert bool((found.images.flatten(1).abs().amax(1) > 0).all())
    # TESLA leaves something out here.
    assert not torch.allclose(unroll(network, start, target, images, labels, rate, batches, exact=False)[1], found[1])


def test_exact_gradient_equals_finite_differences() -> None:
    network, start, target, images, labels, rate, batches = problem()
    found, h, rng = (
        unroll(network, start, target, images, labels, rate, batches),
        1e-6,
        torch.Generator().manual_seed(2),
    )
    for place, tensor in enumerate((images, labels, rate)):
        way = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [images, labels, rate]
            moved[place] = tensor + sign * h * way
            ends.append(unroll(network, start, target, moved[0], moved[1], moved[2], batches).value)
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), (found[place + 1] * way).sum(), rtol=1e-6, atol=1e-9)


def test_teslas_gradient_is_exact_for_one_step_and_is_the_published_vector() -> None:
    network, start, target, images, labels, rate, batches = problem(1)
    exact = unroll(network, start, target, images, labels, rate, batches)
    tesla = unroll(network, start, target, images, labels, rate, batches, exact=False)
    for mine, theirs in zip(tesla, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    leaf = images.clone().requires_grad_()
    write(list(network.parameters()), start)
    seen, wanted = batches[0](leaf, labels)
    loss = F.cross_entropy(network(seen), wanted.softmax(1))
    step = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    vector = losses.tesla_image_gradient_vector(start, target, flat([g.detach() for g in step]), rate)
    (wanted_gradient,) = torch.autograd.grad((flat(step) * vector).sum(), leaf)
    torch.testing.assert_close(tesla.images, wanted_gradient, rtol=1e-9, atol=1e-12)


def test_memory_does_not_hold_the_steps_graphs() -> None:
    """Tensors alive on the way back: those of one step, however many there are."""

    def most(steps: int) -> int:
        network, start, target, images, labels, rate, batches = problem(steps)
        kept: list[int] = [0]

        def watched(batch: Batch) -> Batch:
            def make(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
                seen, wanted = batch(images, labels)
                if seen.requires_grad:
                    kept[0] += 1
                    seen.register_hook(lambda _: kept.__setitem__(0, kept[0] - 1))  # type: ignore[no-untyped-call]
                    alive.append(kept[0])
                return seen, wanted

            return make

        alive: list[int] = []
        unroll(network, start, target, images, labels, rate, [watched(b) for b in batches])
        return max(alive)

    assert most(2) == most(8) == 1


def test_attached_gradients_go_through_what_made_the_tensors() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = torch.tensor(3.0, requires_grad=True)
    term = attach(torch.tensor(5.0), (2 * x, torch.tensor([1.0, -1.0])), (y.exp(), torch.tensor(0.5)))
    assert float(term.detach()) == 5.0
    (3 * term).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([6.0, -6.0]))
    torch.testing.assert_close(y.grad, 1.5 * y.detach().exp())
