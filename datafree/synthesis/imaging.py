"""The part that generator methods share: a generator, its optimiser, and where the student's images come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datafree.bank import Bank
from datafree.domain import Domain
from datafree.generators import GENERATORS
from datafree.parallel import average_gradients, shard, synchronise
from datafree.teacher import Teacher


@dataclass(kw_only=True)
class Setting:
    """What a method is given.

    Attributes:
        teacher: frozen; takes images in [0, 1].
        student: takes images in [0, 1]; trained by the caller, never by the method.
        domain: shape and classes of the images.
        batch_size: images a step, over all processes.
        rng: source of every random draw, on the device.
        device: where tensors live.
    """

    teacher: Teacher
    student: nn.Module
    domain: Domain
    batch_size: int
    rng: torch.Generator
    device: torch.device


class Batch:
    """What the student learns from: images (N, C, H, W) in [0, 1], weights (N,) or None, what else a method knows."""

    def __init__(self, images: Tensor, weights: Tensor | None = None, extras: dict[str, Tensor] | None = None) -> None:
        self.images, self.weights, self.extras = images, weights, extras or {}


@contextmanager
def student_mode(student: nn.Module, mode: str) -> Iterator[None]:
    """Puts the student into "train" or "eval" mode while the generator looks at it, and back."""
    was = student.training
    student.train(mode == "train")
    try:
        yield
    finally:
        student.train(was)


class GeneratorConfig(Protocol):
    """The fields that `Imaging` reads from a method's configuration."""

    @property
    def latent(self) -> int: ...
    @property
    def generator(self) -> str: ...
    @property
    def generator_width(self) -> int | None: ...
    @property
    def output(self) -> str: ...
    @property
    def generator_lr(self) -> float: ...
    @property
    def feed(self) -> str: ...
    @property
    def bank(self) -> int: ...
    @property
    def reset(self) -> int: ...
    @property
    def synthesis_batch(self) -> int | None: ...


class Imaging:
    """A generator with its Adam, and the bank that the student's images are drawn from.

    Adam's betas are the field's (0.5, 0.999).
    """

    def __init__(self, setting: Setting, config: GeneratorConfig) -> None:
        self.setting, self.config = setting, config
        usual = setting.batch_size if config.feed == "last" else min(64, setting.batch_size)
        self.batch_size = config.synthesis_batch or usual
        if config.feed == "last" and self.batch_size != setting.batch_size:
            raise ValueError(f"--feed last: give --synthesis-batch {setting.batch_size}, as the student's batch")
        self.name = config.generator
        if self.name == "auto":
            self.name = "dcgan" if min(setting.domain.shape[1:]) >= 64 else "small"
        self.width = config.generator_width or (16 if setting.domain.shape[0] == 1 else 32)
        domain = setting.domain
        self.normalisation = domain.pixels if config.output == "standardised" else None
        network = GENERATORS[self.name](config.latent, domain.shape, self.width, self.normalisation)
        self.generator = synchronise(network.to(setting.device).to(memory_format=torch.channels_last))
        self.optimizer = self._adam()
        self.bank = Bank(config.bank, setting.domain.shape, setting.device) if config.feed == "bank" else None
        self.last: Tensor | None = None
        self.rounds = 0
        self.made = 0
        self.matured: dict[str, Tensor] | None = None

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.generator.parameters(), lr=self.config.generator_lr, betas=(0.5, 0.999))

    def begin_round(self) -> None:
        """Counts rounds and re-initialises the generator when `reset` says so."""
        if self.config.reset and self.rounds and self.rounds % self.config.reset == 0:
            self.matured = {name: t.clone() for name, t in self.generator.state_dict().items()}
            for module in self.generator.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            self.optimizer = self._adam()
        self.rounds += 1

    def latents(self, n: int) -> Tensor:
        """This process's slice of n standard normal latents."""
        setting = self.setting
        return shard(torch.randn(n, self.config.latent, generator=setting.rng, device=setting.device))

    def images(self) -> Tensor:
        """A batch with gradients, generator in training mode."""
        self.generator.train()
        images: Tensor = self.generator(self.latents(self.batch_size))
        return images

    def step(self, terms: Mapping[str, Tensor]) -> None:
        """One Adam step on the sum of the (weighted) terms; no gradient reaches student or teacher."""
        parameters = list(self.generator.parameters())
        torch.autograd.backward(torch.stack(list(terms.values())).sum(), inputs=parameters)
        average_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def keep(self, images: Tensor) -> None:
        """Hands a batch of synthesized images to the student's feed; none is generated twice."""
        self.last = images.detach()
        self.made += self.batch_size
        if self.bank is not None:
            self.bank.add(self.last)

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        """This process's slice of n images for the student."""
        if self.bank is not None and len(self.bank):
            return Batch(self.bank.sample(n, self.setting.rng).float().div_(255))
        if self.config.feed == "last" and self.last is not None and len(self.last) == len(shard(torch.empty(n))):
            return Batch(self.last.float())
        self.made += n
        self.generator.train()  # running statistics lag behind a generator that changes at every round
        return Batch(self.generator(self.latents(n)).float())

    def about(self) -> dict[str, Any]:
        """What is needed to build the generator again."""
        return {
            "generator": self.name,
            "latent": self.config.latent,
            "shape": self.setting.domain.shape,
            "width": self.width,
            "normalisation": self.normalisation,
        }

    def grown(self) -> dict[str, Tensor]:
        """The generator's weights, or those before the last re-initialisation while the present ones are young."""
        young = self.config.reset and (self.rounds - 1) % self.config.reset < self.config.reset // 2
        return self.matured if young and self.matured is not None else dict(self.generator.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict() if self.bank is not None else None,
            "last": self.last,
            "rounds": self.rounds,
            "made": self.made,
            "matured": self.matured,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        self.last, self.matured = state["last"], state["matured"]
        self.rounds, self.made = int(state["rounds"]), int(state["made"])
