"""DeepInversion: smooth images that a teacher takes for a class, and that match what its batch norm remembers.

    L_x = onehot CE(t(A(x)), y) + bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + tv TV(A(x)) + l2 mean ||A(x)||
          + adv (1 - D(t/3, s/3))                                                                      [adaptive]

A rolls and mirrors the whole batch. The adaptive term asks for images that the student does not yet decide as the
teacher does; D is their Jensen-Shannon divergence. There is no generator: a round optimises the pixels of one batch,
and adds it to the bank.

Source: Yin et al. 2020, "Dreaming to distill: data-free knowledge transfer via DeepInversion", eqs. 2-8. The student's
training was never released; its settings are those of the common re-implementation. Where our defaults differ: see the
numbered list in docs/methods/deepinversion.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional as F

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive, share
from datafree.losses.precision import raised
from datafree.parallel import shard
from datafree.synthesis.pixels import (
    Descent,
    descend,
    halved,
    moved,
    noise,
    patches_weight,
    pixel_space,
    takes_half,
    whole_batch,
)
from datafree.synthesis.setting import Batch, Setting, student_mode, usual_batch
from datafree.synthesis.store import Store

TEMPERATURE = 3.0  # of the adaptive term
HALF = 2 / 3  # share of the steps at half the size: 2000 of the release's 3000


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig:
    onehot: Annotated[float, "weight of the cross-entropy with the class drawn for an image"] = 1.0
    bn: Annotated[float, "weight of the batch-norm statistics"] = 10.0
    first_bn: flags.FirstNorm = 1.0
    adaptive: Annotated[bool, "ask for images on which the student disagrees, once it has begun"] = True
    adv: Annotated[float, "weight of that disagreement"] = 0.2
    distance: flags.Distance = "js"
    masked: flags.Masked = False
    student_mode: flags.StudentMode = "eval"
    tv_l1: Annotated[float, "weight of the total variation of normalised images, as mean differences"] = 0.0
    tv_l2: Annotated[float, "weight of the total variation of normalised images, as norms over the batch"] = 1e-3
    l2: Annotated[float, "weight of the normalised images' mean norm"] = 0.0
    patches: Annotated[
        float | None, "weight of the entropy of patch similarities; default: 1 for a vision transformer, else 0"
    ] = None
    jitter: Annotated[int | None, "roll a batch by at most so many pixels; default: a sixteenth of the width"] = None
    multi_resolution: Annotated[bool, "take the first two thirds of a batch's steps at half the size"] = False
    pixel_steps: Annotated[int, "steps a round, on the pixels of one batch"] = 100
    pixel_lr: Annotated[float, "Adam's highest rate for the pixels, in normalised space"] = 0.1
    pixel_betas: Annotated[flags.Floats, "Adam's betas for the pixels"] = (0.5, 0.9)
    rise: Annotated[
        float, "share of a batch's steps (of those at the first size) over which the rate rises; a cosine follows"
    ] = 0.05
    student_steps: flags.StudentSteps = 100
    synthesis_batch: flags.SynthesisBatch = None
    bank: flags.BankSize = 20_000
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "onehot", "bn", "first_bn", "adv", "tv_l1", "tv_l2", "l2", "patches", "jitter")
        positive(self, "pixel_steps", "pixel_lr", "student_steps", "synthesis_batch", "bank")
        share(self, "rise", "warmup")
        choice(self)
        if len(self.pixel_betas) != 2 or not all(0 <= beta < 1 for beta in self.pixel_betas):
            raise ValueError(f"--pixel-betas is {self.pixel_betas}: give two numbers from 0 to below 1, such as .5,.9")


class DeepInversion:
    """One round: `pixel_steps` steps on one batch, of which the one of the lowest loss is kept."""

    Config = DeepInversionConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "onehot"
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        # The release's page for CIFAR-10, "paper parameters": its competition is off.
        "official": {
            "bn": 10.0, "adaptive": False, "tv_l2": 2.5e-5, "jitter": 2, "pixel_steps": 2000, "pixel_lr": 0.05,
            "pixel_betas": (0.9, 0.999), "synthesis_batch": 256,
        },
        # The release for ImageNet, setting 0, with the weights on its page; of the competition it names the paper's.
        "imagenet": {
            "bn": 0.01, "first_bn": 10.0, "adv": 0.2, "tv_l2": 1e-4, "l2": 1e-5, "jitter": 30, "multi_resolution": True,
            "pixel_steps": 3000, "pixel_lr": 0.25, "synthesis_batch": 84,
        },
        # The common re-implementation, which has a student: 200 epochs, one call and 400 student steps each.
        "zju": {
            "bn": 10.0, "adv": 1.0, "tv_l1": 1e-3, "tv_l2": 0.0, "jitter": 4,
            "pixel_steps": 1000, "pixel_lr": 0.1, "pixel_betas": (0.5, 0.99),
            "rise": 0.0, "synthesis_batch": 256, "student_steps": 400, "bank": 51_200, "warmup": 0.0,
            "batch_size": 256, "epochs": 200.0, "lr": 0.1, "weight_decay": 1e-4,
        },
    }  # fmt: skip

    def __init__(self, setting: Setting, config: DeepInversionConfig) -> None:
        self.setting, self.config = setting, config
        self.store = Store(setting, "bank", config.bank)
        self.state_dict, self.load_state_dict = self.store.state_dict, self.store.load_state_dict
        self.space = pixel_space(setting)
        self.batch_size = config.synthesis_batch or usual_batch(setting.batch_size)
        self.patches = patches_weight(config.patches, setting)
        self.jitter = max(1, setting.domain.shape[2] // 16) if config.jitter is None else config.jitter
        networks = (setting.teacher.classifier, setting.student)
        self.shown_small = config.multi_resolution and takes_half(networks, setting.domain.shape)
        first, second = config.pixel_betas
        half = HALF if config.multi_resolution else 0.0
        self.descent = Descent(config.pixel_lr, (first, second), config.pixel_steps, config.rise, half)

    def update(self) -> dict[str, float]:
        setting, space = self.setting, self.space
        targets = shard(setting.targets(self.batch_size))

        def objective(pixels: Tensor, small: bool) -> dict[str, Tensor]:
            return self.terms(self.view(pixels, small), targets)

        with student_mode(setting.student, self.config.student_mode):
            pixels, terms = descend(
                noise(setting, self.batch_size, space),
                objective,
                self.descent,
                space,
                setting.pace.inner(self.config.pixel_steps),
            )
        self.store.keep(space.images(pixels))
        return terms

    def view(self, pixels: Tensor, small: bool) -> Tensor:
        """A(x): rolled and, where labels allow, mirrored as a whole; `small`: at half the size, by half as much."""
        most = self.jitter // 2 if small else self.jitter
        return moved(halved(pixels) if small else pixels, self.setting.rng, most, flip=self.setting.domain.flip)

    def terms(self, view: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of normalised images (N, C, H, W) that are asked to be of these classes, int64 (N,)."""
        setting, config = self.setting, self.config
        size = setting.domain.shape[1:]
        images = self.space.shown(view)
        if images.shape[2:] != size and not self.shown_small:
            images = F.interpolate(images, size=size, mode="bilinear")
        seen = setting.teacher.look(images, statistics=config.bn > 0, tokens=True)
        terms = {"onehot": config.onehot * F.cross_entropy(raised(seen.logits), targets)}
        if seen.statistics:
            terms["bn"] = config.bn * losses.batch_norm_statistics(seen.statistics, config.first_bn)
        if config.adaptive and config.adv and not setting.pace.warming:
            student, teacher = (raised(logits) / TEMPERATURE for logits in (setting.student(images), seen.logits))
            distance = losses.disagreement(student, teacher, config.distance, config.masked)
            terms["adv"] = config.adv * (1 - distance)
        if self.patches:
            terms["patches"] = -self.patches * losses.patch_similarity_entropy(seen.tokens)
        whole = whole_batch(view)
        if config.tv_l1:
            terms["tv_l1"] = config.tv_l1 * losses.total_variation(whole, "l1")
        if config.tv_l2:
            terms["tv_l2"] = config.tv_l2 * losses.total_variation(whole, "l2")
        if config.l2:
            terms["l2"] = config.l2 * losses.image_norm(whole, per_image=True)
        return terms

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.store.sample(n, lambda count: self.space.images(noise(self.setting, count, self.space)))
