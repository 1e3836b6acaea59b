"""`datafree condense` and `evaluate` of sets: answers, exit status, one line for what a person can mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datafree.condensation import METHODS

Cli = Callable[..., Any]
QUICK = ("--ipc", 2, "--steps", 2, "--threads", 1)


def refused(answer: Any, text: str) -> None:
    assert answer.status == 2, answer
    assert text in answer.err, answer.err
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) == 1, answer.err


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Three classes of 12, 9 and 4 grey images, as npz."""
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1, 2], [12, 9, 4])
    x = rng.randint(0, 256, (25, 9, 10)).astype(np.uint8)
    np.savez(tmp_path / "small.npz", x_train=x, y_train=y, x_test=x[::2], y_test=y[::2])
    return f"npz:{tmp_path / 'small.npz'}"


@pytest.mark.slow
def test_a_set_is_made_scored_and_used(cli: Cli) -> None:
    """The whole way of a person with a data set: condense, evaluate, distil on the set."""
    made = cli("condense", *QUICK, "--out", "set")
    assert made.status == 0, made
    assert "20 images (1,280 floats)" in made.out
    assert Path("set/condensed.safetensors").is_file()
    scored = cli("evaluate", "set", "--seeds", 1, "--json")
    assert scored.status == 0, scored
    scores = json.loads(scored.out)
    assert {"accuracy_mean", "accuracy_std", "random_accuracy_mean", "protocol", "archs"} <= set(scores)
    assert 0 < scores["accuracy_mean"] <= 1
    assert 0 < scores["random_accuracy_mean"] <= 1
    assert (scores["data"], scores["split"], scores["networks"]) == ("digits", "test", 1)
    trained = cli("train", "--source", "condensed:set", "--steps", 3, "--out", "student", "-q")
    assert trained.status == 0, trained
    assert json.loads(Path("student/result.json").read_text())["method"] == "condensed"
    mixed = cli("train", "--source", "condensed:set+dafl", "--steps", 3, "--out", "mixed", "-q")
    assert mixed.status == 0, mixed
    assert json.loads(Path("mixed/result.json").read_text())["method"] == "condensed+dafl"


def test_resume_and_rerun(cli: Cli) -> None:
    assert cli("condense", *QUICK, "--out", "set", "-q").status == 0
    done = cli("condense", "--resume", "--out", "set")
    assert (done.status, "is finished" in done.err) == (0, True), done
    again = cli("condense", "--config", "set/run.json", "--out", "again", "-q")
    assert again.status == 0, again
    assert Path("again/condensed.safetensors").read_bytes() == Path("set/condensed.safetensors").read_bytes()
    refused(cli("condense", *QUICK, "--out", "set"), "is not empty")
    answer = cli("condense", "--resume", "--out", "set", "--ipc", 3)
    assert answer.status == 2
    assert "leave out --ipc" in answer.err


def plan_of(answer: Any) -> dict[str, str]:
    assert (answer.status, answer.err) == (0, ""), answer
    return dict(line.split(None, 1) for line in answer.out.splitlines())


def test_a_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    for flags in ((), ("--out", "set")):
        rows = plan_of(cli("condense", *QUICK, "--factor", 2, "--dry-run", *flags))
        assert (rows["method"], rows["ipc"], rows["factor"], rows["init"]) == ("frepo", "2", "2", "mosaic")
        assert (rows["steps"], rows["optimizer"], rows["target_batch"]) == ("2", "adam", "256")
        assert rows["device"] in ("cpu", "cuda")
        assert "multiply-adds" in rows["networks"]
        assert rows["stored"] == "20 images (1,280 floats)"
        assert rows["decoded"] == "80 images; labels 3,200 bytes"
        assert rows["beforehand"] == "nothing"
    assert plan_of(cli("condense", "--dry-run"))["steps"] == "200"
    assert list(tmp_path.iterdir()) == []
    assert list(Path.home().iterdir()) == []
    refused(cli("condense", "--ipc", 1000, "--dry-run"), "fewer than the 1000 asked for")
    answer = cli("condense", "--resume", "--out", "set", "--dry-run")
    assert (answer.status, "leave out --dry-run" in answer.err) == (2, True), answer


def test_a_dry_run_of_a_saved_run_resolves_to_the_same(cli: Cli) -> None:
    assert cli("condense", *QUICK, "--method", "random", "--out", "set", "-q").status == 0
    again = plan_of(cli("condense", "--config", "set/run.json", "--dry-run"))
    first = plan_of(cli("condense", *QUICK, "--method", "random", "--dry-run"))
    assert {**again, "choice": ""} == {**first, "choice": ""}


def test_a_dry_run_says_what_is_made_beforehand_and_what_is_kept(cli: Cli) -> None:
    for method, made in (("sre2l", "resnet8 on the real data"), ("mtt", "experts of")):
        flags = ("condense", *QUICK, "--method", method)
        kept = sorted(Path.home().rglob("*"))
        before = plan_of(cli(*flags, "--dry-run"))
        assert sorted(Path.home().rglob("*")) == kept
        assert made in before["beforehand"]
        assert before["beforehand"].endswith(("has to be trained", "have to be made"))
        assert cli(*flags, "--out", method, "-q").status == 0
        after = plan_of(cli(*flags, "--dry-run"))
        assert f"kept in {Path.home() / '.cache'}" in after["beforehand"]
        assert {**after, "beforehand": ""} == {**before, "beforehand": ""}
        costs = json.loads(Path(f"{method}/result.json").read_text())
        assert after["stored"] == f"{costs['stored_images']:,} images ({costs['stored_floats']:,} floats)"
        assert after["decoded"] == f"{costs['decoded_images']:,} images; labels {costs['label_bytes']:,} bytes"
    refused(cli("condense", "--method", "mtt", "--arch", "resnet8", "--dry-run"), "batch norm")
    refused(cli("condense", *QUICK, "--method", "mtt", "--max-start", 99, "--dry-run"), "too few for --max-start 99")


def test_anybodys_images(cli: Cli, small: str) -> None:
    made = cli("condense", "--data", small, "--ipc", 4, "--steps", 2, "--out", "set", "-q")
    assert made.status == 0, made
    counts = json.loads(Path("set/run.json").read_text())["images_per_class"]
    assert counts == [4, 4, 4]
    assert cli("condense", "--data", small, "--images", 10, "--steps", 2, "--out", "by-size", "-q").status == 0
    assert json.loads(Path("by-size/run.json").read_text())["images_per_class"] == [5, 4, 1]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--ipc", 0), "--ipc is 0: give a number above 0"),
        (("--ipc", 5), "class 2 has 4 images, fewer than the 5 asked for: give a smaller --ipc, or --allow-fewer"),
        (("--ipc", 2, "--images", 9), "--ipc and --images exclude each other"),
        (("--steps", 2, "--budget", "1m"), "--steps and --budget exclude each other"),
        (("--budget", "soon"), "--budget is 'soon'"),
        (("--images", 2), "--images 2 for 3 classes"),
        (("--augmentation", "colour", "--ipc", 1, "--method", "dm"), "unknown augmentation colour"),
        (
            ("--augmentation", "color", "--net-pool", 3, "--method", "random"),
            "does not read --augmentation, --net-pool",
        ),
        (("--labels", "learned", "--method", "dm"), "no term of dm depends on labels"),
        (("--init", "real", "--factor", 2), "--factor 2 would cut into parts: give --init mosaic"),
        (("--zca",), "--zca is for colour images"),
        (("--init", "mosaic"), "--init mosaic fills a --factor of 2 or more"),
        (("--mean", ".5,.5"), "--mean has 2 values, the images have 1 channel"),
        (("--image-lr", -1), "--image-lr is -1"),
        (("--arch", "convnet9", "--ipc", 1), "convnet9"),
        (("--factor", 11, "--ipc", 1), "factor 11"),
        (("--device", "cuda:7"), "--device cuda:7 is not there"),
    ],
)
def test_bad_input_gets_one_line(cli: Cli, small: str, flags: tuple[Any, ...], text: str) -> None:
    answer = cli("condense", "--data", small, *flags, "--out", "set")
    refused(answer, text)
    assert not Path("set/condensed.safetensors").exists()


def test_data_that_is_not_there(cli: Cli) -> None:
    answer = cli("condense", "--data", "cifar10", "--ipc", 1)
    assert answer.status == 2
    assert "--download" in answer.err
    assert not Path("runs").exists()


def test_a_method_that_is_not_there_and_anothers_flag(cli: Cli) -> None:
    answer = cli("condense", "--method", "herdin")
    assert answer.status == 2
    assert "unknown condensation method 'herdin'; did you mean 'herding'?" in answer.err
    answer = cli("condense", "--method", "random", "--cross-entropy", 1)
    assert answer.status == 2
    assert "belongs to --method" in answer.err


def test_help_names_every_method(cli: Cli) -> None:
    text = cli("condense", "--help").out
    assert all(name in text for name in METHODS)
    listed = cli("list", "condensers").out
    assert [line.split()[0] for line in listed.splitlines()] == list(METHODS)


class TestForeignSets:
    @pytest.fixture
    def files(self, cli: Cli) -> None:
        x, y = torch.rand(6, 1, 9, 10), torch.tensor([0, 0, 1, 1, 2, 2])
        torch.save(x, "images.pt")
        torch.save((x - 0.449) / 0.226, "normalised.pt")
        torch.save(y, "labels.pt")
        torch.save(y + 1, "shifted.pt")
        torch.save({"a": 1}, "dict.pt")

    def score(self, cli: Cli, small: str, *flags: object) -> Any:
        return cli("evaluate", "--data", small, "--seeds", 1, "--json", "--protocol", "vico-noaug", *flags)

    @pytest.mark.slow
    def test_pixels_and_normalised_pixels_score_the_same(self, cli: Cli, small: str, files: None) -> None:
        plain = self.score(cli, small, "--images", "images.pt", "--labels", "labels.pt")
        assert plain.status == 0, plain
        other = self.score(cli, small, "--images", "normalised.pt", "--labels", "labels.pt", "--space", "normalised")
        assert json.loads(plain.out)["accuracy_mean"] == json.loads(other.out)["accuracy_mean"]

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (("--images", "normalised.pt", "--labels", "labels.pt"), "give pixels in [0, 1], or name their normal"),
            (("--images", "images.pt", "--labels", "shifted.pt"), "the classes go from 0 to 2"),
            (("--images", "dict.pt", "--labels", "labels.pt"), "holds dict, not one tensor"),
            (("--images", "nowhere.pt", "--labels", "labels.pt"), "nowhere.pt is not there"),
            (("--images", "images.pt", "--labels", "labels.pt", "--protocol", "vicco"), "vicco"),
        ],
    )
    def test_bad_input_gets_one_line(
        self, cli: Cli, small: str, files: None, flags: tuple[str, ...], text: str
    ) -> None:
        refused(self.score(cli, small, *flags), text)


def test_a_set_of_other_data_is_refused(cli: Cli, small: str) -> None:
    assert cli("condense", *QUICK, "--out", "set", "-q").status == 0
    refused(cli("evaluate", "set", "--data", small), "give the data it was made from")
    refused(cli("train", "--source", "condensed:nowhere", "--steps", 1), "no condensed set in nowhere")
    refused(cli("train", "--source", "nonsense", "--steps", 1), "give condensed:PATH")
