"""Which architecture does a state dict belong to? Names and shapes only: networks are built without memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datafree.models import ALIASES, FAMILIES, MODELS
from datafree.models.build import SIDE_BRANCHES, make_network
from datafree.models.naming import Shapes, best_naming, shapes_of

# Image sides to try where a network's tensors depend on the size: the usual data sets', most frequent first.
SIDES: tuple[int, ...] = (32, 28, 8, 16, 64, 96, 128, 224)
USUALLY_28_IF_GREY = ("lenet5", "mlp", "convnet")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Keys in which a state dict and a network disagree. ``share``: agreeing tensors of all names of both, 0 to 1."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    share: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a state dict fits an architecture at an image shape (C, H, W).

    ``first``, ``last``: the file's names of the weights that channels and classes were read off. ``naming``: what the
    user is told of the renaming, "" where there was none. ``keys``: name in the file -> name in the network.
    """

    arch: str
    shape: tuple[int, int, int]
    classes: int
    first: str
    last: str
    naming: str
    keys: dict[str, str]
    difference: Difference

    @property
    def fits(self) -> bool:
        return self.difference.share == 1


def compare(found: Shapes, expected: Shapes) -> Difference:
    """Names and shapes of a state dict against those of a network."""
    common = [key for key in expected if key in found]
    misshapen = [f"{key} {found[key]} instead of {expected[key]}" for key in common if found[key] != expected[key]]
    unexpected = tuple(key for key in found if key not in expected)
    return Difference(
        missing=tuple(key for key in expected if key not in found),
        unexpected=unexpected,
        misshapen=tuple(misshapen),
        share=(len(common) - len(misshapen)) / max(len(expected) + len(unexpected), 1),
    )


def ends(network: nn.Module) -> tuple[str, str]:
    """Names of the weights of the first and the last convolution or linear layer, in order of definition."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return (f"{names[0]}.weight", f"{names[-1]}.weight") if names else ("", "")


class Unfilled(TorchFunctionMode):
    """Leaves out the random numbers of initialisation, which are nothing on the device "meta".

    Drawing them there takes the whole of torch's compiler along: 900 modules, a second of a command's start.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def build_empty(arch: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network without memory for its tensors, where its code allows that; random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), Unfilled():
                return make_network(arch, shape=shape, classes=classes)
        except (NotImplementedError, RuntimeError, ValueError):
            if arch in MODELS or arch in ALIASES:
                raise
            return make_network(arch, shape=shape, classes=classes)  # some constructors look at their tensors' values


def usual_shapes(arch: str, channels: int | None, side: int | None) -> list[tuple[int, int, int]]:
    """Image shapes to try: of the architecture's own ``side``, or the usual ones. ``channels`` None: not known."""
    grey_28 = channels != 3 and arch.startswith(USUALLY_28_IF_GREY)
    sides = (side,) if side else (28, *SIDES) if grey_28 else SIDES
    return [(each, size, size) for size in dict.fromkeys(sides) for each in ((channels,) if channels else (1, 3))]


def fit(
    arch: str,
    state: Mapping[str, Tensor],
    *,
    shape: tuple[int, int, int] | None = None,
    side: int | None = None,
    quick: bool = False,
) -> Fit:
    """Compare a state dict with an architecture. Channels and classes are read off the weights.

    ``shape``: the images' shape if it is known; else those of ``side`` or the usual ones are tried, and the first that
    fits is taken, or the one that fits best. ``quick``: where not even half of the names agree, look no further.
    """
    found = shapes_of(state)
    if arch.removeprefix("torchvision:") in SIDE_BRANCHES:
        found = {key: value for key, value in found.items() if not key.startswith(("aux", "AuxLogits."))}
    draft = build_empty(arch, shape=shape or (3, side or 32, side or 32), classes=10)
    expected = shapes_of(draft.state_dict())
    naming, keys = best_naming(found, expected)
    back = {new: old for old, new in keys.items()}
    first, last = (back.get(name, "") for name in ends(draft))
    channels = found[first][1] if len(found.get(first, ())) == 4 else None
    classes = max(found[last][0], 1) if found.get(last) else 10
    by_name = {keys[key]: value for key, value in found.items()}
    rough = quick and 2 * len(expected.keys() & by_name.keys()) < len(expected.keys() | by_name.keys())
    shapes = [shape] if shape else usual_shapes(arch, channels, side)
    best: Fit | None = None
    for each in shapes[:1] if rough else shapes:
        try:
            network = draft if rough else build_empty(arch, shape=each, classes=classes)
        except ValueError:
            if shape:
                raise
            continue  # too small for this network
        difference = compare(by_name, shapes_of(network.state_dict()))
        if best is None or difference.share > best.difference.share:
            best = Fit(
                arch=arch,
                shape=each,
                classes=classes,
                first=first,
                last=last,
                naming=naming,
                keys=keys,
                difference=difference,
            )
        if difference.missing or difference.unexpected or not difference.misshapen:
            break  # another size would not change that
    assert best is not None
    return best


def closest(state: Mapping[str, Tensor], *, extra: Iterable[str] = ()) -> Fit:
    """The architecture with the greatest share of agreeing tensors: zoo, ``extra``, torchvision's families."""
    families = (name for family in FAMILIES for name in family)
    best: Fit | None = None
    for name in dict.fromkeys([*MODELS, *extra, *families]):
        this = fit(name, state, side=224 if ":" in name else None, quick=True)
        if best is None or this.difference.share > best.difference.share:
            best = this
        if best.fits:
            break
    assert best is not None
    return best


def closest_words(best: Fit) -> str:
    """How messages name the closest architecture."""
    percent = int(100 * best.difference.share)
    return f"closest: {best.arch} ({percent} % of tensors match)" if percent >= 25 else "no known network is close"


def misfit(source: str, arch: str, difference: Difference, best: Fit) -> str:
    """The one-line message for a state dict that does not fit: up to three keys of each kind, and what to do."""
    kinds = {
        "missing": difference.missing,
        "unexpected": difference.unexpected,
        "misshapen": difference.misshapen,
    }
    parts = [
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in kinds.items()
        if keys
    ]
    return (
        f"{source} does not fit {arch}: {'; '.join(parts)}; {closest_words(best)}; "
        f"name another with --arch NAME or --arch file.py:function"
    )
