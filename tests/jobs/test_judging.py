"""`evaluate_set`: which rate, which tiles, which figures are kept, and whether held-out images were held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from datafree.data import Data, load_data, to_float
from datafree.data.condensed import CondensedSet
from datafree.data.sources import cache_folder
from datafree.data.whitening import Whitening
from datafree.data.wrapped import from_dataset
from datafree.domain import DOMAINS
from datafree.evaluation import condensed as scoring
from datafree.evaluation.protocols import PROTOCOLS, Protocol
from datafree.jobs.condensing import Condensed
from datafree.jobs.foreign import foreign_set
from datafree.jobs.judging import evaluate_set
from datafree.jobs.real_images import fingerprint
from datafree.jobs.same_data import left_out

QUICK = Protocol(steps=1, networks=1, arch="mlp", lr=0.02)
ADAM = Protocol(steps=1, networks=1, arch="mlp", lr=0.001, optimizer="adamw")


class Trained(NamedTuple):
    images: int
    protocol: Protocol
    lr: float | None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """What networks were to be trained on; they stay as they are made."""
    seen: list[Trained] = []

    def train_networks(make: Any, images: Any, labels: Any, protocol: Protocol, *_: Any, **options: Any) -> Any:
        seen.append(Trained(len(images), protocol, options["lr"]))
        return [make().eval() for _ in range(options["count"])]

    monkeypatch.setattr(scoring, "train_networks", train_networks)
    return seen


def a_set(**changes: Any) -> CondensedSet:
    """One image of each digit."""
    values: dict[str, Any] = {"info": {"method": "dm", "data": "digits", "validation": False}}
    values |= {
        "images": torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(10),
    }
    return CondensedSet(domain=DOMAINS["digits"], **{**values, **changes})


def whitened(eps: float = 0.1) -> CondensedSet:
    data = load_data("digits")
    assert data.x_train is not None
    return a_set(whitening=Whitening.fit(to_float(data.x_train), eps))


@pytest.mark.parametrize(
    ("protocol", "own", "given", "used"),
    [
        (QUICK, None, None, 0.02),
        (QUICK, 0.3, None, 0.3),
        (QUICK, 0.3, 0.4, 0.4),
        (QUICK, None, 0.4, 0.4),
        (ADAM, None, None, 0.001),
        (ADAM, 0.3, None, 0.001),  # a rate of SGD says nothing to AdamW
    ],
)
def test_whose_rate_networks_are_trained_at(
    protocol: Protocol, own: float | None, given: float | None, used: float, trained: list[Trained]
) -> None:
    result = evaluate_set(a_set(learning_rate=own), protocol=protocol, lr=given)
    on_set, on_real = trained
    assert (protocol.lr if on_set.lr is None else on_set.lr) == used
    assert result["lr"] == used
    assert on_real.lr is None  # random real images: the protocol's own


@pytest.mark.parametrize(("protocol", "lr", "text"), [("rded", 0.1, "rate of SGD"), ("default", 0.0, "above 0")])
def test_a_rate_that_cannot_be_used_is_refused(protocol: str, lr: float, text: str, trained: list[Trained]) -> None:
    with pytest.raises(ValueError, match=f"--set-lr.*{text}"):
        evaluate_set(a_set(), protocol=protocol, lr=lr)
    assert not trained


@pytest.mark.parametrize(
    ("method", "options", "patches", "crop"),
    [
        ("rded", {"tiles": 2}, 2, 1 / 2),
        ("rded", {"tiles": 3}, 3, 1 / 3),
        ("rded", {"tiles": None}, 1, 1.0),  # one below 64 px
        ("dm", {}, 1, 1.0),
    ],
)
def test_rdeds_protocol_goes_by_the_sets_tiles(
    method: str, options: dict[str, Any], patches: int, crop: float, trained: list[Trained]
) -> None:
    condensed = a_set(info={"method": method, "data": "digits", "options": options})
    evaluate_set(condensed, protocol="rded", networks=1)
    on_set, on_real = (each.protocol for each in trained)
    assert on_set.patches == patches
    assert on_set.smallest_crop == pytest.approx(crop)
    assert on_real == PROTOCOLS["rded"]


def whole(condensed: CondensedSet, arch: str, compute: bool) -> Any:
    return evaluate_set(condensed, protocol=QUICK, archs=[arch], whole=compute)["whole_accuracy"]


def test_a_network_that_cannot_be_made_is_told_before_others_are_trained(trained: list[Trained]) -> None:
    with pytest.raises(ValueError, match="unknown network 'foo'"):
        evaluate_set(a_set(), protocol=QUICK, archs=["mlp", "foo"])
    assert not trained
    assert list(evaluate_set(a_set(), protocol=QUICK, archs="mlp")["archs"]) == ["mlp"]


def test_the_accuracy_on_all_images_is_kept_by_what_networks_see(trained: list[Trained]) -> None:
    made = whole(a_set(), "mlp", True)
    assert whole(a_set(), "mlp", False) == made
    assert whole(whitened(), "mlp", False) is None
    assert whole(whitened(), "mlp", True) is not None
    assert whole(whitened(1e-3), "mlp", False) is None, "another whitening's"
    assert sum(each.images > 1000 for each in trained) == 2


def test_random_images_are_scored_anew_for_another_whitening(trained: list[Trained]) -> None:
    for sets in (a_set(), whitened(), whitened(1e-3), a_set(), whitened(), whitened(1e-3)):
        evaluate_set(sets, protocol=QUICK, archs=["mlp"])
    assert len(trained) == 6 + 3, "each set, and once for each way of seeing, the real images"


def test_a_file_of_ones_own_is_not_known_by_its_path(tmp_path: Path, trained: list[Trained]) -> None:
    """It may hold another network by the next time."""
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    assert whole(a_set(), f"{file}:make", True) is not None
    file.write_text(file.read_text().replace("Linear(64", "LayerNorm(64), nn.Linear(64"))
    assert whole(a_set(), f"{file}:make", False) is None
    assert whole(a_set(), f"{file}:make", True) is not None
    assert sum(each.images > 1000 for each in trained) == 2


@pytest.mark.parametrize(
    ("info", "validation", "left_out", "text"),
    [
        ({"validation": True}, True, True, None),
        ({"validation": False}, True, False, "condensed from all training images"),
        ({}, True, None, "not known whether"),
        ({"validation": False}, False, None, None),
        ({"validation": True, "teacher_file": {"file": "a.pt"}}, True, None, "not known whether the teacher"),
        ({"validation": False, "teacher_file": {"file": "a.pt"}}, True, False, "condensed from all training images"),
    ],
)
def test_whether_the_set_was_made_without_the_images_it_is_tested_on(
    info: dict[str, Any], validation: bool, left_out: bool | None, text: str | None, trained: list[Trained]
) -> None:
    said: list[str] = []
    condensed = a_set(info={"method": "dm", "data": "digits", **info})
    result = evaluate_set(condensed, protocol=QUICK, validation=validation, say=said.append)
    assert result["left_out"] is left_out
    warned = [line for line in said if line.startswith("warning: ")]
    assert len(warned) == (text is not None)
    assert text is None or text in warned[0]


def test_a_teacher_at_evaluation_may_have_seen_the_images() -> None:
    said: list[str] = []
    assert left_out(a_set(info={"validation": True}), True, said.append) is None
    assert "whether the teacher" in said[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_told_before_anything_is_trained(split: str, trained: list[Trained]) -> None:
    data = load_data("digits")
    own = dataclasses.replace(data, domain=dataclasses.replace(data.domain, name="npz:own.npz"), **{f"x_{split}": None})
    with pytest.raises(ValueError, match=f"^npz:own.npz has no {split} split: add it"):
        evaluate_set(a_set(), own, protocol=QUICK)
    assert not trained


def test_nothing_is_known_of_a_foreign_set(trained: list[Trained]) -> None:
    said: list[str] = []
    condensed = foreign_set(torch.rand(10, 1, 8, 8), torch.arange(10), domain=DOMAINS["digits"])
    result = evaluate_set(condensed, "digits", protocol=QUICK, validation=True, say=said.append)
    assert result["left_out"] is None
    assert sum(line.startswith("warning: ") for line in said) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(10), "these look like probabilities: give logits, such as labels.clamp_min"),
        (torch.randn(10, 10).softmax(1).half(), "these look like probabilities"),
    ],
)
def test_foreign_labels_that_would_be_misread_are_refused(labels: Tensor, message: str, tmp_path: Path) -> None:
    """Probabilities would be softmaxed again."""
    torch.save(labels, tmp_path / "labels.pt")
    for given in (labels, tmp_path / "labels.pt"):
        with pytest.raises(ValueError, match=message) as caught:
            foreign_set(torch.rand(10, 1, 8, 8), given, domain=DOMAINS["digits"])
        assert "\n" not in str(caught.value)


def test_sparse_tensors_are_refused_in_one_line() -> None:
    sparse = torch.eye(10).to_sparse()
    for images, labels in ((torch.rand(10, 1, 8, 8), sparse), (torch.rand(10, 1, 8, 8).to_sparse(), torch.arange(10))):
        with pytest.raises(ValueError, match=r"^a sparse tensor: give tensor.to_dense\(\)$"):
            foreign_set(images, labels, domain=DOMAINS["digits"])


def test_logits_of_a_foreign_set_stay_as_they_are() -> None:
    probabilities = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    logits = probabilities.clamp_min(1e-8).log()
    condensed = foreign_set(torch.rand(10, 1, 8, 8), logits, domain=DOMAINS["digits"])
    torch.testing.assert_close(condensed.decoded()[1], probabilities)
    positive = 1 + logits - logits.min()
    assert torch.equal(foreign_set(torch.rand(10, 1, 8, 8), positive, domain=DOMAINS["digits"]).labels, positive)


def test_each_network_is_told_as_it_is_tested(trained: list[Trained]) -> None:
    """Not those that are found in the cache."""
    for again in (False, True):
        said: list[str] = []
        result = evaluate_set(a_set(), protocol=QUICK, networks=2, archs=["mlp"], say=said.append)
        on_set, on_real = (
            [f"network {i} of 2: {100 * each:.2f} %" for i, each in enumerate(result[f"{prefix}accuracies"], 1)]
            for prefix in ("", "random_")
        )
        assert said == [
            "training 2 networks of mlp on 10 images, on cpu",
            *(f"mlp on the set, {line}" for line in on_set),
            *(f"mlp on random real images, {line}" for line in on_real if not again),
        ]


def test_a_teacher_that_no_label_comes_from_is_refused(trained: list[Trained], tmp_path: Path) -> None:
    """It would be loaded for nothing, and keep the random images' figures out of the cache."""
    with pytest.raises(ValueError, match="trains on the set's own labels: leave --teacher out"):
        evaluate_set(a_set(), protocol="default", teacher="teacher.pt")
    with pytest.raises(ValueError, match="--teacher-arch, --teacher-std describe the file of --teacher"):
        evaluate_set(a_set(), protocol="rded", teacher_arch="mlp", teacher_std=(0.5,))
    assert not trained


def test_a_set_of_data_without_a_name_here_asks_for_them(trained: list[Trained]) -> None:
    """`from_dataset` calls them "dataset"."""
    data = from_dataset(
        [(torch.rand(1, 8, 8), i % 10) for i in range(20)], [(torch.rand(1, 8, 8), i) for i in range(9)]
    )
    condensed = a_set(info={"method": "dm", "data": data.domain.name})
    with pytest.raises(ValueError, match=r"made from 'dataset', .*: give data=, the data it was made from"):
        evaluate_set(condensed, protocol=QUICK)
    assert evaluate_set(condensed, data, protocol=QUICK)["data"] == "dataset"


ABOUT: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "networks": {"networks": 2},
    "network": {"archs": ["lenet5"]},
    "precision": {"precision": "bf16"},
    "protocol": {"protocol": dataclasses.replace(QUICK, lr=0.03)},
    "images a class": {"source": a_set(images=torch.rand(20, 1, 8, 8), labels=torch.arange(20) % 10)},
}


@pytest.mark.parametrize("what", ABOUT)
def test_random_figures_are_kept_by_all_that_they_depend_on(what: str, trained: list[Trained]) -> None:
    def score(**changes: Any) -> int:
        """How many networks were trained on random images for it."""
        before = len(trained)
        asked = {"source": a_set(), "protocol": QUICK, "archs": ["mlp"], "networks": 1, **changes}
        evaluate_set(asked.pop("source"), **asked)
        return len(trained) - before - int(asked["networks"])

    assert score() == 1
    assert score() == 0
    assert score(**ABOUT[what]) == ABOUT[what].get("networks", 1)
    assert score() == 0


def test_random_figures_are_those_of_the_protocol_as_it_is(
    trained: list[Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_set(a_set(), networks=1)
    evaluate_set(a_set(), networks=1)
    assert len(trained) == 3
    monkeypatch.setitem(PROTOCOLS, "default", dataclasses.replace(PROTOCOLS["default"], steps=7))
    evaluate_set(a_set(), networks=1)
    assert len(trained) == 5


def test_random_figures_are_of_the_images_that_are_tested_on(trained: list[Trained]) -> None:
    data = load_data("digits")
    evaluate_set(a_set(), data, protocol=QUICK)
    assert data.y_test is not None
    evaluate_set(a_set(), dataclasses.replace(data, y_test=data.y_test.flip(0)), protocol=QUICK)
    assert len(trained) == 4


def test_a_fingerprint_sees_every_column() -> None:
    """Of images whose number of pixels a stride of whole rows would divide."""
    found = []
    for value in (0, 1):
        x = torch.zeros(36_000, 1, 8, 8, dtype=torch.uint8)
        x[..., 3] = value
        found.append(fingerprint(Data(domain=DOMAINS["digits"], x_train=x, y_train=torch.zeros(36_000).long())))
    assert found[0] != found[1]


@pytest.mark.parametrize("held", ["[]", "null", "{}", '{"result": null}', '{"result": {}}', "nonsense"])
def test_a_cache_that_holds_nothing_of_use_is_made_again(held: str, trained: list[Trained]) -> None:
    evaluate_set(a_set(), protocol=QUICK)
    (kept,) = (cache_folder() / "scores").iterdir()
    kept.write_text(held)
    assert "random_accuracy_mean" in evaluate_set(a_set(), protocol=QUICK)
    assert len(trained) == 4


def test_a_network_that_is_named_twice_is_trained_once(trained: list[Trained]) -> None:
    evaluate_set(a_set(), protocol=QUICK, archs=["mlp", "mlp"])
    assert len(trained) == 2


def test_fewer_random_images_than_the_set_has_are_told(trained: list[Trained]) -> None:
    def warned(condensed: CondensedSet) -> bool:
        said: list[str] = []
        evaluate_set(condensed, protocol=QUICK, say=said.append)
        return any("more images than there are real ones" in line for line in said)

    assert warned(a_set(images=torch.rand(200, 1, 8, 8), labels=torch.zeros(200).long()))
    assert not warned(a_set())


def test_a_set_of_rded_need_not_say_its_tiles(trained: list[Trained]) -> None:
    evaluate_set(a_set(info={"method": "rded", "data": "digits", "options": None}), protocol="rded", networks=1)
    assert trained[0].protocol.patches == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Condensed(path=Path(), metrics={}, set=a_set()), r"^a Condensed holds a set and is none: give result\.set$"),
        (
            (torch.rand(10, 1, 8, 8), torch.arange(10)),
            r"^a tuple is no .* CondensedSet\(images=.*datafree evaluate --im",
        ),
        (None, "^a NoneType is no condensed set: give a set, its folder or its file;"),
    ],
)
def test_what_is_no_set_is_told_what_to_give(source: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        evaluate_set(source)
    assert "\n" not in str(caught.value)
