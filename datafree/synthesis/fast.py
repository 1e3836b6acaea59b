"""Fast: a generator that needs few steps to fit a new batch, because it is trained to begin well.

    L_inv = bn Σ_l (||σ²_l - σ̃²_l|| + ||μ_l - μ̃_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]
    a call: φ <- θ, fresh latents z, K Adam steps of φ and z on L_inv; the batch of the least loss is kept
    FOMAML: θ follows Σ_k ∇_φ L_inv(φ_k, z_k);   Reptile: θ follows 67 (θ - φ_K)

Source: Fang et al. 2022, "Up to 100x faster data-free knowledge distillation", as released: the gradients of all inner
steps are added, not averaged; μ̃ and σ̃² mix this batch with earlier ones (`Remembered`).
Our defaults differ: see the numbered list in docs/methods/fast.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from datafree import config as flags
from datafree.fields import choice, not_negative, positive, share
from datafree.parallel import shard
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.inversion import Best, Latents
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Setting
from datafree.synthesis.terms import Means, inversion_terms

REPTILE = 67.0  # Adam does not see it, but for its eps


@dataclass(frozen=True, kw_only=True)
class FastConfig:
    meta: Annotated[
        Literal["fomaml", "reptile", "none"],
        "what the generator that calls begin from learns: the inner steps' gradients, their end, or no such generator",
    ] = "fomaml"
    meta_lr: Annotated[float | None, "Adam's rate for it; default: generator's rate × generator's steps"] = None
    adv: Annotated[float, "weight of the disagreement with the student, once it has begun"] = 1.1
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 10.0
    bn_momentum: flags.NormMomentum = 0.9
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class drawn for an image"] = 0.4
    latent: flags.Latent = 256
    latent_lr: Annotated[float, "Adam's rate for the latents; 0: they stay as they are drawn"] = 0.01
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 3e-3
    generator_steps: flags.GeneratorSteps = 5
    student_steps: flags.StudentSteps = 40
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 0
    reset_first: Annotated[float, "share of the run after which the first layer is made anew, once; 0: never"] = 0.6
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "latent_lr", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch", "meta_lr")
        share(self, "bn_momentum", "reset_first", "warmup")
        choice(self)


# Of the release's scripts for CIFAR: 20 calls alone, then 200 with 400 student steps each; its pool drops nothing.
_OFFICIAL: dict[str, Any] = {
    "generator_width": 64,
    "student_steps": 400,
    "synthesis_batch": 256,
    "bank": 56_320,
    "warmup": 20 / 220,
    "batch_size": 256,
    "epochs": 200.0,
    "lr": 0.2,
    "weight_decay": 1e-4,
}


class Fast:
    """One round: one call, `generator_steps` steps from the meta-generator on a batch that is kept."""

    Config = FastConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "onehot"
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {**_OFFICIAL, "generator_steps": 10, "generator_lr": 2e-3, "latent_lr": 0.01},
        "official-5": {**_OFFICIAL, "generator_steps": 5, "generator_lr": 3e-3, "latent_lr": 0.01},
        "official-2": {**_OFFICIAL, "generator_steps": 2, "generator_lr": 5e-3, "latent_lr": 0.015},
    }

    def __init__(self, setting: Setting, config: FastConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.remembered = Remembered(config.bn_momentum, config.first_bn)
        self.first_renewed = False
        # θ. The generator itself is φ: one network, into which θ is copied at every call.
        self.meta = [] if config.meta == "none" else [p.detach().clone() for p in self._phi()]
        rate = config.meta_lr or config.generator_lr * config.generator_steps
        self.meta_optimizer = torch.optim.Adam(self.meta, lr=rate, betas=(0.5, 0.999)) if self.meta else None

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        self._begin()
        latents, best, means = Latents(imaging, config.latent_lr), Best(), Means()
        targets = shard(setting.targets(imaging.batch_size))
        gradients = [torch.zeros_like(theta) for theta in self.meta]
        for _ in setting.pace.inner(config.generator_steps):
            images = latents.images()
            terms = inversion_terms(setting, config, self.remembered, images, targets)
            best.offer(latents.backward(terms), images)
            if config.meta == "fomaml":
                torch._foreach_add_(gradients, [p.grad for p in self._phi() if p.grad is not None])
            latents.step()
            means.add(terms)
        self._lead(gradients)
        self.remembered.remember()
        imaging.keep(best.held[0])
        return means.values()

    def _phi(self) -> list[Tensor]:
        return list(self.imaging.generator.parameters())

    @torch.no_grad()
    def _begin(self) -> None:
        """φ <- θ with a fresh Adam; without a meta-generator φ goes on where it was."""
        config, imaging, adam = self.config, self.imaging, self.imaging.optimizer
        imaging.begin_round()  # keeps φ of a generator that it replaces, so θ is not yet copied into it
        reborn = imaging.optimizer is not adam
        if self.meta_optimizer is not None and not reborn:
            torch._foreach_copy_(self._phi(), self.meta)
            adam.state.clear()
        if config.reset_first and not self.first_renewed and self.setting.pace.fraction >= config.reset_first:
            renew_first(imaging.generator)
            self.first_renewed = True
        if self.meta_optimizer is not None:  # what was made anew is made anew in θ
            torch._foreach_copy_(self.meta, self._phi())
            if reborn:
                self.meta_optimizer.state.clear()

    @torch.no_grad()
    def _lead(self, gradients: list[Tensor]) -> None:
        """The outer step of θ, for which φ_K's last step makes no difference with FOMAML."""
        if self.meta_optimizer is None:
            return
        if self.config.meta == "reptile":
            gradients = [REPTILE * (theta - phi) for theta, phi in zip(self.meta, self._phi(), strict=True)]
        for theta, gradient in zip(self.meta, gradients, strict=True):
            theta.grad = gradient
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        return {
            "imaging": self.imaging.state_dict(),
            "remembered": self.remembered.state_dict(),
            "meta": self.meta,
            "meta_optimizer": self.meta_optimizer.state_dict() if self.meta_optimizer is not None else None,
            "first_renewed": self.first_renewed,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
        self.first_renewed = bool(state["first_renewed"])
        if self.meta_optimizer is not None:
            torch._foreach_copy_(self.meta, state["meta"])
            self.meta_optimizer.load_state_dict(state["meta_optimizer"])


def renew_first(generator: nn.Module) -> None:
    """Draws the first linear layer and the norm behind it anew: weights (the norm's too) N(0, 0.02), biases 0.

    Source: the Fast release. The small factor in front of the next block's norm is the norm's to undo; its sign stays.
    """
    for layer in (generator.linear, generator.norm):
        assert isinstance(layer, nn.Linear | nn.BatchNorm2d)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        nn.init.zeros_(layer.bias)
