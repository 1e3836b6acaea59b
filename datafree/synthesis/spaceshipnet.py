"""SpaceshipNet: inversion without an opponent; more images come of mixing the generator's maps of two of them.

    L_G = bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, y)

After a call's steps its batch is rendered again, `copies` times: at a depth drawn for each time, every image has, with
probability `mix`, half of its channels from another one of the batch. The student follows the teacher's attention as
well as its logits, which says where in a mixed image there is anything to see.

Source: Yu et al. 2023, "Data-free knowledge distillation via feature exchange and activation region constraint", as
released. Differences: see the numbered list in docs/methods/spaceshipnet.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, part, positive, share
from datafree.generators.convolutional import Generator
from datafree.losses.precision import raised
from datafree.parallel import gather, shard, world_size
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.inversion import Best, Latents
from datafree.synthesis.setting import Batch, Setting
from datafree.synthesis.terms import Means


@dataclass(frozen=True, kw_only=True)
class SpaceshipNetConfig:
    mix: Annotated[float, "probability that an image has half of its channels, at some depth, from another one"] = 0.7
    copies: Annotated[int, "times a call's batch is rendered with such mixing; 0: the batch itself, once"] = 4
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class drawn for an image"] = 0.5
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 4e-3
    generator_steps: flags.GeneratorSteps = 10
    student_steps: flags.StudentSteps = 80
    synthesis_batch: flags.SynthesisBatch = None
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "copies", "bn", "first_bn", "onehot", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        share(self, "warmup")
        part(self, "mix")
        choice(self)


class SpaceshipNet:
    """One round: one call, `generator_steps` steps on one batch, and the batches that are rendered of it."""

    Config = SpaceshipNetConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 30.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
        "attention": 250.0,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "onehot"
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        # 200 calls with 2000 student steps each, that is 1000 epochs of 400; a call's images are rendered anew at every
        # step there, and held here: 200 × 256 × 4.
        "official": {
            "generator_width": 64,
            "generator_lr": 1e-3,
            "generator_steps": 200,
            "student_steps": 2000,
            "synthesis_batch": 256,
            "copies": 4,
            "sample_mode": "eval",
            "bank": 204_800,
            "reset": 0,
            "warmup": 0.0,
            "batch_size": 256,
            "epochs": 1000.0,
            "lr": 0.1,
            "weight_decay": 1e-4,
        }
    }

    def __init__(self, setting: Setting, config: SpaceshipNetConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store = self.imaging.store
        self.state_dict, self.load_state_dict = self.imaging.state_dict, self.imaging.load_state_dict

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        imaging.optimizer.state.clear()  # every call has its own Adam, though the generator goes on
        latents, best, means = Latents(imaging, 0.0), Best(), Means()
        targets = shard(setting.targets(imaging.batch_size))
        for _ in setting.pace.inner(config.generator_steps):
            images = latents.images()
            teacher, _, seen, _ = setting.teacher.look(setting.view(images), statistics=config.bn > 0)
            terms = {"onehot": config.onehot * F.cross_entropy(raised(teacher), targets)}
            if seen:
                terms["bn"] = config.bn * losses.batch_norm_statistics(seen, config.first_bn)
            best.offer(latents.backward(terms), images)
            latents.step()
            means.add(terms)
        # With "last" the student sees one batch, with "fresh" those that it asks for.
        copies = {"bank": config.copies, "last": min(config.copies, 1), "fresh": 0}[config.feed]
        if not copies:
            imaging.keep(best.held[0])
        for _ in setting.pace.inner(copies):
            imaging.keep(self._render(latents.values))
        return means.values()

    @torch.no_grad()
    def _render(self, latents: Tensor) -> Tensor:
        """The latents' images (N, C, H, W), mixed at a depth that is drawn."""
        setting = self.setting
        generator = cast(Generator, self.imaging.generator.train(self.config.sample_mode == "train"))
        depths: list[nn.Module] = [*generator.blocks, generator.to_image]
        depth = int(torch.randint(len(depths), (1,), generator=setting.rng, device=setting.device))
        with changing_inputs(depths[depth], self._mixed):
            images: Tensor = generator(latents)
        return images

    def _mixed(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) of this process's images; a partner may be another process's."""
        setting, count = self.setting, len(maps) * world_size()
        if count == 1:
            return maps
        distance = int(torch.randint(1, count, (1,), generator=setting.rng, device=setting.device))
        draws = torch.rand(count, maps.shape[1] + 1, generator=setting.rng, device=setting.device)
        own = kept_channels(draws[:, 1:]) | (draws[:, :1] >= self.config.mix)
        return exchange(maps, shard(gather(maps).roll(distance, 0)), shard(own))

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.store.sample(n, self._fresh)

    def _fresh(self, n: int) -> Tensor:
        """This process's slice of n new images, mixed unless there are no copies."""
        return self._render(self.imaging.latents(n)) if self.config.copies else self.imaging.fresh(n)


def kept_channels(draws: Tensor) -> Tensor:
    """Half of the channels (the smaller half of an odd number), bool (N, C): those of the lowest draws (N, C)."""
    return draws.argsort(1).argsort(1) < draws.shape[1] // 2


def exchange(maps: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """Channels of `maps` where `own` (N, C) holds, of `others` elsewhere; both (N, C, h, w)."""
    return torch.where(own[:, :, None, None], maps, others)


@contextmanager
def changing_inputs(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the module is given change(input) in place of its input."""
    handle = module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        handle.remove()
