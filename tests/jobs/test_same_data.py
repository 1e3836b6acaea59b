"""A condensed set goes with the data that it was made from: other named data are refused, others get a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from datafree.data import Data
from datafree.data.condensed import CondensedSet
from datafree.domain import DOMAINS, Domain, make_domain
from datafree.evaluation.protocols import Protocol
from datafree.jobs.beginnings import check_condensed
from datafree.jobs.judging import evaluate_set
from datafree.jobs.same_data import check_same_data

MNIST, FASHION = DOMAINS["mnist"], DOMAINS["fashion-mnist"]
MINE = replace(make_domain(shape=MNIST.shape, classes=10), name="npz:mine.npz")


def shifted(domain: Domain, by: float) -> Domain:
    """Of another name, its constants moved by a share of the standard deviation."""
    mean, std = (tuple(v + by * s for v, s in zip(vs, domain.std, strict=True)) for vs in (domain.mean, domain.std))
    return replace(domain, name="imagefolder:mine", mean=mean, std=std)


def a_set(domain: Domain) -> CondensedSet:
    return CondensedSet(images=torch.rand(10, *domain.shape), labels=torch.arange(10), domain=domain)


def test_of_two_named_sets_the_names_decide() -> None:
    with pytest.raises(ValueError, match=r"^the set is of mnist, the teacher is of fashion-mnist: give those of one"):
        check_condensed(a_set(MNIST), FASHION, "condensed:set")
    # A teacher, or a run, may have its own normalisation.
    assert check_condensed(a_set(MNIST), make_domain(base=MNIST, mean=(0.5,), std=(0.5,)), "condensed:set") == []


@pytest.mark.parametrize(("by", "warned"), [(0.0, False), (0.04, False), (-0.04, False), (0.06, True), (-0.06, True)])
def test_of_others_the_normalisation_is_compared(by: float, warned: bool) -> None:
    for own, other in ((MNIST, shifted(MNIST, by)), (shifted(MNIST, by), MNIST)):
        found = check_same_data(own, other, "the test images are of")
        assert len(found) == warned
        assert not found or (own.name in found[0] and other.name in found[0] and "\n" not in found[0])
    assert check_same_data(replace(MINE, mean=(0.9,)), MINE, "") == []  # one name, and its own constants by --mean


@pytest.mark.parametrize(
    ("names", "warned"),
    [(("Bee", "ant", "cat"), False), ((), False), (("bee", "Ant", "cat"), False), (("Bee", "aardvark", "cat"), True)],
)
def test_classes_go_by_number_and_their_names_say_whether_that_is_right(names: tuple[str, ...], warned: bool) -> None:
    own = replace(make_domain(shape=(3, 8, 8), classes=3), name="imagefolder:own", class_names=("Bee", "ant", "cat"))
    for name in ("imagefolder:/theirs/own", "imagefolder:other"):
        other = replace(own, name=name, class_names=names)
        found = check_same_data(own, other, "the test images are of")
        said = f"class 1 of the set is 'ant', the test images are of {name}, whose class 1 is 'aardvark': classes are"
        assert [line.startswith(said) for line in found] == [True] * warned
        with pytest.raises(ValueError, match=r"^class 0 of the set is 'Bee', .* 'ant': the same .* in another order"):
            check_same_data(own, replace(other, class_names=("ant", "bee", "cat")), "the test images are of")


@pytest.mark.parametrize("domain", [FASHION, MINE, MNIST])
def test_a_set_is_scored_on_its_own_data(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_networks(make: Any, *_: Any, count: int, **__: Any) -> list[Any]:
        return [make().eval() for _ in range(count)]

    monkeypatch.setattr("datafree.evaluation.condensed.train_networks", train_networks)
    x, y, said = torch.randint(256, (20, *domain.shape), dtype=torch.uint8), torch.arange(20) % 10, list[str]()
    data = Data(domain=domain, x_train=x, y_train=y, x_test=x, y_test=y)
    protocol = Protocol(steps=1, networks=1, arch="mlp", lr=0.02)
    if domain is FASHION:
        with pytest.raises(ValueError, match=r"^the set is of mnist, the test images are of fashion-mnist: give"):
            evaluate_set(a_set(MNIST), data, protocol=protocol)
        return
    evaluate_set(a_set(MNIST), data, protocol=protocol, say=said.append)
    warned = [line for line in said if line.startswith("warning: the set is of mnist (mean 0.131, std 0.308), ")]
    assert len(warned) == (domain is MINE)
