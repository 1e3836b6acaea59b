"""MAD: a slow copy of the generator remembers what the student has been shown, so that it is not forgotten.

    θ̃ ← m θ̃ + (1 - m) θ,   L_S = (1 - r) E_z KL(t(G_θ(z)) || s(G_θ(z))) + r E_z KL(t(G_θ̃(z)) || s(G_θ̃(z)))

The generator's own terms are dfq's: statistics, decision, balance, minus the disagreement.

Source: Do et al. 2022, "Momentum adversarial distillation: handling large distribution shifts in data-free knowledge
distillation". No code was published; what is our reading of it is listed in docs/methods/mad.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.func import functional_call

from datafree import config as flags
from datafree.fields import choice, not_negative, part, positive, share
from datafree.parallel import world_size
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Batch, Setting
from datafree.synthesis.store import Store
from datafree.synthesis.terms import Means, look_and_judge


@dataclass(frozen=True, kw_only=True)
class MADConfig:
    copy_momentum: Annotated[float, "share of itself that the generator's slow copy keeps at each step"] = 0.95
    copy_share: Annotated[float, "share of the student's images that the slow copy makes"] = 0.5
    adv: Annotated[float, "weight of the disagreement with the student"] = 1.0
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    bn_momentum: flags.NormMomentum = 0.0
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 0.5
    balance: Annotated[float, "weight of the class balance"] = 5.0
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 4e-3
    generator_steps: flags.GeneratorSteps = 5
    student_steps: flags.StudentSteps = 40
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: Annotated[int, "images each of the two generators' banks holds; the oldest go first"] = 10_000
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "balance", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        part(self, "copy_share")
        share(self, "copy_momentum", "bn_momentum", "warmup")
        choice(self)

    @property
    def banks(self) -> int:
        """How many banks of `bank` images are held."""
        return 2 if self.copy_share else 1


class MAD:
    """One round: `generator_steps` steps of the generator, each followed by its slow copy, which makes a batch too."""

    Config = MADConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "balance"

    def __init__(self, setting: Setting, config: MADConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store = self.imaging.store
        self.past = Store(setting, config.feed if config.copy_share else "fresh", config.bank)
        self.copy = self._weights()
        self.remembered = Remembered(config.bn_momentum, config.first_bn)

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.imaging.generator.state_dict().items()}

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        self._renew()
        adv = 0.0 if setting.pace.warming else config.adv
        means = Means()
        for _ in setting.pace.inner(config.generator_steps):
            images = imaging.images()
            judged = look_and_judge(setting, config, self.remembered, images, adv=adv, prior=setting.prior)
            imaging.step(judged.terms)
            imaging.keep(images)
            self._follow()
            if self.past.feed != "fresh":
                self.past.keep(self._remade(imaging.batch_size))
            means.add(judged.terms)
        self.remembered.remember()
        return means.values()

    def _age(self) -> int:
        """Rounds that the generator has gone through since its weights were drawn; the first is 0."""
        rounds = self.imaging.rounds - 1
        return rounds % self.config.reset if self.config.reset else rounds

    def _renew(self) -> None:
        """A grown generator replaces the copy of the one before it: the two are not to be averaged."""
        born_again = self.config.reset and self.imaging.rounds > self.config.reset
        if born_again and self._age() == self.config.reset // 2:
            self.copy = self._weights()

    @torch.no_grad()
    def _follow(self) -> None:
        """One step of the copy; it stands still while the generator is young again, and its batch norms are its own."""
        born_again = self.config.reset and self.imaging.rounds > self.config.reset
        if born_again and self._age() < self.config.reset // 2:
            return
        for name, parameter in self.imaging.generator.named_parameters():
            self.copy[name].lerp_(parameter, 1 - self.config.copy_momentum)

    @torch.no_grad()
    def _remade(self, n: int) -> Tensor:
        """This process's slice of n images of the copy."""
        self.imaging.generator.train()
        images: Tensor = functional_call(self.imaging.generator, self.copy, (self.imaging.latents(n),))
        return images

    @property
    def made(self) -> int:
        return self.store.made + self.past.made

    def sample(self, n: int) -> Batch:
        old = int(n * self.config.copy_share) // world_size() * world_size()
        if not old:
            return self.imaging.sample(n)
        if old == n:
            return self.past.sample(n, self._remade)
        new = self.store.sample(n - old, self.imaging.fresh).images
        return Batch(spread(new, self.past.sample(old, self._remade).images))

    def state_dict(self) -> dict[str, Any]:
        return {
            "imaging": self.imaging.state_dict(),
            "past": self.past.state_dict(),
            "copy": self.copy,
            "remembered": self.remembered.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.past.load_state_dict(state["past"])
        for name, tensor in self.copy.items():
            tensor.copy_(state["copy"][name])
        self.remembered.load_state_dict(state["remembered"])


def spread(new: Tensor, old: Tensor) -> Tensor:
    """Both in one batch, each spread evenly over it: the slices of several processes make up the batch of one."""
    count = len(new) + len(old)
    is_old = (torch.arange(count + 1, device=new.device) * len(old) // count).diff()
    return torch.cat([new, old])[is_old.argsort(stable=True).argsort()]
