"""PRE: images that student and teacher disagree on, and a small network that remembers earlier ones.

    L_G = onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c - activation mean|f_t| - adv JS(t, s)
    L_M = mean|x - x'| / σ + mean|t(x) - t(x')| + divergence KL(q(z|x) || N(0, 1))

The memory M is a variational autoencoder, x' = M(x), on new images x and on images that it recalls itself. It recalls
by decoding standard normal codes z, which first take one Adam step on onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c +
mean (var z - 1)² + mean (mean z)². The student's batches hold new and recalled images.

Source: Binici et al. 2022, "Robust and resource-efficient data-free knowledge distillation by generative pseudo replay"
(PRE-DFKD). Our defaults differ: see the numbered list in docs/methods/pre.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive, share
from datafree.generators import GENERATORS
from datafree.generators.autoencoder import Autoencoder
from datafree.losses.precision import raised
from datafree.parallel import average_gradients, channel_statistics, synchronise, world_size
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Batch, Setting, student_mode


@dataclass(frozen=True, kw_only=True)
class PREConfig:
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 1.0
    balance: Annotated[float, "weight of the class balance"] = 2.17
    activation: Annotated[float, "weight of the mean absolute feature"] = 0.1
    adv: Annotated[float, "weight of the disagreement with the student"] = 1.0
    distance: flags.Distance = "js"
    masked: flags.Masked = False
    replay: Annotated[float, "share of recalled images in the student's batch"] = 1 / 9
    divergence: Annotated[float, "weight of the codes' divergence from the standard normal"] = 1e-5
    memory_lr: Annotated[float, "Adam's rate for the memory"] = 5e-4
    memory_steps: Annotated[int, "steps of the memory a round"] = 4
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "standardised"
    generator_lr: flags.GeneratorLr = 4e-3
    generator_steps: flags.GeneratorSteps = 1
    student_steps: flags.StudentSteps = 10
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "train"
    sample_mode: flags.SampleMode = "train"
    reset: flags.Reset = 0

    def __post_init__(self) -> None:
        not_negative(self, "onehot", "balance", "activation", "adv", "divergence", "reset")
        positive(self, "memory_lr", "memory_steps", "latent", "generator_width", "generator_lr", "generator_steps")
        positive(self, "student_steps", "synthesis_batch")
        share(self, "replay")
        choice(self)

    @property
    def feed(self) -> str:
        """The memory stands in the bank's place."""
        return "fresh"

    @property
    def bank(self) -> int:
        return 1


class PRE:
    """One round: `generator_steps` steps of the generator, then `memory_steps` of the memory, if there is a replay."""

    Config = PREConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "l1",
        "temperature": 1.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            # 1024 new images and 128 recalled ones; 400 × 36 rounds of 10 student steps
            "batch_size": 1152,
            "epochs": 360.0,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "augment": False,
            "latent": 1000,
            "generator": "small",
            "generator_width": 64,
            "generator_lr": 2e-2,
            "synthesis_batch": 1024,
        }
    }
    NEEDS_FEATURES = "activation"
    FOLLOWS_PRIOR = "balance"

    def __init__(self, setting: Setting, config: PREConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, imaging, shape = self.imaging.store, self.imaging, setting.domain.shape
        decoder = GENERATORS[imaging.name](config.latent, shape, imaging.width, imaging.normalisation)
        memory = Autoencoder(decoder, config.latent, shape, imaging.width)
        self.memory = memory.to(setting.device).to(memory_format=torch.channels_last)
        synchronise(self.memory)
        self.optimizer = torch.optim.Adam(self.memory.parameters(), lr=config.memory_lr)
        self.spread = torch.tensor(setting.domain.pixels[1], device=setting.device).view(1, -1, 1, 1)
        self.learned = 0

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        memory_steps = config.memory_steps if config.replay else 0  # of a memory that somebody asks
        for stage, wanted in ((self.imagine, config.generator_steps), (self.learn, memory_steps)):
            for _ in setting.pace.inner(wanted):
                for name, term in stage().items():
                    sums[name], counts[name] = sums.get(name, 0.0) + term, counts.get(name, 0) + 1
        return {name: float(value) / counts[name] for name, value in sums.items()}

    def imagine(self) -> dict[str, Tensor]:
        """One step of the generator; the terms."""
        setting, config, imaging = self.setting, self.config, self.imaging
        images = imaging.images()
        teacher, features, _, _ = setting.teacher.look(images, features=config.activation > 0)
        terms = self.decided(teacher)
        if features is not None:
            terms["activation"] = config.activation * losses.activation(features)
        if config.adv:
            with student_mode(setting.student, config.student_mode):
                student = setting.student(images)
            # As in the release, the disagreement is followed through the student alone.
            terms["adv"] = -config.adv * losses.disagreement(student, teacher.detach(), config.distance, config.masked)
        imaging.step(terms)
        imaging.keep(images)
        return {name: term.detach() for name, term in terms.items()}

    def decided(self, teacher: Tensor) -> dict[str, Tensor]:
        """The terms that ask for sure and balanced decisions of the teacher, logits (N, C)."""
        return {
            "onehot": self.config.onehot * losses.onehot(teacher),
            "balance": self.config.balance * losses.class_balance(teacher, self.setting.prior),
        }

    def learn(self) -> dict[str, Tensor]:
        """One step of the memory on new images and on what it recalls itself; the terms."""
        setting, config = self.setting, self.config
        imaging, batch = self.imaging, self.imaging.batch_size
        recalled = multiple(batch * config.replay / (1 - config.replay)) if self.learned else 0
        new = batch - multiple(batch / 2)
        with torch.no_grad():
            images = imaging.fresh(new)
            if recalled:
                images = torch.cat([images, self.recall(recalled, training=True)])
            wanted = setting.teacher(images)
        self.memory.train()
        noise = torch.cat([imaging.latents(new), imaging.latents(recalled)])
        again, mean, log_variance = self.memory(images, noise)
        terms = {
            "memory_pixels": ((raised(again) - raised(images)) / self.spread).abs().mean(),
            "memory_logits": losses.l1(setting.teacher(again), wanted),
            "memory_codes": config.divergence * losses.normal_divergence(mean, log_variance),
        }
        parameters = list(self.memory.parameters())
        torch.autograd.backward(torch.stack(list(terms.values())).sum(), inputs=parameters)
        average_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learned += 1
        return {name: term.detach() for name, term in terms.items()}

    def recall(self, n: int, *, training: bool = False) -> Tensor:
        """This process's slice of n images from the memory, whose codes have taken one step towards decided ones.

        As in the release its batch norm is in training mode while it learns, in evaluation mode for the student.
        """
        self.memory.train(training)
        codes = self.imaging.latents(n).requires_grad_()
        optimizer = torch.optim.Adam([codes], lr=self.config.generator_lr)
        with torch.enable_grad():
            mean, var = channel_statistics(codes)
            terms = self.decided(self.setting.teacher(self.memory.decode(codes)))
            spread = (var - 1).square().mean() + mean.square().mean()
            torch.autograd.backward(terms["onehot"] + terms["balance"] + spread, inputs=[codes])
        optimizer.step()
        with torch.no_grad():
            return self.memory.decode(codes).float()

    @property
    def made(self) -> int:
        """New images; those that the memory recalls are not counted."""
        return self.store.made

    def sample(self, n: int) -> Batch:
        recalled = multiple(n * self.config.replay) if self.learned else 0
        batch = self.imaging.sample(n - recalled)
        return Batch(torch.cat([batch.images, self.recall(recalled)])) if recalled else batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "imaging": self.imaging.state_dict(),
            "memory": self.memory.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learned": self.learned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.memory.load_state_dict(state["memory"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learned = int(state["learned"])


def multiple(n: float) -> int:
    """The multiple of the number of processes that is nearest to n."""
    return round(n / world_size()) * world_size()
