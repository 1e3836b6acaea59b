"""The pretended GPU itself: what it refuses, what it lets through, and that it computes what a CPU does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda here, there: here + there,
    "in place": lambda here, there: there.add_(here),
    "on the CPU, in place": lambda here, there: here[0, 0].add_(there[0, 0]),
    "one value there": lambda here, there: here * there[0, 0],
    "product": lambda here, there: here @ there,
    "number in a product": lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
    "concatenation": lambda here, there: torch.cat([here, there]),
    "layer": lambda here, there: F.linear(there, here),
    "choice": lambda here, there: torch.where(here > 0, there, there),
    "index_select": lambda here, there: there.index_select(0, torch.tensor([0])),
    "gather": lambda here, there: there.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    "indices there, values here": lambda here, there: here[there.argmax(0)],
    "values here": lambda here, there: there.index_put_((torch.tensor([0]),), here[0]),
    "mask": lambda here, there: there.masked_fill(here > 0, 0.0),
    "equal": lambda here, there: torch.equal(here, there),
    "loss": lambda here, there: F.cross_entropy(there, torch.tensor([0, 1, 2])),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "number": lambda here, there: there * here[0, 0],
    "number first": lambda here, there: here[0, 0] - there,
    "choice": lambda here, there: torch.where(there > 0, there, here[0, 0]),
    "rows": lambda here, there: there[torch.tensor([2, 0])],
    "list": lambda here, there: there[[2, 0], :, None],
    "no rows": lambda here, there: there[[]],
    "mask": lambda here, there: there[torch.tensor([True, False, True])],
    "put": lambda here, there: there.clone().index_put_((torch.tensor([1]),), here[0, 0]),
    "fill": lambda here, there: there.masked_fill(there > 0, here[0, 0]),
    "copy": lambda here, there: there.clone().copy_(here),
    "to": lambda here, there: there + here.to(there),
}


def test_it_says_cuda(gpu: torch.device) -> None:
    made = torch.zeros(2, device="cuda")
    assert made.is_cuda
    assert made.device == torch.zeros(2, device=gpu).device == torch.tensor([1.0], device="cuda").device == gpu
    assert made.new_ones(3).device == torch.zeros_like(made).device == made.long().device == gpu
    assert made.new_tensor([1.0]).device == gpu
    assert made.to("cuda") is made
    assert torch.tensor([1]).device == torch.as_tensor([1], device="cpu").device == torch.device("cpu")
    assert torch.as_tensor(made).device == gpu
    assert made.cpu().device == torch.zeros_like(made, device="cpu").device == torch.zeros(2).device
    with pytest.raises(TypeError, match="numpy"):
        made.numpy()
    assert made.cpu().numpy().tolist() == made.tolist() == [0.0, 0.0]
    assert float(made.sum()) == made[0].item() == 0.0
    assert not made.any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses(name: str, gpu: torch.device) -> None:
    here = torch.ones(3, 3)
    with pytest.raises(RuntimeError, match=r"same device|expected device cuda:0 but got device cpu"):
        REFUSED[name](here, here.to(gpu))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_allows(name: str, gpu: torch.device) -> None:
    here = torch.arange(-4.0, 5.0).view(3, 3)
    found = ALLOWED[name](here, here.to(gpu))
    assert found.device == gpu
    assert torch.equal(found.cpu(), ALLOWED[name](here, here))


def test_a_generator_draws_on_its_own_device_alone(gpu: torch.device, pretended: None) -> None:
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator(gpu).manual_seed(3)
    assert theirs.device == gpu
    drawn = torch.randn(4, generator=theirs, device=gpu)
    assert torch.equal(drawn.cpu(), torch.randn(4, generator=ours))
    draws: list[Callable[[], object]] = [
        lambda: torch.rand(2, generator=ours, device=gpu),
        lambda: torch.randperm(2, generator=theirs),
        lambda: drawn.normal_(generator=ours),
        lambda: torch.bernoulli(drawn.sigmoid(), generator=ours),
        lambda: torch.multinomial(torch.ones(3), 1, generator=theirs),
        lambda: torch.empty(2).uniform_(generator=theirs),
    ]
    for draw in draws:
        with pytest.raises(RuntimeError, match="device type for generator"):
            draw()


def test_the_gpu_has_random_numbers_of_its_own(gpu: torch.device) -> None:
    torch.manual_seed(1)
    first = torch.rand(2, device=gpu)
    here = torch.get_rng_state()
    with torch.random.fork_rng(devices=[gpu]):
        within = F.dropout(torch.ones(99, device=gpu))
    assert torch.equal(torch.get_rng_state(), here)
    assert torch.equal(F.dropout(torch.ones(99, device=gpu)), within)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2, device=gpu), first)


def test_whole_numbers_are_not_multiplied(gpu: torch.device) -> None:
    whole = torch.ones(2, 2, dtype=torch.long, device=gpu)
    with pytest.raises(RuntimeError, match="not implemented"):
        whole @ whole


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def trained(device: torch.device, precision: torch.dtype) -> list[Tensor]:
    net = network()
    held = list(net.parameters())
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True)), "as on a GPU, they are moved in place"
    optimizer = torch.optim.Adam(held, lr=0.01)
    x = torch.rand(4, 3, 8, 8).to(device).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            out = net(x)
        assert out.dtype == precision
        out.float().square().mean().backward()
        optimizer.step()
    first = torch.autograd.grad(net(x).square().sum(), held, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), held)  # type: ignore[arg-type]
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    out = torch.func.functional_call(net, weights, (x,))

    def loss(row: Tensor, image: Tensor) -> Tensor:
        return (image.flatten()[: len(row)] @ row).square()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights["4.weight"][0], x)
    copied = copy.deepcopy(net)
    assert next(copied.parameters()).device == x.device
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    read = torch.load(file, map_location="cpu", weights_only=True)
    net.load_state_dict(read)
    found = [*held, *first, *second, out, each, *read.values(), *net.buffers()]
    return [x.detach().cpu() for x in found]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_is_as_on_the_cpu(precision: torch.dtype, gpu: torch.device, pretended: None) -> None:
    for one, two in zip(trained(gpu, precision), trained(torch.device("cpu"), precision), strict=True):
        torch.testing.assert_close(one, two)
