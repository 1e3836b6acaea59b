"""CMI: inversion in which every image is told from all others, of this batch and of earlier ones.

    L_inv = bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]
            + contrast (mean_i CE(h(l_i) · h(g) / τ, i) + the same over earlier pairs)

l_i and g_i are what the teacher's norm layers are given of an image's part and of its whole (spatial means), h is a
perceptron with a hidden layer whose results have unit length; no gradient flows through h(g). A call begins with a new
generator and new latents, which learn as well; the batch of the least loss is kept, and its pairs (l, g).

Source: Fang et al. 2021, "Contrastive model inversion for data-free knowledge distillation", as released. Our
defaults differ: see the numbered list in docs/methods/cmi.md.
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
from datafree.synthesis.contrast import Contrast, described
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.inversion import Best, Latents
from datafree.synthesis.setting import Setting, student_mode
from datafree.synthesis.terms import Means
from datafree.synthesis.views import local_view


@dataclass(frozen=True, kw_only=True)
class CMIConfig:
    contrast: Annotated[float, "weight of the contrast between images"] = 0.8
    contrast_temperature: Annotated[float, "temperature of the contrast"] = 0.1
    contrast_bank: Annotated[int, "earlier images whose features are held; the oldest go first"] = 2048
    negatives: Annotated[int, "earlier images that a batch is told from, drawn at every step"] = 256
    adv: Annotated[float, "weight of the disagreement with the student, once it has begun"] = 0.5
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class drawn for an image"] = 0.5
    latent: flags.Latent = 256
    latent_lr: Annotated[float | None, "Adam's rate for the latents, 0: they stay; default: the generator's"] = None
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 1e-2
    generator_steps: flags.GeneratorSteps = 20
    student_steps: flags.StudentSteps = 200
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 1
    warmup: flags.Warmup = 0.2

    def __post_init__(self) -> None:
        not_negative(self, "contrast", "adv", "bn", "first_bn", "onehot", "latent_lr", "reset")
        positive(self, "contrast_temperature", "contrast_bank", "negatives", "latent", "generator_width")
        positive(self, "generator_lr", "generator_steps", "student_steps", "synthesis_batch", "bank")
        share(self, "warmup")
        choice(self)


# Of the release's scripts for CIFAR. Its pool drops nothing, its second bank holds 40,960 pairs.
_OFFICIAL: dict[str, Any] = {
    "contrast_bank": 40_960,
    "negatives": 4096,
    "generator_width": 64,
    "generator_lr": 1e-3,
    "generator_steps": 200,
    "synthesis_batch": 256,
    "batch_size": 128,
    "epochs": 200.0,
    "lr": 0.1,
    "weight_decay": 1e-4,
}


class CMI:
    """One round: one call, `generator_steps` steps of a new generator on a batch that is kept."""

    Config = CMIConfig
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
        # 40 calls with 2000 student steps each, after as many calls alone as make the 50,000 images it starts from.
        "official": {**_OFFICIAL, "student_steps": 2000, "warmup": 196 / 236, "bank": 60_416},
        "scratch": {**_OFFICIAL, "student_steps": 400, "warmup": 0.0, "bank": 51_200, "onehot": 1.0},
    }

    def __init__(self, setting: Setting, config: CMIConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.contrast: Contrast | None = None
        if config.contrast:
            self.contrast = Contrast(
                setting,
                temperature=config.contrast_temperature,
                capacity=config.contrast_bank,
                negatives=config.negatives,
                lr=config.generator_lr,
            )

    def update(self) -> dict[str, float]:
        setting, config, imaging, contrast = self.setting, self.config, self.imaging, self.contrast
        imaging.begin_round()
        rate = config.generator_lr if config.latent_lr is None else config.latent_lr
        latents, best, means = Latents(imaging, rate), Best(), Means()
        targets = shard(setting.targets(imaging.batch_size))
        head = [] if contrast is None else list(contrast.head.parameters())
        for _ in setting.pace.inner(config.generator_steps):
            images = latents.images()
            terms, pairs = self._terms(images, targets)
            best.offer(latents.backward(terms, head), images, *pairs)
            latents.step()
            if contrast is not None:
                contrast.step()
            means.add(terms)
        imaging.keep(best.held[0])
        if contrast is not None:
            contrast.remember(*best.held[1:])
        return means.values()

    def _terms(self, images: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The weighted terms, and the features of part and whole where there is a contrast."""
        setting, config = self.setting, self.config
        view = setting.view(images)
        if self.contrast is None:
            teacher, _, seen, _ = setting.teacher.look(view, statistics=config.bn > 0)
        else:
            teacher, whole, seen = described(setting.teacher, view, statistics=config.bn > 0)
        terms = {"onehot": config.onehot * F.cross_entropy(raised(teacher), targets)}
        if seen:
            terms["bn"] = config.bn * losses.batch_norm_statistics(seen, config.first_bn)
        if config.adv and not setting.pace.warming:
            with student_mode(setting.student, config.student_mode):
                student = setting.student(view)
            terms["adv"] = -config.adv * losses.disagreement(student, teacher, config.distance, config.masked)
        if self.contrast is None:
            return terms, ()
        part = described(setting.teacher, local_view(images, setting.rng, flip=setting.domain.flip))[1]
        terms["contrast"] = config.contrast * self.contrast.term(part, whole)
        return terms, (part, whole)

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        contrast = None if self.contrast is None else self.contrast.state_dict()
        return {"imaging": self.imaging.state_dict(), "contrast": contrast}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        if self.contrast is not None:
            self.contrast.load_state_dict(state["contrast"])
