"""The part that generator methods share: a generator, its optimiser, and where the student's images come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datafree.generators import GENERATORS
from datafree.parallel import average_gradients, shard, synchronise
from datafree.synthesis.setting import Batch, Setting, usual_batch
from datafree.synthesis.store import Store


class MakerConfig(Protocol):
    """The fields of a generator and its bank that a method's configuration has."""

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
    def bank(self) -> int: ...
    @property
    def reset(self) -> int: ...
    @property
    def synthesis_batch(self) -> int | None: ...


class GeneratorConfig(MakerConfig, Protocol):
    """All that `Imaging` reads from it."""

    @property
    def feed(self) -> str: ...


def choose_generator(name: str, width: int | None, shape: tuple[int, int, int]) -> tuple[str, int]:
    """Name and width of the generator for images of a shape, where `--generator auto` and no width leave them open."""
    if name == "auto":
        name = "dcgan" if min(shape[1:]) >= 64 else "small"
    return name, width or (16 if shape[0] == 1 else 32)


class Imaging:
    """A generator with its Adam, and the store that the student's images are drawn from.

    Adam's betas are the field's (0.5, 0.999).

    Args:
        setting: the method's.
        config: the method's.
        eviction: which images the bank drops, see `Bank`.
    """

    def __init__(self, setting: Setting, config: GeneratorConfig, eviction: str = "fifo") -> None:
        self.setting, self.config = setting, config
        usual = setting.batch_size if config.feed == "last" else usual_batch(setting.batch_size)
        self.batch_size = config.synthesis_batch or usual
        if config.feed == "last" and self.batch_size != setting.batch_size:
            raise ValueError(f"--feed last: give --synthesis-batch {setting.batch_size}, as the student's batch")
        domain = setting.domain
        self.name, self.width = choose_generator(config.generator, config.generator_width, domain.shape)
        self.normalisation = domain.pixels if config.output == "standardised" else None
        network: nn.Module = GENERATORS[self.name](config.latent, domain.shape, self.width, self.normalisation)
        self.generator = synchronise(network.to(setting.device).to(memory_format=torch.channels_last))
        self.optimizer = self._adam()
        self.store = Store(setting, config.feed, config.bank, eviction)
        self.rounds = 0
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
        self.store.keep(images)

    def sample(self, n: int) -> Batch:
        """This process's slice of n images for the student."""
        return self.store.sample(n, self.fresh)

    def fresh(self, n: int) -> Tensor:
        """This process's slice of n new images."""
        # Running statistics lag behind a generator that changes at every round.
        self.generator.train(getattr(self.config, "sample_mode", "train") == "train")
        images: Tensor = self.generator(self.latents(n))
        return images

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
            "store": self.store.state_dict(),
            "rounds": self.rounds,
            "matured": self.matured,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.store.load_state_dict(state["store"])
        self.rounds, matured, device = int(state["rounds"]), state["matured"], self.setting.device
        self.matured = None if matured is None else {name: tensor.to(device) for name, tensor in matured.items()}
