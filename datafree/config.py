"""One definition of a hyper-parameter: a dataclass field gives default, flag, manifest entry and docs row.

Imports nothing heavy: the command line reads it before anything else.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from datafree import fields
from datafree.fields import check_kinds, choice, not_negative, parse_duration, positive, share

Floats = tuple[float, ...]


def source_of(spec: str) -> tuple[Path, str]:
    """File and class of "module:Class", found without loading it; ValueError where there is no such module."""
    module, _, name = spec.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ValueError(f"there is no module {module}, where {name} should be: correct the registry's line")
    return Path(found.origin), name


@functools.cache
def light_config(spec: str) -> type:
    """The Config class of a method without importing its file, which would load torch for a second or two.

    The class is compiled alone: it may use what `datafree.config` (itself as `flags`) and `datafree.fields` offer,
    `dataclass` and `typing` names, nothing else.

    Args:
        spec: "module:Class" as the registry has it; the class's configuration is called ClassConfig, or is one of
            this file's (`Config = NoOptions`).

    Raises:
        ValueError: it is called something else, or there is no such module.
    """
    file, name = source_of(spec)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    body = classes[name].body if name in classes else []
    said = [ast.unparse(line) for line in body if isinstance(line, ast.Assign)]
    shared: list[type] = [kind for known, kind in globals().items() if f"Config = {known}" in said]
    if shared:
        return shared[0]
    own = classes.get(f"{name}Config")
    if own is None:
        raise ValueError(f"{file} has no class {name}Config: call the configuration of {name} so")
    space = {**vars(fields), **globals(), "flags": sys.modules[__name__], "__name__": spec.partition(":")[0]}
    exec(compile(ast.Module(body=[own], type_ignores=[]), str(file), "exec", dont_inherit=True), space)
    result: type = space[f"{name}Config"]
    return result


# Field types that several methods share, so that a flag means the same everywhere.

Latent = Annotated[int, "size of the generator's latent vector"]
GeneratorName = Annotated[
    Literal["auto", "small", "large", "dcgan"], "generator; auto takes dcgan from 64 px and small below"
]
GeneratorWidth = Annotated[int | None, "channels of the generator's last map; default: 32, 16 for grey images"]
Output = Annotated[
    Literal["sigmoid", "standardised"],
    "how the generator ends: a sigmoid, or standardised over the batch to the mean and spread of the data's constants",
]
GeneratorLr = Annotated[float, "Adam's rate for the generator"]
GeneratorSteps = Annotated[int, "generator steps a round"]
StudentSteps = Annotated[int, "student steps a round"]
Feed = Annotated[
    Literal["bank", "fresh", "last"],
    "what the student learns from: a replay bank, fresh images at every step, or the generator's last batch, "
    "which is then as large as the student's",
]
BankSize = Annotated[int, "images the bank holds; the oldest go first"]
Reset = Annotated[int, "re-initialise the generator every so many rounds; 0: never"]
SynthesisBatch = Annotated[int | None, "images a synthesis step; default: the batch size, 64 at most"]
Eviction = Annotated[
    Literal["fifo", "priority"], "which images leave a full bank: the oldest, or those on which both agree most"
]
Distance = Annotated[Literal["kl", "l1", "js"], "disagreement of student and teacher"]
Masked = Annotated[bool, "disagree only where student and teacher still decide alike"]
FirstNorm = Annotated[float, "weight of the first batch norm's statistics beside the other layers'"]
NormMomentum = Annotated[float, "share of earlier batches in the matched statistics; 0: this batch alone"]
SampleMode = Annotated[
    Literal["train", "eval"], "mode of the generator's batch norm when the student's images are made afresh"
]
Embedding = Annotated[
    str, "what a class is to the generator: teacher (rows of its last layer), onehot, orthogonal, or a file"
]
StudentMode = Annotated[Literal["train", "eval"], "mode of the student's batch norm while the generator is trained"]
Warmup = Annotated[float, "share of the run that synthesizes alone, before the student starts"]


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """How a network is trained; None means the job's or the method's default."""

    lr: Annotated[float | None, "peak learning rate"] = None
    optimizer: Annotated[Literal["sgd", "adam"] | None, "optimiser"] = None
    momentum: Annotated[float, "SGD's (Nesterov) momentum"] = 0.9
    weight_decay: Annotated[float | None, "L2 weight decay"] = None
    schedule: Annotated[
        Literal["cosine", "multistep", "constant"] | None, "learning rate over the run; default: cosine"
    ] = None
    milestones: Annotated[
        Floats | None, "shares of the run at which multistep divides the rate by 10; default: .5,.75"
    ] = None
    ema: Annotated[float, "decay of the weights' moving average, which is then the result; 0: off"] = 0.0
    gradient_clip: Annotated[float | None, "largest norm of the network's gradient; default: not clipped"] = None
    steps: Annotated[int | None, "training steps"] = None
    epochs: Annotated[float | None, "length in epochs"] = None
    budget: Annotated[str | None, "length in wall-clock time, such as 15m; schedules follow it"] = None
    batch_size: Annotated[
        int | None, "images a step; default: 256 at 32 px and below (64 without norm layers), 8 at 224 px"
    ] = None

    def __post_init__(self) -> None:
        check_kinds(self)
        positive(self, "lr", "steps", "epochs", "batch_size", "gradient_clip")
        not_negative(self, "weight_decay")
        share(self, "momentum", "ema")
        choice(self)
        if sum(v is not None for v in (self.steps, self.epochs, self.budget)) > 1:
            raise ValueError("--steps, --epochs and --budget exclude each other: give one")
        if self.budget is not None:
            parse_duration(self.budget)
        if any(not 0 < m < 1 for m in self.milestones or ()):
            raise ValueError(
                f"--milestones is {self.milestones}: give shares of the run between 0 and 1, such as .5,.75"
            )


MOST_THREADS = 1024  # libraries that cannot start so many end the program


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Where and how a job runs."""

    device: Annotated[str, "cpu, cuda, cuda:1; auto takes cuda where there is one"] = "auto"
    precision: Annotated[Literal["32", "bf16"], "arithmetic of the networks"] = "32"
    threads: Annotated[int | None, "CPU threads; default: as many as torch sees"] = None
    seed: Annotated[int, "seed of every random draw"] = 0
    download: Annotated[bool, "allow downloads of data and of torchvision's and timm's weights"] = False

    def __post_init__(self) -> None:
        check_kinds(self)
        positive(self, "threads")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(f"--threads is {self.threads}: give {MOST_THREADS:,} or fewer")
        not_negative(self, "seed")
        choice(self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimisationConfig, MachineConfig):
    """`datafree train`: everything but the method's own hyper-parameters."""

    epochs: Annotated[float | None, "length in epochs, of 400 student steps each"] = None
    budget: Annotated[
        str | None,
        "length in wall-clock time, such as 15m; schedules follow it; default: 30m, without --teacher 1,000 steps",
    ] = None
    teacher: Annotated[
        str | None, "checkpoint, run folder, torchvision:NAME or timm:NAME; default: trained on digits"
    ] = None
    arch: Annotated[str | None, "the teacher's architecture: a name or file.py:function, which runs that file"] = None
    student: Annotated[
        str | None,
        "student: a name or file.py:function; default: the next smaller network of the family, or a small one",
    ] = None
    method: Annotated[str, "synthesis method (datafree list methods)"] = "blend"
    source: Annotated[
        str | None,
        "instead of a method's images condensed:FOLDER, both half and half condensed:FOLDER+METHOD, or real data: real",
    ] = None
    data: Annotated[
        str | None, "domain of the images; its test data, if there, serve the log and the last evaluation only"
    ] = None
    shape: Annotated[str | None, "image size CxHxW, such as 3x32x32, where no data set is named"] = None
    classes: Annotated[int | None, "number of classes, where no data set is named"] = None
    mean: Annotated[Floats | None, "the teacher's normalisation, such as .485,.456,.406"] = None
    std: Annotated[Floats | None, "the teacher's normalisation, such as .229,.224,.225"] = None
    preset: Annotated[
        str | None, "a method's published settings by the name of the release, such as official; flags go before them"
    ] = None
    prior: Annotated[
        Floats | None, "share of each class among the images, one value a class, 0 leaves it out; default: all alike"
    ] = None
    criterion: Annotated[Literal["kl", "l1", "mse"] | None, "what the student matches; default: the method's"] = None
    inherit: Annotated[
        bool | None, "begin with the teacher's layers of the same name and shape; default: the method's"
    ] = None
    attention: Annotated[float | None, "weight of the attention transfer beside it, 0: off; default: the method's"] = (
        None
    )
    temperature: Annotated[float | None, "temperature of kl; default: the method's"] = None
    augment: Annotated[
        bool | None, "crop and, where labels allow, flip the student's images; default: the method's"
    ] = None
    flip: Annotated[
        bool | None, "mirror images at random; default: coloured images whose labels allow it (digits' do not)"
    ] = None
    validation: Annotated[
        bool,
        "test on the tenth of the training images that is held out for it, not on the test set: to choose settings",
    ] = False
    evaluations: Annotated[int, "times the student is tested for the log, if test data are there"] = 10
    checkpoint_every: Annotated[float, "seconds between checkpoints"] = 60.0

    def __post_init__(self) -> None:
        OptimisationConfig.__post_init__(self)
        MachineConfig.__post_init__(self)
        positive(self, "classes", "temperature", "checkpoint_every")
        not_negative(self, "evaluations", "attention")
        if self.prior is not None and not (all(0 <= p < math.inf for p in self.prior) and any(self.prior)):
            raise ValueError(f"--prior is {self.prior}: give one share a class, 0 or more, not all 0")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimisationConfig, MachineConfig):
    """`datafree pretrain`: a network trained on real data, as a teacher or as the baseline "student with data"."""

    data: Annotated[str, "data set (datafree list data)"] = "digits"
    arch: Annotated[str, "network: a name or file.py:function, which runs that file"] = "lenet5"
    mean: Annotated[Floats | None, "normalisation, one value a channel"] = None
    std: Annotated[Floats | None, "normalisation, one value a channel"] = None
    augment: Annotated[bool, "crop and, where labels allow, flip"] = True
    flip: Annotated[
        bool | None, "mirror images at random; default: where labels allow, which of other data coloured images' do"
    ] = None
    batch_size: Annotated[int | None, "images a step; default: 128"] = None
    checkpoint_every: Annotated[float, "seconds between checkpoints"] = 60.0

    def __post_init__(self) -> None:
        OptimisationConfig.__post_init__(self)
        MachineConfig.__post_init__(self)
        positive(self, "checkpoint_every")


# Field types that several condensation methods share.

RealBatch = Annotated[int, "real images a class and step"]


@dataclass(frozen=True, kw_only=True)
class CondenseConfig(MachineConfig):
    """`datafree condense`: everything but the method's own hyper-parameters. None: the method's default."""

    data: Annotated[str, "data set to condense (datafree list data, npz:PATH, imagefolder:PATH)"] = "digits"
    method: Annotated[str, "condensation method (datafree list condensers)"] = "frepo"
    ipc: Annotated[int | None, "images per class; default: 10"] = None
    images: Annotated[int | None, "images in all, shared out by the classes' sizes; instead of --ipc"] = None
    allow_fewer: Annotated[bool, "take all images of a class that has fewer than asked for"] = False
    validation: Annotated[
        bool, "leave out the tenth of the training images that `evaluate --validation` tests on, to choose settings"
    ] = False
    arch: Annotated[str, "networks to look through: a name or file.py:function; auto: ConvNet by image size"] = "auto"
    mean: Annotated[Floats | None, "normalisation, one value a channel; default: the data set's"] = None
    std: Annotated[Floats | None, "normalisation, one value a channel; default: the data set's"] = None
    flip: Annotated[
        bool | None, "mirror images at random; default: where labels allow, which of other data coloured images' do"
    ] = None
    init: Annotated[
        Literal["noise", "real", "herding", "mosaic"] | None,
        "first images: noise, real ones at random, herding's, or real ones scaled down to fill a --factor",
    ] = None
    factor: Annotated[int | None, "multi-formation: each stored image holds factor × factor images"] = None
    augmentation: Annotated[
        str | None, "siamese augmentation, such as color_crop_cutout_flip_scale_rotate, or none"
    ] = None
    augmentation_mode: Annotated[
        Literal["single", "all", "idc"] | None,
        "one family of operations a step (as published), all in turn, or IDC's (one warp, the rest in turn)",
    ] = None
    labels: Annotated[
        Literal["hard", "soft", "learned"] | None,
        "class numbers, a trained network's logits, or logits that are learned",
    ] = None
    nets: Annotated[
        Literal["fresh", "trained", "reused"] | None,
        "networks: new at every step, a pool that is trained on the real data, or each new one used several times",
    ] = None
    net_pool: Annotated[int | None, "networks in the pool"] = None
    net_steps: Annotated[int | None, "steps (of training, or of use) after which a network of the pool is renewed"] = (
        None
    )
    zca: Annotated[bool | None, "networks see ZCA-whitened images (colour only)"] = None
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"] | None, "optimiser of the images; adamw: their decoupled weight decay is 0.01"
    ] = None
    image_lr: Annotated[float | None, "rate for the images, in units of [0, 1] pixels"] = None
    image_momentum: Annotated[float | None, "SGD's momentum for the images"] = None
    label_lr: Annotated[
        float | None, "rate for learned labels, by the images' optimiser; sgd's momentum is 0.9 for them"
    ] = None
    schedule: Annotated[Literal["cosine", "constant"] | None, "the images', labels' and inner rate over the run"] = None
    image_ema: Annotated[float, "decay of the images' moving average, which is then the result; 0: off"] = 0.0
    clip: Annotated[
        Literal["step", "save"] | None,
        "bring images back into [0, 1] after every step, or once on saving as releases do",
    ] = None
    steps: Annotated[int | None, "steps on the images"] = None
    budget: Annotated[
        str | None,
        "length in wall-clock time, without experts; schedules follow it; default: 10m, of digits 200 steps",
    ] = None
    checkpoint_every: Annotated[float, "seconds between checkpoints"] = 60.0

    def __post_init__(self) -> None:
        MachineConfig.__post_init__(self)
        positive(self, "ipc", "images", "factor", "net_pool", "net_steps", "image_lr", "steps", "checkpoint_every")
        not_negative(self, "label_lr")
        share(self, "image_momentum", "image_ema")
        if self.ipc is not None and self.images is not None:
            raise ValueError("--ipc and --images exclude each other: give one")
        if self.steps is not None and self.budget is not None:
            raise ValueError("--steps and --budget exclude each other: give one")
        if self.budget is not None:
            parse_duration(self.budget)


# Trajectories of networks trained on the real data: recorded by `datafree experts`, matched by mtt, tesla and datm.


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(MachineConfig):
    """`datafree experts`: networks trained on real data, their parameters recorded on the way."""

    data: Annotated[str, "data set (datafree list data, npz:PATH, imagefolder:PATH)"] = "digits"
    validation: Annotated[bool, "leave out the images that `condense --validation` leaves out, for its runs"] = False
    arch: Annotated[str, "network: a name or file.py:function; auto: ConvNet by image size"] = "auto"
    mean: Annotated[Floats | None, "normalisation, one value a channel; default: the data set's"] = None
    std: Annotated[Floats | None, "normalisation, one value a channel; default: the data set's"] = None
    flip: Annotated[
        bool | None, "mirror images at random; default: where labels allow, which of other data coloured images' do"
    ] = None
    zca: Annotated[bool, "networks see ZCA-whitened images (colour only)"] = False
    augmentation: Annotated[str, "augmentation as for datafree condense, or none"] = (
        "color_crop_cutout_flip_scale_rotate"
    )
    augmentation_mode: Annotated[Literal["single", "all"], "one family of operations a step, or all in turn"] = "single"
    count: Annotated[int, "experts"] = 10
    epochs: Annotated[int, "length of an expert"] = 20
    images: Annotated[int | None, "images an epoch, drawn without repeats; default: all"] = None
    every: Annotated[int | None, "steps between two records; default: an epoch's"] = None
    lr: Annotated[float, "rate of SGD without momentum"] = 0.01
    batch_size: Annotated[int, "images a step"] = 64
    rho: Annotated[float, "sharpness-aware steps: the step's length upwards; 0: plain steps"] = 0.0

    def __post_init__(self) -> None:
        MachineConfig.__post_init__(self)
        positive(self, "count", "epochs", "images", "every", "lr", "batch_size")
        not_negative(self, "rho")


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a method that has no options."""


@dataclass(frozen=True, kw_only=True)
class GradientOptions:
    """What dc and dsa have in common."""

    real_batch: RealBatch = 64
    metric: Annotated[
        Literal["ours", "cos", "mse"], "distance of gradients: cosines by output channel, one cosine, or squares"
    ] = "ours"
    outer: Annotated[int | None, "matches with one network; default: the images a class"] = None
    inner: Annotated[int | None, "epochs on the set between two of them; default: 500 / images a class"] = None
    net_lr: Annotated[float, "SGD's rate for the networks"] = 0.01

    def __post_init__(self) -> None:
        positive(self, "real_batch", "outer", "inner", "net_lr")
        choice(self)


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions:
    """What mtt, tesla and datm have in common. Experts' lengths left open are scaled to the run."""

    inner_steps: Annotated[int, "the student's steps on the set"] = 10
    batch_synthetic: Annotated[int, "decoded images of a student's step; all, where the set has fewer"] = 50
    rate: Annotated[float, "the student's rate at the start; its logarithm is learned"] = 0.01
    experts_per_step: Annotated[int, "experts whose losses are averaged; processes share them"] = 1
    expert_span: Annotated[int, "records from a student's start to its target"] = 2
    max_start: Annotated[int | None, "last record a student starts from; default: half of an expert"] = None
    expert_folder: Annotated[str | None, "experts that datafree experts wrote; default: made or found in the cache"] = (
        None
    )
    experts: Annotated[int | None, "experts that are made, or used of a folder"] = None
    expert_epochs: Annotated[int | None, "length of an expert"] = None
    expert_images: Annotated[int | None, "images of an expert's epoch; default: all"] = None
    expert_every: Annotated[int | None, "an expert's steps between two records"] = None
    expert_lr: Annotated[float, "the experts' rate (SGD without momentum)"] = 0.01
    expert_batch: Annotated[int, "images of an expert's step"] = 64
    expert_rho: Annotated[float, "the experts' sharpness-aware steps: length upwards; 0: plain steps"] = 0.0

    def __post_init__(self) -> None:
        positive(self, "inner_steps", "batch_synthetic", "rate", "experts_per_step", "expert_span", "experts")
        positive(self, "expert_epochs", "expert_images", "expert_every", "expert_lr", "expert_batch")
        not_negative(self, "max_start", "expert_rho")
