"""What is known of a teacher's data without having it: size, channels, classes, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from datafree.arguments import check_kinds

Shape = tuple[int, int, int]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The images that a network was trained on, without the images.

    name: a key of `DOMAINS`, or any other label (it is only shown).
    shape: (C, H, W) of one image.
    classes: the number of classes, at least 2.
    mean, std: one value a channel, in units of [0, 1] images; a network is given (x - mean) / std.
    flip: whether an image's mirror image keeps its label.
    class_names: one name a class, or empty where they are not known.
    pixel_mean, pixel_std: what the images themselves have by the data's usual constants (see `pixels`), where a network
        was trained with others.

    Raises ValueError (one line, saying what to do) for values that cannot be.
    """

    name: str
    shape: Shape
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    class_names: tuple[str, ...] = ()
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_kinds(Domain, vars(self), ("shape", "classes"))
        check_shape(self.shape)
        if not _is_count(self.classes) or self.classes < 2:
            raise ValueError(f"--classes {self.classes}: give a whole number, 2 or more")
        _check_channels("--mean", self.mean, self.shape[0])
        _check_channels("--std", self.std, self.shape[0])
        if min(self.std) <= 0:
            raise ValueError(f"--std {_text(self.std)}: every value must be greater than 0")
        for values in (self.pixel_mean, self.pixel_std):
            assert values is None or len(values) == self.shape[0]
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.classes} classes: give one name a class")

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images' pixels, as well as they are known.

        Else the normalisation's; but where that is a convention (0 and 1, or .5 and .5), the usual ones. Values in
        [0, 1] of mean m have a variance of m (1 - m) at most, and reach it only where all are 0 or 1.

        What is known are the constants of the field's code. CIFAR-10's deviations there are the mean of those within
        an image: a fifth less than all pixels have (0.247, 0.243, 0.261).
        """
        if self.pixel_mean is not None and self.pixel_std is not None:
            return self.pixel_mean, self.pixel_std
        if any(s * s >= m * (1 - m) - 1e-9 for m, s in zip(self.mean, self.std, strict=True)):
            return usual_normalisation(self.shape[0])
        return self.mean, self.std


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def check_shape(shape: Sequence[int]) -> None:
    """Raise ValueError unless `shape` is (channels, height, width), all whole and positive."""
    if len(shape) != 3 or not all(_is_count(size) for size in shape):
        text = "x".join(str(size) for size in shape)
        raise ValueError(f"--shape {text}: give channels x height x width as positive whole numbers, such as 3x32x32")


def _check_channels(flag: str, values: Sequence[float], channels: int) -> None:
    if len(values) != channels:
        have = f"{len(values)} value{'' if len(values) == 1 else 's'}"
        want = f"{channels} channel{'' if channels == 1 else 's'}"
        raise ValueError(f"{flag} has {have}, the images have {want}: give {channels}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{flag} {_text(values)}: give finite numbers")
    # Constants in units of 0..255 are the usual mistake; nothing sensible for [0, 1] images comes near 2.
    if max(abs(value) for value in values) > 2:
        raise ValueError(f"{flag} {_text(values)}: the images are in [0, 1], so divide the values by 255")


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_NUMERALS = tuple("0123456789")

# The means and standard deviations are those that the field's released code trains its teachers with. Those of the
# digits are measured on the training split of `datafree.data` (a test derives them).
DOMAINS: dict[str, Domain] = {
    "digits": Domain(
        name="digits",
        shape=(1, 8, 8),
        classes=10,
        mean=(0.3052,),
        std=(0.3760,),
        flip=False,
        class_names=_NUMERALS,
    ),
    "mnist": Domain(
        name="mnist",
        shape=(1, 28, 28),
        classes=10,
        mean=(0.1307,),
        std=(0.3081,),
        flip=False,
        class_names=_NUMERALS,
    ),
    "fashion-mnist": Domain(
        name="fashion-mnist",
        shape=(1, 28, 28),
        classes=10,
        mean=(0.2861,),
        std=(0.3530,),
        flip=True,
        class_names=_FASHION_CLASSES,
    ),
    "cifar10": Domain(
        name="cifar10",
        shape=(3, 32, 32),
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        flip=True,
        class_names=_CIFAR10_CLASSES,
    ),
    "cifar100": Domain(
        name="cifar100",
        shape=(3, 32, 32),
        classes=100,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        class_names=tuple(_CIFAR100_CLASSES.split()),
    ),
    "svhn": Domain(
        name="svhn",
        shape=(3, 32, 32),
        classes=10,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flip=False,
        class_names=_NUMERALS,
    ),
    "tiny-imagenet": Domain(
        name="tiny-imagenet",
        shape=(3, 64, 64),
        classes=200,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
    ),
}


def usual_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation to assume where nothing is known, one value a channel.

    Three channels: ImageNet's constants. Any other number: the averages of those constants over the three colours
    (0.449 and 0.226) in every channel, which is what a grey version of such images is commonly given.
    """
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.449,) * channels, (0.226,) * channels


def make_domain(
    *,
    base: Domain | None = None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    flip: bool | None = None,
) -> Domain:
    """A domain from another one (`base`), or from a shape and a number of classes.

    Everything given beside the base overrides it. A shape with another number of channels than the base's takes the
    usual normalisation unless `mean` and `std` are given. Without a base, the images are taken to keep their label when
    mirrored if they have three channels (photographs), not otherwise (characters).

    Raises ValueError where too little is given, and for values that cannot be.
    """
    if shape is not None:
        check_shape(shape)
    if base is None:
        if shape is None or classes is None:
            raise ValueError("say what the images are: --data NAME, or --shape 3x32x32 --classes 10")
        usual_mean, usual_std = usual_normalisation(shape[0])
        return Domain(
            name="x".join(map(str, shape)),
            shape=(shape[0], shape[1], shape[2]),
            classes=classes,
            mean=tuple(usual_mean if mean is None else mean),
            std=tuple(usual_std if std is None else std),
            flip=shape[0] == 3 if flip is None else flip,
        )
    size = base.shape if shape is None else (shape[0], shape[1], shape[2])
    same = size[0] == base.shape[0]
    base_mean, base_std = (base.mean, base.std) if same else usual_normalisation(size[0])
    new_mean, new_std = (tuple(base_mean if mean is None else mean), tuple(base_std if std is None else std))
    other = base.name in DOMAINS and same and (new_mean, new_std) != (base_mean, base_std)
    return replace(
        base,
        pixel_mean=base.mean if other else None,
        pixel_std=base.std if other else None,
        shape=size,
        classes=base.classes if classes is None else classes,
        mean=new_mean,
        std=new_std,
        flip=base.flip if flip is None else flip,
        class_names=base.class_names if classes in (None, base.classes) else (),
    )


def parse_shape(text: str) -> Shape:
    """ "3x32x32" as (3, 32, 32): channels, height, width. Raises ValueError for anything else."""
    parts = text.lower().split("x")
    # isascii: str.isdigit also takes superscripts, which int() refuses.
    sizes = [int(part) if part.strip().isascii() and part.strip().isdigit() else 0 for part in parts]
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"--shape {text}: give channels x height x width as positive whole numbers, such as 3x32x32")
    return sizes[0], sizes[1], sizes[2]
