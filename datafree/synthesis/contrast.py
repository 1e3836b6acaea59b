"""What tells an image from all others, by what the teacher makes of it: a head, earlier pairs, and the term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.losses.precision import raised
from datafree.losses.statistics import Statistics
from datafree.parallel import gather, rank, world_size
from datafree.synthesis.setting import Setting
from datafree.teacher import Teacher

PROJECTION = 256


class Contrast:
    """A head that is trained all along, and the pairs (features of part and whole) of earlier images.

    Args:
        setting: the method's.
        temperature: of the term.
        capacity: pairs that are held; the oldest go first.
        negatives: of them that a batch is told from.
        lr: of the head's Adam.
    """

    def __init__(self, setting: Setting, *, temperature: float, capacity: int, negatives: int, lr: float) -> None:
        self.setting, self.temperature, self.capacity, self.negatives = setting, temperature, capacity, negatives
        with torch.no_grad():
            blank = torch.zeros(2, *setting.domain.shape, device=setting.device)
            width = described(setting.teacher, blank)[1].shape[1]
        self.pairs = torch.empty(0, 2, width, device=setting.device)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION)).to(setting.device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr)

    def term(self, part: Tensor, whole: Tensor) -> Tensor:
        """`contrast_term` against earlier pairs that are drawn anew, unweighted."""
        setting = self.setting
        picks = torch.randperm(len(self.pairs), generator=setting.rng, device=setting.device)[: self.negatives]
        return contrast_term(self.head, part, whole, self.pairs[picks], self.temperature)

    def step(self) -> None:
        """The head follows its gradients, which are then gone."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def remember(self, part: Tensor, whole: Tensor) -> None:
        """Takes in the features (N, D) of this process's part of a batch."""
        new = gather(torch.stack([part, whole], 1))
        self.pairs = torch.cat([self.pairs, new])[-self.capacity :].clone()  # a view would be saved with all of it

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "pairs": self.pairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pairs = state["pairs"].to(self.pairs.device)


def contrast_term(head: nn.Module, part: Tensor, whole: Tensor, earlier: Tensor, temperature: float) -> Tensor:
    """Each part against all wholes: the mean over this batch plus, where there are any, the mean over earlier pairs.

    Args:
        head: from features (N, D) to (N, projection).
        part: features of this process's parts, (N, D); those of `whole` belong to them one by one.
        whole: (N, D); no gradient reaches them.
        earlier: pairs (M, 2, D), part and whole, alike in all processes.
        temperature: τ > 0.

    Source: CMI (Fang et al. 2021), as its release computes it: earlier pairs are rows as well as columns.
    """
    n = len(part)
    rows = head(torch.cat([part, earlier[:, 0]]))
    with torch.no_grad():
        columns = raised(head(torch.cat([whole, earlier[:, 1]])))
        columns = torch.cat([gather(columns[:n]), columns[n:]])
    term = losses.info_nce(rows[:n], columns, temperature, first=rank() * n)
    if len(earlier):
        term = term + losses.info_nce(rows[n:], columns, temperature, first=world_size() * n)
    return term


def described(teacher: Teacher, images: Tensor, *, statistics: bool = False) -> tuple[Tensor, Tensor, list[Statistics]]:
    """Logits, what the teacher makes of each image, and the statistics of `Teacher.look` if asked for.

    What it makes of an image are the spatial means of the inputs of its batch-norm layers, one after the other, or the
    features before its last layer where it has none: (N, D), float32 at least.

    Raises:
        ValueError: nothing of either can be seen.
    """
    with watch_means(teacher.norms) as means:
        logits, features, seen, _ = teacher.look(images, features=not teacher.norms, statistics=statistics)
    if features is not None:
        return logits, raised(features), seen
    if not means:
        raise ValueError(
            "--contrast needs the inputs of the teacher's batch norms or the features before its last layer, "
            "and neither can be seen: give --contrast 0"
        )
    return logits, torch.cat(means, 1), seen


@contextmanager
def watch_means(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The spatial means (N, C) of what the layers are given inside, in the order of the pass."""
    means: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        spatial = tuple(range(2, x.dim()))
        means.append(x.mean(spatial, dtype=torch.promote_types(x.dtype, torch.float32)) if spatial else raised(x))

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
