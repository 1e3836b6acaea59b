"""How any network here is trained: a clock, a schedule, an optimiser, a moving average, and one loop around them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datafree.config import OptimisationConfig
from datafree.fields import parse_duration
from datafree.parallel import average_gradients, latest, synchronise

# The field's releases count an epoch of data-free training as 400 student steps.
EPOCH_STEPS = 400


class TermError(ArithmeticError):
    """A term became NaN or infinite: the run stops, its last good checkpoint stays."""


class Clock:
    """How far a run is, by steps or by wall clock.

    Args:
        steps: length in steps, or None.
        seconds: length in seconds, or None. One of the two is given.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None) -> None:
        assert (steps is None) != (seconds is None)
        self.steps, self.seconds = steps, seconds
        self.step = 0
        self.spent = 0.0
        self._since: float | None = None
        self._read = 0.0  # elapsed, at the last `finished`
        self._before = 0.0  # elapsed, where the first step begins

    def start(self) -> None:
        """Starts or goes on; nothing changes while it runs."""
        if self._since is None:
            self._since = time.monotonic()

    def pause(self) -> None:
        self.spent, self._since = self.elapsed, None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all sessions of the run."""
        return self.spent + (time.monotonic() - self._since if self._since is not None else 0.0)

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]. Time is that of the last `finished`."""
        done = self.step / self.steps if self.steps is not None else self._read / (self.seconds or 1.0)
        return min(done, 1.0)

    @property
    def progress(self) -> float:
        """Share of the steps that is done, in [0, 1]; schedules follow it. 0 until the first step."""
        if self.seconds is None:
            return self.fraction
        if not self.step:
            return 0.0
        return min((self._read - self._before) / max(self.seconds - self._before, 1e-9), 1.0)

    @property
    def ended(self) -> bool:
        """Whether the last step of a run of steps is made. What a budget's last step is, nobody knows before."""
        return self.steps is not None and self.step >= self.steps

    def begin_step(self) -> None:
        """To be called before each step: what was read before the first is no step's time."""
        if not self.step:
            self._before = self._read

    def finished(self) -> bool:
        """Whether to stop; a step that would end later than half its length after the budget is not begun.

        Reads the wall clock, once for all processes, so that their schedules agree.
        """
        if self.steps is not None:
            return self.step >= self.steps
        self._read = latest(self.elapsed)
        half = 0.5 * (self._read - self._before) / self.step if self.step else 0.0
        return self._read + half >= (self.seconds or 0.0)

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None before the first step."""
        if self.seconds is not None:
            return max(self.seconds - self.elapsed, 0.0)
        if not self.step or self.steps is None:
            return None
        return self.elapsed / self.step * (self.steps - self.step)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "spent": self.elapsed, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.spent = int(state["step"]), float(state["spent"])
        self._read, self._before = self.spent, float(state["before"])


def make_clock(config: OptimisationConfig, epoch_steps: int) -> Clock:
    """The clock of a run: `--steps`, `--epochs` (of `epoch_steps` steps) or `--budget`, of which one is given."""
    if config.budget is not None:
        return Clock(seconds=parse_duration(config.budget))
    if config.steps is not None:
        return Clock(steps=config.steps)
    assert config.epochs is not None
    return Clock(steps=max(1, round(config.epochs * epoch_steps)))


def default_batch_size(shape: tuple[int, int, int]) -> int:
    """256 up to 32×32 pixels, then inversely with the pixels, 8 at 224×224 and above."""
    return max(8, min(256, 256 * 32 * 32 // (shape[1] * shape[2])))


def cosine(fraction: float) -> float:
    """From 1 to 0 over the run along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


# The rate over the run, where neither a person nor the method says.
USUAL: dict[str, Any] = {"schedule": "cosine", "milestones": (0.5, 0.75)}


def learning_rate(config: OptimisationConfig, fraction: float) -> float:
    """The factor in [0, 1] on the peak rate after that share of the run."""
    schedule = config.schedule or USUAL["schedule"]
    if schedule == "cosine":
        return cosine(fraction)
    if schedule == "multistep":
        return float(0.1 ** sum(fraction >= m for m in config.milestones or USUAL["milestones"]))
    return 1.0


class Trainer:
    """One network with its optimiser, schedule and moving average.

    Args:
        network: trained in place.
        config: with `optimizer`, `lr` and `weight_decay` resolved (not None).
    """

    def __init__(self, network: nn.Module, config: OptimisationConfig) -> None:
        assert config.lr is not None and config.weight_decay is not None
        self.config = config
        self.average = copy.deepcopy(network).eval().requires_grad_(False) if config.ema else None
        self.network = synchronise(network)
        parameters = [p for p in network.parameters() if p.requires_grad]
        if config.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
                parameters, config.lr, weight_decay=config.weight_decay
            )
        else:
            self.optimizer = torch.optim.SGD(
                parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
            )

    @property
    def result(self) -> nn.Module:
        """The network to keep: the moving average if there is one, else the last iterate."""
        return self.average if self.average is not None else self.network

    def step(self, terms: Mapping[str, Tensor], fraction: float) -> None:
        """One step on the sum of the terms, at the schedule's rate after `fraction` of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = (self.config.lr or 0.0) * learning_rate(self.config, fraction)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        average_gradients(self.network.parameters())
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            _follow(self.average, self.network, self.config.ema)

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Parameters move by 1 - decay; buffers (batch-norm statistics, averages already) are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for mine, other in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(other)


class Source(Protocol):
    """What the loop trains on.

    `advance` prepares (a round of synthesis, say) and returns what it measured. `terms` gives the weighted loss terms
    of one step; none at all means that there is nothing to train on yet (warm-up), and the step is not counted.
    """

    def advance(self, clock: Clock) -> Mapping[str, float]: ...
    def terms(self, clock: Clock) -> Mapping[str, Tensor]: ...


class Steppable(Protocol):
    """What takes the steps: a `Trainer`, or the images of a condensed set."""

    def step(self, terms: Mapping[str, Tensor], fraction: float) -> None: ...


@dataclass(kw_only=True)
class Seconds:
    """Where the time of a run went."""

    synthesis: float = 0.0
    training: float = 0.0


def run(
    trainer: Steppable,
    source: Source,
    clock: Clock,
    *,
    seconds: Seconds,
    autocast: Callable[[], Any],
    after_step: Callable[[Mapping[str, Tensor], Mapping[str, float]], bool],
) -> bool:
    """Trains until the clock ends.

    Args:
        trainer: what is trained.
        source: where the batches' losses come from.
        clock: how far the run is.
        seconds: filled in: time in `advance` and in the steps.
        autocast: makes the context that sets the arithmetic's precision.
        after_step: called with the step's terms and the round's; returning True stops the run (interrupted).

    Returns:
        Whether the run came to its end.

    Raises:
        TermError: a term is NaN or infinite; names term and step.
    """
    clock.start()
    try:
        while not clock.finished():
            begin = time.monotonic()
            with autocast():
                round_terms = source.advance(clock)
            check_terms(round_terms, clock.step)
            middle = time.monotonic()
            with autocast():
                terms = source.terms(clock)
            check_terms(terms, clock.step)
            if terms:
                clock.begin_step()
                trainer.step(terms, clock.progress)
                clock.step += 1
            seconds.synthesis += middle - begin
            seconds.training += time.monotonic() - middle
            if after_step(terms, round_terms):
                return False
    finally:
        clock.pause()
    return True


def check_terms(terms: Mapping[str, Tensor | float], step: int) -> None:
    """Raises TermError if a term is not finite. The device is waited for once."""
    held = [term.detach().float() for term in terms.values() if isinstance(term, Tensor)]
    read = iter(torch.stack(held).tolist() if held else ())
    for name, term in terms.items():
        value = next(read) if isinstance(term, Tensor) else float(term)
        if not math.isfinite(value):
            hint = "try a lower rate or weight, or --precision 32"
            raise TermError(f"the term {name!r} became {value} at step {step}: {hint}")
