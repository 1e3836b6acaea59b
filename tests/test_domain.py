from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datafree.data import DATA, get_split, load_data, to_float
from datafree.domain import (
    DOMAINS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Domain,
    make_domain,
    parse_shape,
    usual_normalisation,
)

ROOT = Path(__file__).resolve().parents[1]


def test_domains_and_data_have_the_same_names() -> None:
    assert set(DOMAINS) == set(DATA)
    assert all(domain.name == name for name, domain in DOMAINS.items())


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_every_domain_is_complete(name: str) -> None:
    domain = DOMAINS[name]
    assert len(domain.mean) == len(domain.std) == domain.shape[0]
    assert len(domain.class_names) in (0, domain.classes)
    assert len(set(domain.class_names)) == len(domain.class_names)


def test_only_symmetric_domains_flip() -> None:
    assert {name for name, domain in DOMAINS.items() if not domain.flip} == {"digits", "mnist", "svhn"}


def test_digits_constants_are_those_of_the_training_split() -> None:
    # The derivation of the literals: mean and deviation over all pixels of the 1,442 training images in [0, 1].
    x, _ = get_split(load_data("digits", splits=("train",)), "train")
    pixels = to_float(x).double()
    assert DOMAINS["digits"].mean == pytest.approx((pixels.mean().item(),), abs=5e-5)
    assert DOMAINS["digits"].std == pytest.approx((pixels.std(correction=0).item(),), abs=5e-5)


def test_cifar100_class_names_are_in_the_order_of_the_labels() -> None:
    # The data set numbers its fine classes alphabetically; apple is 0, worm 99.
    names = DOMAINS["cifar100"].class_names
    assert (names[0], names[99]) == ("apple", "worm")
    assert list(names) == sorted(names)


def test_usual_normalisation() -> None:
    assert usual_normalisation(3) == (IMAGENET_MEAN, IMAGENET_STD)
    # (.485 + .456 + .406) / 3 = .449 and (.229 + .224 + .225) / 3 = .226.
    assert usual_normalisation(1) == ((0.449,), (0.226,))
    assert usual_normalisation(2) == ((0.449, 0.449), (0.226, 0.226))


def test_make_domain_from_a_named_one_with_overrides() -> None:
    assert make_domain(base=DOMAINS["cifar10"]) == DOMAINS["cifar10"]
    changed = make_domain(base=DOMAINS["cifar10"], mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert (changed.mean, changed.std, changed.shape) == ((0.5, 0.5, 0.5), (1, 1, 1), (3, 32, 32))
    assert make_domain(base=DOMAINS["cifar10"], classes=7).class_names == ()
    assert make_domain(base=DOMAINS["cifar10"], classes=10).class_names == DOMAINS["cifar10"].class_names


def test_make_domain_from_a_base() -> None:
    base = make_domain(shape=(2, 5, 7), classes=4)
    assert make_domain(base=base) == base
    assert make_domain(base=base, std=(0.1, 0.2)).std == (0.1, 0.2)


def test_make_domain_with_another_number_of_channels_takes_the_usual_constants() -> None:
    colour = make_domain(base=DOMAINS["mnist"], shape=(3, 32, 32))
    assert (colour.mean, colour.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert make_domain(base=DOMAINS["mnist"], shape=(1, 32, 32)).mean == DOMAINS["mnist"].mean


def test_make_domain_from_a_shape() -> None:
    domain = make_domain(shape=(3, 24, 40), classes=5)
    assert domain == Domain(
        name="3x24x40", shape=(3, 24, 40), classes=5, mean=IMAGENET_MEAN, std=IMAGENET_STD, flip=True
    )
    assert not make_domain(shape=(1, 24, 40), classes=5).flip
    assert make_domain(shape=(1, 24, 40), classes=5, flip=True).flip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "--data NAME, or --shape 3x32x32 --classes 10"),
        ({"shape": (3, 32, 32)}, "--classes 10"),
        ({"base": DOMAINS["cifar10"], "mean": (0.5,)}, "--mean has 1 value, the images have 3 channels: give 3"),
        ({"base": DOMAINS["mnist"], "std": (0.5, 0.5)}, "--std has 2 values, the images have 1 channel: give 1"),
        ({"base": DOMAINS["mnist"], "std": (0.0,)}, "--std 0: every value must be greater than 0"),
        ({"base": DOMAINS["mnist"], "std": (-1.0,)}, "greater than 0"),
        ({"base": DOMAINS["mnist"], "mean": (float("nan"),)}, "finite"),
        ({"base": DOMAINS["cifar10"], "mean": (125.3, 123.0, 113.9)}, "divide the values by 255"),
        ({"base": DOMAINS["mnist"], "classes": 1}, "--classes 1"),
        ({"base": DOMAINS["mnist"], "classes": -3}, "--classes -3"),
        ({"shape": (3, 0, 32), "classes": 2}, "--shape 3x0x32"),
        ({"shape": (3, 32), "classes": 2}, "--shape 3x32:"),
        ({"shape": (3, 32, 1.5), "classes": 2}, "whole numbers"),
    ],
)
def test_make_domain_refuses_in_one_line(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make_domain(**arguments)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_domain_checks_its_class_names_and_is_frozen() -> None:
    with pytest.raises(ValueError, match="2 class names for 10 classes"):
        dataclasses.replace(DOMAINS["mnist"], class_names=("a", "b"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        DOMAINS["mnist"].classes = 3  # type: ignore[misc]


def test_parse_shape() -> None:
    assert parse_shape("3x32x32") == (3, 32, 32)
    assert parse_shape("1X28x20") == (1, 28, 20)


@pytest.mark.parametrize("text", ["", "3", "3x32", "3x32x32x1", "3x-32x32", "0x8x8", "3x3.5x3", "axbxc", "²x2x2"])
def test_parse_shape_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="channels x height x width"):
        parse_shape(text)


def test_domain_imports_the_standard_library_only() -> None:
    code = "import sys, datafree.domain; print(sorted({'torch', 'numpy', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_images_own_constants_are_kept_beside_a_teachers() -> None:
    base = DOMAINS["mnist"]
    assert base.pixels == (base.mean, base.std)
    other = make_domain(base=DOMAINS["mnist"], mean=(0.0,), std=(1.0,))
    assert (other.mean, other.std) == ((0.0,), (1.0,))
    assert other.pixels == (base.mean, base.std)
    assert make_domain(base=DOMAINS["mnist"], mean=base.mean, std=base.std) == base
    own = make_domain(shape=(1, 28, 28), classes=10, mean=(0.0,), std=(1.0,))
    assert own.pixels == ((0.449,), (0.226,)), "0 and 1 are a convention, and nothing else is known"


@pytest.mark.parametrize(
    ("mean", "std", "wanted"),
    [
        ((0.0,), (1.0,), ((0.449,), (0.226,))),  # a convention: no pixels in [0, 1] have it
        ((0.5,), (0.5,), ((0.449,), (0.226,))),  # another, which black and white pixels alone would have
        ((0.1307,), (0.3081,), ((0.1307,), (0.3081,))),  # MNIST's own
    ],
)
def test_a_normalisation_that_no_image_has_says_nothing_of_the_pixels(mean: Any, std: Any, wanted: Any) -> None:
    assert make_domain(shape=(1, 8, 8), classes=3, mean=mean, std=std).pixels == wanted
    assert make_domain(base=DOMAINS["mnist"], mean=(0.0,), std=(1.0,)).pixels == ((0.1307,), (0.3081,))
