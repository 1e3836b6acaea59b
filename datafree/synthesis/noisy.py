"""A generator whose variety comes of noisy layers, with its Adam and its store: the part that nayer and blend share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from datafree.generators import GENERATORS
from datafree.generators.noisy import Noisy
from datafree.parallel import average_gradients, shard, synchronise
from datafree.synthesis.embeddings import class_embeddings
from datafree.synthesis.imaging import MakerConfig, choose_generator
from datafree.synthesis.inversion import Best
from datafree.synthesis.setting import Batch, Setting, usual_batch
from datafree.synthesis.store import Store
from datafree.synthesis.terms import Means


class NoisyConfig(MakerConfig, Protocol):
    """The fields that `NoisyImaging` reads from a method's configuration."""

    @property
    def embedding(self) -> str: ...
    @property
    def sample_mode(self) -> str: ...


class NoisyImaging:
    """Rounds of one draw of the noisy layers each, and the bank that the student's images are drawn from.

    Args:
        setting: the method's.
        config: the method's.

    Source: NAYER (Tran et al. 2024); Adam's betas are the field's (0.5, 0.999).
    """

    def __init__(self, setting: Setting, config: NoisyConfig) -> None:
        self.setting, self.config, domain = setting, config, setting.domain
        self.batch_size = config.synthesis_batch or usual_batch(setting.batch_size)
        self.name, self.width = choose_generator(config.generator, config.generator_width, domain.shape)
        self.normalisation = domain.pixels if config.output == "standardised" else None
        network = Noisy(
            GENERATORS[self.name](config.latent, domain.shape, self.width, self.normalisation),
            class_embeddings(config.embedding, setting),
            config.latent,
            *self._layers_and_rows(),
        )
        self.generator = network.to(setting.device).to(memory_format=torch.channels_last)
        synchronise(self.generator)
        self.optimizer = self._adam()
        self.store = Store(setting, "bank", config.bank)
        self.rounds = 0

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.generator.parameters(), lr=self.config.generator_lr, betas=(0.5, 0.999))

    def begin_round(self) -> None:
        """Draws the noisy layers anew, with a new Adam; every `reset` rounds the whole generator is made anew."""
        if self.config.reset and self.rounds and self.rounds % self.config.reset == 0:
            for module in self.generator.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.rounds += 1
        self.generator.noise.reset_parameters()
        self.optimizer = self._adam()

    def _layers_and_rows(self) -> tuple[int, int]:
        """As often as a class comes in a batch, and as many classes as do."""
        classes, prior = self.setting.domain.classes, self.setting.prior
        if prior is None:
            return -(-self.batch_size // classes), min(classes, self.batch_size)
        # Systematic draws give a class at most this many places, see `spread`.
        return int(self.batch_size * prior.max().item() + 1e-3) + 1, min(int((prior > 0).sum()), self.batch_size)

    def targets(self) -> Tensor:
        """Every class in turn, as often as it fits in, then others, each once; by the prior where there is one.

        int64 (B,). No class comes more often than there are noisy layers, so that no image is made twice.
        """
        setting = self.setting
        if setting.prior is not None:
            start = torch.rand((), generator=setting.rng, device=setting.device, dtype=torch.float64)
            return spread(setting.prior, self.batch_size, start)
        return in_turn(setting.domain.classes, self.batch_size, setting.rng, setting.device)

    def images(self, targets: Tensor) -> Tensor:
        """This process's slice of the images of a batch of classes, with gradients."""
        self.generator.train()
        images: Tensor = self.generator(shard(targets), shard(self.generator.slots(targets)))
        return images

    @torch.no_grad()
    def rendered(self, targets: Tensor) -> Tensor:
        """The same images by the running statistics of the generator's batch norm."""
        self.generator.eval()
        images: Tensor = self.generator(shard(targets), shard(self.generator.slots(targets)))
        return images

    def step(self, terms: Mapping[str, Tensor]) -> Tensor:
        """One Adam step on the sum of the (weighted) terms; returns the sum, ()."""
        parameters = list(self.generator.parameters())
        loss = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(loss, inputs=parameters)
        average_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def invert(
        self, steps: int, terms_of: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> tuple[dict[str, float], Tensor]:
        """One round: up to `steps` steps on one draw of the noisy layers.

        Args:
            steps: the run may allow fewer (see `Pace.inner`).
            terms_of: the weighted terms of images and their classes, this process's part of the batch.

        Returns:
            The terms' means over the steps, and the images of the step with the lowest loss; with the sample mode
            "eval" those of the draw after the last step, made afresh.
        """
        self.begin_round()
        targets = self.targets()
        best, means = Best(), Means()
        for _ in self.setting.pace.inner(steps):
            images = self.images(targets)
            terms = terms_of(images, shard(targets))
            best.offer(self.step(terms), images)
            means.add(terms)
        kept = self.rendered(targets) if self.config.sample_mode == "eval" else best.held[0]
        return means.values(), kept

    def sample(self, n: int) -> Batch:
        """This process's slice of n images for the student."""
        return self.store.sample(n, self._fresh)

    def _fresh(self, n: int) -> Tensor:
        raise AssertionError("a round fills the bank before the student draws from it")

    def about(self) -> dict[str, Any]:
        """What is needed to build the generator again."""
        return {
            "generator": self.name,
            "latent": self.config.latent,
            "shape": self.setting.domain.shape,
            "width": self.width,
            "normalisation": self.normalisation,
            "embeddings": list(self.generator.get_buffer("embeddings").shape),
            "layers": self.generator.noise.weight.shape[0],
            "rows": self.generator.noise.rows,
            "targets": self._usual_targets(),
        }

    def _usual_targets(self) -> list[int]:
        """The classes of a batch, without a draw."""
        if self.setting.prior is None:
            return [i % self.setting.domain.classes for i in range(self.batch_size)]
        targets: list[int] = spread(self.setting.prior, self.batch_size, torch.tensor(0.5)).tolist()
        return targets

    def grown(self) -> dict[str, Tensor]:
        """The generator's weights."""
        return dict(self.generator.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "store": self.store.state_dict(), "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.store.load_state_dict(state["store"])
        self.rounds = int(state["rounds"])


def in_turn(classes: int, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """n classes: all in turn as often as they fit in, then the rest of different ones, drawn. int64 (n,)."""
    whole = n // classes * classes
    rest = torch.randperm(classes, generator=rng, device=device)[: n - whole]
    return torch.cat([torch.arange(whole, device=device) % classes, rest])


def spread(shares: Tensor, n: int, start: Tensor) -> Tensor:
    """n classes in their shares (C,), rounded by one `start` from [0, 1) for all; int64 (n,), in order.

    Systematic sampling: every class has its expected number, rounded up or down. A class of share 0 has none.
    """
    ends = (n * shares.double().cumsum(0)).clamp(max=n)
    ends[int(shares.nonzero().max()) :] = n  # what rounding lost
    points = torch.arange(n, device=shares.device, dtype=torch.float64) + start.to(shares.device)
    return torch.searchsorted(ends, points.clamp(max=n * (1 - 1e-12)), right=True)
