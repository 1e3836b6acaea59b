"""Saved runs that are run again: exactly, with flags over them, and with another method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datafree import condensation
from datafree.cli.condense import KIND as CONDENSE
from datafree.cli.methods import Kind, read_config
from datafree.cli.train import KIND as TRAIN
from datafree.jobs import dry_run, dry_run_condense
from datafree.tables.specs import tables_folder

Cli = Callable[..., Any]
RESULTS = sorted((tables_folder() / "results").glob("*/*.json"))
JOBS: dict[str, tuple[Kind, Callable[..., dict[str, Any]]]] = {
    "train": (TRAIN, dry_run),
    "condense": (CONDENSE, dry_run_condense),
}


def saved(folder: Path, job: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """The run.json that a run with these options would write, and what it holds."""
    file = folder / "run.json"
    file.write_text(json.dumps(JOBS[job][1](**options)))
    return str(file), json.loads(file.read_text())


def again(file: str, job: str) -> dict[str, Any]:
    """What is planned where the saved run is all that is given."""
    kind, plan = JOBS[job]
    common, own, *_ = read_config(file, kind)
    found: dict[str, Any] = json.loads(json.dumps(plan(kind.common(**common), **own)))
    return found


def rows(answer: Any) -> list[str]:
    """What a dry run prints, without the lines on what was chosen."""
    assert (answer.status, answer.err) == (0, ""), answer
    return [line for line in answer.out.splitlines() if line.split()[0] != "choice"]


@pytest.mark.parametrize("method", list(condensation.METHODS))
def test_a_saved_condensation_is_planned_exactly_again(method: str, tmp_path: Path) -> None:
    file, first = saved(tmp_path, "condense", method=method, ipc=2, steps=2)
    second = again(file, "condense")
    assert second["config"] == first["config"]
    assert second["method_options"] == first["method_options"]


@pytest.mark.parametrize("method", ["blend", "dfad", "noise"])
def test_a_saved_training_is_planned_exactly_again(method: str, tmp_path: Path) -> None:
    file, first = saved(tmp_path, "train", method=method, steps=2)
    second = again(file, "train")
    assert second["config"] == first["config"]
    assert second["method_options"] == first["method_options"]


@pytest.mark.parametrize(
    ("job", "method", "options", "other"),
    [
        ("condense", "dm", {"ipc": 2, "steps": 2}, "random"),  # which reads none of the options of dm's loop
        ("condense", "frepo", {"images": 30}, "dsa"),
        ("train", "dfad", {"steps": 3, "lr": 0.02}, "noise"),
        ("train", "blend", {"batch_size": 16, "bank": 99}, "dafl"),
    ],
)
def test_another_method_is_planned_as_if_what_was_set_were_given(
    job: str, method: str, options: dict[str, Any], other: str, cli: Cli, tmp_path: Path
) -> None:
    file, _ = saved(tmp_path, job, method=method, **options)
    common = {name: value for name, value in options.items() if name != "bank"}  # the first method's own
    flags = [part for name, value in common.items() for part in (f"--{name.replace('_', '-')}", value)]
    wanted = rows(cli(job, "--method", other, *flags, "--dry-run"))
    assert rows(cli(job, "--config", file, "--method", other, "--dry-run")) == wanted


def test_what_was_set_and_another_method_does_not_read_is_refused(cli: Cli, tmp_path: Path) -> None:
    file, _ = saved(tmp_path, "condense", method="dm", ipc=2, steps=2, net_pool=3, nets="trained")
    answer = cli("condense", "--config", file, "--method", "random", "--dry-run")
    assert answer.status == 2
    assert "random does not read --nets, --net-pool" in answer.err


@pytest.mark.parametrize(("holder", "whose"), [("config", "condense"), ("method_options", "method random")])
def test_a_saved_option_that_there_is_not_is_named(holder: str, whose: str, cli: Cli, tmp_path: Path) -> None:
    file, about = saved(tmp_path, "condense", method="random", ipc=2)
    about[holder]["odd"] = 1
    Path(file).write_text(json.dumps(about))
    said = f"error: {file} holds 'odd', which is no option of {whose}: remove it\n"
    assert cli("condense", "--config", file).err == said


def test_a_preset_stays_with_its_method(cli: Cli, tmp_path: Path) -> None:
    file, first = saved(tmp_path, "train", method="dfad", preset="official", steps=2)
    assert again(file, "train")["config"] == first["config"]
    assert rows(cli("train", "--config", file, "--method", "noise", "--dry-run"))


def test_another_preset_is_planned_as_if_what_was_set_were_given(cli: Cli, tmp_path: Path) -> None:
    file, _ = saved(tmp_path, "train", method="dafl", steps=3, bank=99, feed="bank")
    flags = ("--preset", "zju", "--dry-run")
    wanted = rows(cli("train", "--method", "dafl", "--steps", 3, "--bank", 99, "--feed", "bank", *flags))
    assert rows(cli("train", "--config", file, *flags)) == wanted


@pytest.mark.parametrize(
    ("job", "options", "flags"),
    [
        ("train", {"method": "noise", "steps": 1, "batch_size": 16, "student": "mlp"}, ("--steps", 2)),
        ("condense", {"method": "mean", "ipc": 2}, ("--ipc", 1)),
    ],
)
def test_a_rerun_knows_what_a_person_had_set_of_the_first(
    job: str, options: dict[str, Any], flags: tuple[Any, ...], cli: Cli, teacher: Path, tmp_path: Path
) -> None:
    options |= {"teacher": str(teacher)} if job == "train" else {}
    file, first = saved(tmp_path, job, **options)
    assert cli(job, "--config", file, *flags, "--seed", 3, "--out", "again", "-q").status == 0
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert set(again["set_by_user"]) == {*first["set_by_user"], "seed"}


LARGE = ("--teacher", "resnet32.pt", "--shape", "3x48x48")


@pytest.mark.parametrize(
    ("job", "options", "fixed", "flags"),
    [
        ("train", {}, (), ("--teacher", "resnet32.pt")),  # the embedded job's length is its own
        ("train", {"teacher": "resnet32.pt"}, ("--teacher", "resnet32.pt"), ("--shape", "3x96x96")),
        ("condense", {"data": "npz:own.npz", "steps": 2}, ("--data", "npz:own.npz", "--steps", 2), ("--ipc", 1)),
        ("condense", {"data": "npz:own.npz", "ipc": 1}, ("--data", "npz:own.npz", "--ipc", 1), ("--factor", 1)),
        ("condense", {"ipc": 1}, ("--ipc", 1), ("--data", "npz:own.npz")),
        ("condense", {"data": "npz:own.npz", "ipc": 1}, ("--data", "npz:own.npz", "--ipc", 1), ("--init", "real")),
        ("train", {"teacher": "resnet32.pt", "shape": "3x48x48"}, LARGE, ("--shapes", 0.5)),
        ("train", {}, (), ("--source", "real")),
        ("train", {"method": "dafl", "preset": "zju"}, ("--method", "dafl", "--preset", "zju"), ("--source", "real")),
    ],
)
def test_what_is_read_off_what_is_replaced_is_as_in_a_fresh_run(
    job: str, options: dict[str, Any], fixed: tuple[Any, ...], flags: tuple[Any, ...], cli: Cli, tmp_path: Path
) -> None:
    import numpy as np
    import torch

    from datafree.models import build_model

    images, labels = np.zeros((200, 16, 16, 1), np.uint8), np.arange(200) % 10
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    torch.save(build_model("resnet32", shape=(3, 32, 32), classes=10).state_dict(), tmp_path / "resnet32.pt")
    file, _ = saved(tmp_path, job, **options)
    assert rows(cli(job, "--config", file, *flags, "--dry-run")) == rows(cli(job, *fixed, *flags, "--dry-run"))


def test_of_a_file_that_does_not_say_what_was_set_all_counts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"config": {"method": "dfad", "lr": 0.5}, "method_options": {}}')
    planned = rows(cli("train", "--config", "run.json", "--method", "noise", "--dry-run"))
    assert ["lr", "0.5"] in [line.split() for line in planned]


@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_the_results_of_the_tables_can_be_run_again(file: Path) -> None:
    """A row of a table links a result, which holds the run's manifest: that is what --config takes."""
    content = json.loads(file.read_text())
    if content["spec"]["job"] in JOBS and content["status"] == "done":
        common, own, chosen, _ = read_config(str(file), JOBS[content["spec"]["job"]][0])
        config = {name: value for name, value in content["run"]["config"].items() if value is not None}
        assert json.loads(json.dumps(common)) == config
        options = {name: value for name, value in content["run"]["method_options"].items() if value is not None}
        assert json.loads(json.dumps(own)) == options
        assert chosen == {*content["run"]["set_by_user"]}


def test_a_result_is_planned_as_the_run_that_made_it(cli: Cli, tmp_path: Path) -> None:
    file, manifest = saved(tmp_path, "condense", method="mean", ipc=2)
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"schema": 1, "cell": "a/mean", "status": "done", "run": manifest}))
    planned = rows(cli("condense", "--config", result, "--dry-run"))
    assert planned == rows(cli("condense", "--config", file, "--dry-run"))
    assert any(line.split() == ["method", "mean"] for line in planned)
    refused = cli("train", "--config", result, "--dry-run")
    assert "is of a condense run: give the run.json of a datafree train" in refused.err
    result.write_text(json.dumps({"schema": 1, "cell": "a/mean", "status": "failed", "run": None}))
    refused = cli("condense", "--config", result, "--dry-run")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "is no run.json of datafree condense" in refused.err


def test_another_teacher_brings_its_own_normalisation(cli: Cli, teacher: Path, tmp_path: Path) -> None:
    from datafree.models import build_model
    from datafree.runs import save_network

    about = {"arch": "resnet8", "shape": (1, 28, 28), "classes": 7, "mean": (0.9,), "std": (0.7,), "data": None}
    save_network(tmp_path / "other.safetensors", build_model("resnet8", shape=(1, 28, 28), classes=7), about)
    file, first = saved(tmp_path, "train", teacher=str(teacher), steps=2, student="resnet8", batch_size=16)
    assert (first["config"]["mean"], first["config"]["data"]) == ([0.3052], "digits")
    assert (first["method_options"]["bn"], first["method_options"]["shapes"]) == (0.0, 0.5)
    planned = dict(
        line.split(None, 1)
        for line in rows(cli("train", "--config", file, "--teacher", "other.safetensors", "--dry-run"))
    )
    wanted = {"mean": "0.9", "std": "0.7", "shape": "1x28x28", "classes": "7", "shapes": "0.0"}
    assert {name: planned[name].strip() for name in wanted} == wanted
    assert float(planned["bn"]) > 0
    assert planned["steps"].strip() == "2"


def test_what_follows_the_batch_and_the_student_is_found_anew(cli: Cli, tmp_path: Path) -> None:
    file, first = saved(tmp_path, "train", method="dfq", steps=2, batch_size=32)
    fresh = dict(line.split(None, 1) for line in rows(cli("train", "--method", "dfq", "--steps", 2, "--dry-run")))

    def planned(*flags: object) -> dict[str, str]:
        return dict(line.split(None, 1) for line in rows(cli("train", "--config", file, *flags, "--dry-run")))

    assert float(planned()["lr"]) == first["config"]["lr"] != float(fresh["lr"])
    assert planned("--batch-size", fresh["batch_size"].strip())["lr"] == fresh["lr"]
    assert planned("--batch-size", 64, "--lr", 0.3)["lr"].strip() == "0.3"
    plain = planned("--student", "lenet5_half")  # without norm layers: another optimiser, another rate
    assert (plain["optimizer"].strip(), plain["batch_size"].strip()) == ("adam", "32")  # the batch was set
    file, _ = saved(tmp_path, "train", method="dfq", steps=2, batch_size=32, lr=0.3)
    assert planned("--batch-size", 256)["lr"].strip() == "0.3"


@pytest.mark.parametrize("dry", [True, False])
def test_a_teacher_that_has_changed_since_is_told(cli: Cli, tmp_path: Path, dry: bool) -> None:
    from datafree.models import build_model
    from datafree.runs import save_network

    about = {"arch": "resnet8", "shape": (1, 8, 8), "classes": 10, "mean": (0.3,), "std": (0.4,), "data": "digits"}
    teacher, rest = tmp_path / "t.safetensors", ("--dry-run",) if dry else ("--force", "-q")
    save_network(teacher, build_model("resnet8", shape=(1, 8, 8), classes=10), about)
    file, _ = saved(tmp_path, "train", method="noise", teacher=str(teacher), steps=1, student="mlp", batch_size=16)

    def said(*flags: object) -> str:
        answer = cli("train", "--config", file, "--out", "again", *rest, *flags)
        assert answer.status == 0, answer
        return str(answer.out + answer.err)

    line = f"{teacher} has changed since the run was made that this one repeats"
    assert line not in said()
    other = build_model("resnet8", shape=(1, 8, 8), classes=10)
    next(other.parameters()).data.mul_(1.5)
    save_network(teacher, other, about)
    assert line in said()
    assert line not in said("--teacher", teacher)


def test_what_was_set_stays_with_another_teacher(cli: Cli, teacher: Path, tmp_path: Path) -> None:
    file, _ = saved(tmp_path, "train", teacher=str(teacher), steps=2, mean=(0.25,), shapes=0.75)
    planned = [line.split() for line in rows(cli("train", "--config", file, "--teacher", teacher, "--dry-run"))]
    assert all(row in planned for row in (["mean", "0.25"], ["shapes", "0.75"], ["std", "0.376"]))


@pytest.mark.parametrize(
    ("job", "options"), [("train", {"steps": 2}), ("condense", {"method": "dm", "ipc": 1, "steps": 2})]
)
def test_other_data_bring_their_own_domain(
    job: str, options: dict[str, Any], cli: Cli, foreign: Path, tmp_path: Path
) -> None:
    import numpy as np

    images, labels = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    if job == "train":
        options = {**options, "teacher": str(foreign / "grey.pt"), "arch": "resnet20", "data": "digits"}
    file, first = saved(tmp_path, job, **options)
    assert first["config"]["mean"] == [0.3052]
    other = ("--teacher", foreign / "resnet20.pt") if job == "train" else ()
    answer = cli(job, "--config", file, "--data", "npz:own.npz", *other, "--dry-run")
    planned = dict(line.split(None, 1) for line in rows(answer))
    assert planned["mean"].count(",") == 2


def test_of_a_runs_own_result_the_manifest_beside_it_is_read(cli: Cli, tmp_path: Path) -> None:
    file, _ = saved(tmp_path, "train", method="dfad", steps=2)
    (tmp_path / "result.json").write_text(json.dumps({"student_accuracy": 0.5, "steps": 2}))
    wanted = rows(cli("train", "--config", file, "--dry-run"))
    assert rows(cli("train", "--config", tmp_path / "result.json", "--dry-run")) == wanted
    (tmp_path / "run.json").unlink()
    refused = cli("train", "--config", tmp_path / "result.json", "--dry-run")
    assert "is no run.json of datafree train" in refused.err


@pytest.mark.parametrize(("job", "other"), [("train", "condense"), ("condense", "train")])
def test_another_commands_run_is_resumed_by_that_command(job: str, other: str, cli: Cli, tmp_path: Path) -> None:
    options = {"method": "mean"} if job == "condense" else {"steps": 2}
    saved(tmp_path, job, **options)
    answer = cli(other, "--resume", "--out", tmp_path)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == f"error: {tmp_path} holds a {job} run: resume it with datafree {job} --resume\n"


def test_what_follows_teacher_and_data_is_all_that_plans_read_off_them() -> None:
    from datafree.cli.methods import READ_OFF
    from datafree.synthesis import METHODS, load_method

    methods = [load_method(name) for name in METHODS]
    terms = {method.NEEDS_STATISTICS for method in methods if hasattr(method, "NEEDS_STATISTICS")}
    instead = {name for method in methods for name in getattr(method, "WITHOUT_STATISTICS", {})}
    assert terms | instead <= {*READ_OFF["data"]}
