"""Blend: what has been shown to pay, in one method. Images of a class asked for, on which student and teacher disagree.

    L_G = bn Σ_l (||σ²_l - σ̃²_l|| + ||μ_l - μ̃_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]

y is the class that the generator was given, beside a latent, as the teacher's own last-layer row (Qimera, Choi et al.
2021); σ̃ and μ̃ mix this batch with earlier ones (Fast, Fang et al. 2022); the adversarial term counts where both still
decide alike (CMI, Fang et al. 2021). The generator is made anew every `reset` rounds, so that the bank holds images of
several. What each part is worth: docs/methods/blend.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.config import (
    BankSize,
    Distance,
    Embedding,
    Feed,
    FirstNorm,
    GeneratorLr,
    GeneratorName,
    GeneratorSteps,
    GeneratorWidth,
    Latent,
    Masked,
    NormMomentum,
    Output,
    Reset,
    SampleMode,
    StudentMode,
    StudentSteps,
    SynthesisBatch,
    Warmup,
    choice,
    not_negative,
    positive,
    share,
)
from datafree.losses.precision import raised
from datafree.parallel import shard
from datafree.synthesis.embeddings import class_embeddings
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Batch, Setting, student_mode


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    adv: Annotated[float, "weight of the disagreement with the student, once it has begun"] = 1.1
    distance: Distance = "kl"
    masked: Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 10.0
    bn_momentum: NormMomentum = 0.9
    first_bn: FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class asked for"] = 0.5
    embedding: Embedding = "teacher"
    view: Annotated[bool, "show teacher and student the images cropped and, where labels allow, flipped"] = True
    latent: Latent = 256
    generator: GeneratorName = "auto"
    generator_width: GeneratorWidth = None
    output: Output = "sigmoid"
    generator_lr: GeneratorLr = 4e-3
    generator_steps: GeneratorSteps = 5
    student_steps: StudentSteps = 40
    synthesis_batch: SynthesisBatch = None
    student_mode: StudentMode = "eval"
    feed: Feed = "bank"
    sample_mode: SampleMode = "train"
    bank: BankSize = 20_000
    reset: Reset = 20
    warmup: Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        share(self, "bn_momentum", "warmup")
        choice(self, "distance", "generator", "output", "student_mode", "feed", "sample_mode")


class Blend:
    """One round: `generator_steps` steps of the generator on the terms above."""

    Config = BlendConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"

    def __init__(self, setting: Setting, config: BlendConfig) -> None:
        self.setting, self.config = setting, config
        self.imaging = Imaging(setting, config, class_embeddings(config.embedding, setting))
        self.store = self.imaging.store
        self.remembered = Remembered(config.bn_momentum, config.first_bn)

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        sums: dict[str, Tensor] = {}
        for _ in range(config.generator_steps):
            targets = shard(setting.targets(imaging.batch_size))
            images = imaging.images(targets)
            shown = setting.view(images) if config.view else images
            teacher, _, seen = setting.teacher.look(shown, statistics=config.bn > 0)
            terms = {"onehot": config.onehot * F.cross_entropy(raised(teacher), targets)}
            if seen:
                terms["bn"] = config.bn * self.remembered.term(seen)
            if config.adv and not setting.pace.warming:
                with student_mode(setting.student, config.student_mode):
                    student = setting.student(shown)
                terms["adv"] = -config.adv * losses.disagreement(student, teacher, config.distance, config.masked)
            imaging.step(terms)
            imaging.keep(images)
            sums = {name: sums.get(name, 0.0) + term.detach() for name, term in terms.items()}
        self.remembered.remember()
        return {name: float(value) / config.generator_steps for name, value in sums.items()}

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.imaging.sample(n)

    def state_dict(self) -> dict[str, Any]:
        return {"imaging": self.imaging.state_dict(), "remembered": self.remembered.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
