"""NAYER: the class's row through a noisy layer that is drawn anew for every batch, in the place of a latent vector.

    x = G(L(e_y)),
    L_G = bn Σ_l (||σ²_l - σ̃²_l|| + ||μ_l - μ̃_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]

e_y is what the class y is to the generator, L a linear layer with weights from N(0, 1). A layer serves every class once
(K to 1), a batch has as many as it holds each class, and all are trained together with G. Of the steps on one draw the
batch of the lowest loss is kept.

Source: Tran et al. 2024, "NAYER: noisy layer data generation for efficient and effective data-free knowledge
distillation", with the release's running average of the statistics (Fast, Fang et al. 2022) and masked adversarial term
(CMI, Fang et al. 2021). Our defaults differ: see the numbered list in docs/methods/nayer.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.config import (
    BankSize,
    Distance,
    Embedding,
    FirstNorm,
    GeneratorLr,
    GeneratorName,
    GeneratorSteps,
    GeneratorWidth,
    Masked,
    NormMomentum,
    Reset,
    StudentMode,
    StudentSteps,
    SynthesisBatch,
    Warmup,
    choice,
    not_negative,
    positive,
    share,
)
from datafree.generators import GENERATORS
from datafree.generators.noisy import Noisy
from datafree.losses.precision import raised
from datafree.parallel import average_gradients, rank, shard, synchronise
from datafree.synthesis.embeddings import class_embeddings
from datafree.synthesis.imaging import choose_generator
from datafree.synthesis.inversion import Best
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Batch, Setting, student_mode
from datafree.synthesis.store import Store
from datafree.synthesis.terms import add_terms


@dataclass(frozen=True, kw_only=True)
class NAYERConfig:
    adv: Annotated[float, "weight of the disagreement with the student, once it has begun"] = 1.33
    distance: Distance = "kl"
    masked: Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 10.0
    bn_momentum: NormMomentum = 0.9
    first_bn: FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class asked for"] = 0.5
    embedding: Embedding = "teacher"
    latent: Annotated[int, "size of the noisy layer's output"] = 256
    generator: GeneratorName = "auto"
    generator_width: GeneratorWidth = None
    generator_lr: GeneratorLr = 4e-3
    generator_steps: GeneratorSteps = 10
    student_steps: StudentSteps = 40
    synthesis_batch: SynthesisBatch = None
    student_mode: StudentMode = "eval"
    bank: BankSize = 20_000
    reset: Reset = 20
    warmup: Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        share(self, "bn_momentum", "warmup")
        choice(self, "distance", "generator", "student_mode")


class NAYER:
    """One round: a draw of the noisy layers, and `generator_steps` steps on it with an Adam of its own."""

    Config = NAYERConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    # CIFAR-10 after 100 epochs of 400 student steps, with two draws an epoch and 200 draws before them.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            "batch_size": 512,
            "epochs": 100.0,
            "lr": 0.2,
            "weight_decay": 1e-4,
            "temperature": 20.0,
            "latent": 1000,
            "generator": "small",
            "generator_width": 64,
            "generator_steps": 30,
            "student_steps": 200,
            "synthesis_batch": 400,
            "bank": 160_000,
            "reset": 20,
            "warmup": 0.5,
        }
    }
    NEEDS_STATISTICS = "bn"

    def __init__(self, setting: Setting, config: NAYERConfig) -> None:
        self.setting, self.config, domain = setting, config, setting.domain
        self.batch_size = config.synthesis_batch or min(64, setting.batch_size)
        name, width = choose_generator(config.generator, config.generator_width, domain.shape)
        self.name, self.width = name, width
        network = Noisy(
            GENERATORS[name](config.latent, domain.shape, width),
            class_embeddings(config.embedding, setting),
            config.latent,
            self.batch_size,
        )
        self.generator = network.to(setting.device).to(memory_format=torch.channels_last)
        synchronise(self.generator)
        self.store = Store(setting, "bank", config.bank)
        self.remembered = Remembered(config.bn_momentum, config.first_bn)
        self.rounds = 0

    def targets(self) -> Tensor:
        """Every class in turn, as often as it fits in, then draws; all drawn where there is a prior. int64 (B,)."""
        classes, drawn = self.setting.domain.classes, self.setting.targets(self.batch_size)
        if self.setting.prior is not None:
            return drawn
        whole = self.batch_size // classes * classes
        return torch.cat([torch.arange(whole, device=drawn.device) % classes, drawn[whole:]])

    def images(self, targets: Tensor) -> Tensor:
        """This process's slice of the images of a batch of classes, with gradients."""
        mine = shard(targets)
        self.generator.train()
        images: Tensor = self.generator(mine, rank() * len(mine))
        return images

    def terms(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of this process's images and their classes."""
        setting, config = self.setting, self.config
        shown = setting.view(images)
        teacher, _, seen = setting.teacher.look(shown, statistics=config.bn > 0)
        terms = {"onehot": config.onehot * F.cross_entropy(raised(teacher), targets)}
        if seen:
            terms["bn"] = config.bn * self.remembered.term(seen)
        if config.adv and not setting.pace.warming:
            with student_mode(setting.student, config.student_mode):
                student = setting.student(shown)
            terms["adv"] = -config.adv * losses.disagreement(student, teacher, config.distance, config.masked)
        return terms

    def update(self) -> dict[str, float]:
        config, parameters = self.config, list(self.generator.parameters())
        if config.reset and self.rounds and self.rounds % config.reset == 0:
            for module in self.generator.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.rounds += 1
        self.generator.noise.reset_parameters()
        optimizer = torch.optim.Adam(parameters, lr=config.generator_lr, betas=(0.5, 0.999))
        targets = self.targets()
        best, steps, sums = Best(), 0, dict[str, Tensor]()
        for _ in self.setting.pace.inner(config.generator_steps):
            images = self.images(targets)
            terms = self.terms(images, shard(targets))
            loss = torch.stack(list(terms.values())).sum()
            torch.autograd.backward(loss, inputs=parameters)
            average_gradients(parameters)
            optimizer.step()
            optimizer.zero_grad()
            best.offer(loss, images)
            steps, sums = steps + 1, add_terms(sums, terms)
        self.store.keep(best.held[0])
        self.remembered.remember()
        return {name: float(value) / steps for name, value in sums.items()}

    def about(self) -> dict[str, Any]:
        """What is needed to build the generator again."""
        return {
            "generator": self.name,
            "latent": self.config.latent,
            "shape": self.setting.domain.shape,
            "width": self.width,
            "normalisation": None,
            "embeddings": list(self.generator.get_buffer("embeddings").shape),
            "batch": self.batch_size,
        }

    def grown(self) -> dict[str, Tensor]:
        """The generator's weights."""
        return dict(self.generator.state_dict())

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.store.sample(n, self.fresh)

    def fresh(self, n: int) -> Tensor:
        raise AssertionError("a round fills the bank before the student draws from it")

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "store": self.store.state_dict(),
            "remembered": self.remembered.state_dict(),
            "rounds": self.rounds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.store.load_state_dict(state["store"])
        self.remembered.load_state_dict(state["remembered"])
        self.rounds = int(state["rounds"])
