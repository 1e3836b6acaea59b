"""ZeroQ: images whose statistics in the teacher are what its batch norm remembers; made to calibrate quantisation.

    L_x = bn Σ_l (||μ_l - μ̂_l||² + ||σ_l - σ̂_l||²) + input (||mean(x)||² + ||std(x) - 1||²)

x is normalised: the last term wants each colour to have the data's mean and spread. There are no classes, no student
and no generator. `calibration_images` makes a set without any run.

Source: Cai et al. 2020, "ZeroQ: a novel zero shot quantization framework", eq. 3; 500 steps of Adam at 0.5 on batches
of 32. Where our defaults differ: see the numbered list in docs/methods/zeroq.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree import config as flags
from datafree import losses
from datafree.domain import Domain
from datafree.fields import not_negative, positive, share
from datafree.losses import Statistics
from datafree.parallel import channel_statistics, gather
from datafree.synthesis.pixels import Descent, descend, noise, patches_weight, pixel_space
from datafree.synthesis.setting import Batch, Setting, usual_batch
from datafree.synthesis.store import Store
from datafree.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class ZeroQConfig:
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    first_bn: flags.FirstNorm = 1.0
    input: Annotated[float, "weight of the images' own mean and spread"] = 1.0
    patches: Annotated[
        float | None, "weight of the entropy of patch similarities; default: 1 for a vision transformer, else 0"
    ] = None
    pixel_steps: Annotated[int, "steps a round, on the pixels of one batch"] = 100
    pixel_lr: Annotated[float, "Adam's highest rate for the pixels, in normalised space"] = 0.5
    rise: Annotated[float, "share of a batch's steps over which the rate rises; a cosine follows"] = 0.0
    student_steps: flags.StudentSteps = 100
    synthesis_batch: flags.SynthesisBatch = None
    bank: flags.BankSize = 20_000
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "bn", "first_bn", "input", "patches")
        positive(self, "pixel_steps", "pixel_lr", "student_steps", "synthesis_batch", "bank")
        share(self, "rise", "warmup")


class ZeroQ:
    """One round: `pixel_steps` steps on one batch, of which the one of the lowest loss is kept."""

    Config = ZeroQConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = False
    PRESETS: Mapping[str, Mapping[str, Any]] = {"official": {"pixel_steps": 500, "synthesis_batch": 32}}

    def __init__(self, setting: Setting, config: ZeroQConfig) -> None:
        self.setting, self.config = setting, config
        self.store = Store(setting, "bank", config.bank)
        self.state_dict, self.load_state_dict = self.store.state_dict, self.store.load_state_dict
        self.space = pixel_space(setting)
        self.batch_size = config.synthesis_batch or usual_batch(setting.batch_size)
        self.patches = patches_weight(config.patches, setting)
        self.descent = Descent(config.pixel_lr, (0.9, 0.999), config.pixel_steps, config.rise)

    def update(self) -> dict[str, float]:
        setting, space = self.setting, self.space
        pixels, terms = descend(
            noise(setting, self.batch_size, space),
            lambda pixels, _: self.terms(pixels),
            self.descent,
            space,
            setting.pace.inner(self.config.pixel_steps),
        )
        self.store.keep(space.images(pixels))
        return terms

    def terms(self, pixels: Tensor) -> dict[str, Tensor]:
        """The weighted terms of normalised images (N, C, H, W)."""
        config = self.config
        seen = self.setting.teacher.look(self.space.shown(pixels), statistics=config.bn > 0, tokens=True)
        mean, var = channel_statistics(pixels)
        wanted = Statistics(mean, var, torch.zeros_like(mean), torch.ones_like(var))
        terms = {"input": config.input * losses.squared_moments([wanted])}
        if seen.statistics:
            first, *others = [losses.squared_moments([layer]) for layer in seen.statistics]
            terms["bn"] = config.bn * torch.stack([config.first_bn * first, *others]).sum()
        if self.patches:
            terms["patches"] = -self.patches * losses.patch_similarity_entropy(seen.tokens)
        return terms

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.store.sample(n, lambda count: self.space.images(noise(self.setting, count, self.space)))


def calibration_images(
    teacher: Teacher, domain: Domain, n: int, config: ZeroQConfig | None = None, *, seed: int = 0
) -> Tensor:
    """Images that a network's activations can be measured on, in the place of real ones, before it is quantised.

    Args:
        teacher: the network, frozen.
        domain: shape and normalisation of its images.
        n: how many, >= 1; made in batches of `config.synthesis_batch` (default 32, as published).
        config: default: 500 steps a batch, as published.
        seed: of the noise that they begin as.

    Returns:
        (n, C, H, W) in [0, 1], where the teacher is.
    """
    config = config or ZeroQConfig(pixel_steps=500)
    device = teacher.classifier.get_buffer("mean").device
    batch_size = config.synthesis_batch or 32
    rng = torch.Generator(device).manual_seed(seed)
    # Nothing here looks at a student.
    setting = Setting(
        teacher=teacher, student=teacher.classifier, domain=domain, batch_size=batch_size, rng=rng, device=device
    )
    method, made = ZeroQ(setting, config), []
    for _ in range(-(-n // batch_size)):
        method.update()
        assert method.store.last is not None
        made.append(gather(method.store.last))
    return torch.cat(made)[:n]
