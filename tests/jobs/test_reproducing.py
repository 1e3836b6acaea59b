"""`reproduce`: what is run, what is left alone, and what survives."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datafree import jobs
from datafree.jobs import reproduce, reproducing
from datafree.jobs.cell import NotHereError, data_state, run_cell, teacher_options, trained_teacher
from datafree.jobs.choosing import choose, parse_shard
from datafree.jobs.reproducing import preview
from datafree.jobs.scheduling import Child, Scheduler
from datafree.jobs.standing import hold_log, locked
from datafree.report.compared import read_runs
from datafree.report.comparison import table as compared_table
from datafree.runs import WriteError
from datafree.tables import defaults, load_table, read_results

TINY = """\
title = "Tiny"

[options]
data = "digits"
steps = 3
threads = 1

[teachers.lenet]
pretrain = { data = "digits", arch = "lenet5", steps = 2 }

[teachers.elsewhere]
file = "net.pt"
sha256 = "00"

[groups.a]
job = "pretrain"
rows = ["one", "two", "three"]

[groups.b]
teacher = "lenet"
rows = ["noise"]
options = { student = "lenet5_half", batch_size = 8 }

[groups.c]
teacher = "elsewhere"
rows = ["noise"]

[rows.one]
options = { arch = "lenet5_half" }

[rows.two]
options = { arch = "lenet5_half", lr = 0.01 }

[rows.three]
options = { arch = "torchvision:nonsense" }

[rows.noise]
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def cell_of(table: Path, name: str) -> Any:
    return next(cell for cell in load_table(table).cells if cell.name == name)


def test_a_cell_is_run_once_and_its_result_names_its_spec(tiny, tmp_path):
    cell = cell_of(tiny, "a/one")
    path = run_cell(cell, 0, tmp_path / "out")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["status"] == "done"
    assert content["hash"] == cell.digest(0)
    assert content["result"]["steps"] == 3
    assert [p.name for p in (tmp_path / "out").glob("*.json")] == [path.name]
    assert not list((tmp_path / "out" / "runs").iterdir())
    before = path.stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out") == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["a/one", "b/noise"])
def test_a_seed_reaches_the_run(name, tiny, tmp_path):
    content = json.loads(run_cell(cell_of(tiny, name), 1, tmp_path / "out").read_text(encoding="utf-8"))
    assert [content["seed"], content["result"]["seed"], content["run"]["seed"]] == [1, 1, 1]
    assert content["run"]["config"]["seed"] == 1


def stale(path: Path) -> None:
    """Makes a result one of other defaults."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["defaults"]["weight_decay"] = 0.125
    path.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_to_run_again_is_told_and_left_to_who_holds_the_lock(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "tiny"
    paths = [run_cell(cell_of(tiny, name), 0, folder, keep=True) for name in ("a/one", "a/three")]
    orders: list[tuple[int, bool]] = []

    def run(self: Scheduler, missing: list[Any]) -> list[Any]:
        orders.append((len(missing), self.order["retry"]))
        return []

    monkeypatch.setattr(Scheduler, "run", run)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one", "a/three"])
    stale(paths[0])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said: list[str] = []
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"], say=said.append)
    reproduce(tiny, out=tmp_path / "out", cells=["a/three"], retry=True, say=said.append)
    assert orders == [(0, False), (1, False), (1, True)]
    assert said == [
        "a/one: runs again, its result is of other defaults (weight_decay 0.125, now None); the former one is kept",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
    ]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "Superseded" in (tmp_path / "out" / "tiny.md").read_text(encoding="utf-8")


def test_a_result_of_other_defaults_is_run_again_and_kept(tiny, tmp_path):
    cell = cell_of(tiny, "a/one")
    path = run_cell(cell, 0, tmp_path / "out", keep=True)
    stale(path)
    other = path.read_text(encoding="utf-8")
    begun = (tmp_path / "out" / "runs" / path.stem / "run.json").stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out", keep=True) == path
    assert path.with_name(f"{path.stem}-old1.json").read_text(encoding="utf-8") == other
    assert json.loads(path.read_text(encoding="utf-8"))["defaults"]["weight_decay"] is None
    assert (tmp_path / "out" / "runs" / path.stem / "run.json").stat().st_mtime_ns > begun  # not the former run
    # The run that --keep handed over is kept beside its result.
    assert (tmp_path / "out" / "runs" / f"{path.stem}-old1" / "run.json").stat().st_mtime_ns == begun
    stale(path)
    run_cell(cell, 0, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*-old*.json")) == [
        f"{path.stem}-old1.json", f"{path.stem}-old2.json",
    ]  # fmt: skip


def test_a_failure_is_run_again_where_that_is_asked_for(tiny, tmp_path):
    cell = cell_of(tiny, "a/three")
    before = run_cell(cell, 0, tmp_path / "out").stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out").stat().st_mtime_ns == before
    assert run_cell(cell, 0, tmp_path / "out", retry=True).stat().st_mtime_ns > before
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_a_result_names_the_defaults_from_before_its_run(tiny, tmp_path, monkeypatch):
    """Sources that are edited during a run are not what it had."""
    pretrain = jobs.pretrain

    def edited(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setitem(defaults.JOB_DEFAULTS, "pretrain", ("pretraining.py", ("LENGTH",)))
        return pretrain(*arguments, **options)

    monkeypatch.setattr(jobs, "pretrain", edited)
    content = json.loads(run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert "LENGTH" not in content["defaults"]
    assert "'weight_decay': 0.0005" in content["defaults"]["DEFAULTS"]


@pytest.fixture
def interrupted(tiny, tmp_path, monkeypatch):
    """A cell's folder of work as Ctrl-C leaves it, and the jobs that are called from then on."""
    train, resume = jobs.train, jobs.resume
    called: list[str] = []

    def stopped(**options: Any) -> Any:
        (train(**options).path / "result.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")

    def noted(name: str, job: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return job(*arguments, **options)

        return run

    monkeypatch.setattr(jobs, "train", noted("train", train))
    monkeypatch.setattr(jobs, "resume", noted("resume", resume))
    (work,) = (path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir())
    assert (work / "checkpoint.pt").is_file()
    return work, called


@pytest.mark.parametrize("known", [True, False])
def test_a_run_of_other_defaults_is_not_gone_on_with(tiny, tmp_path, interrupted, known):
    work, called = interrupted
    about = json.loads((work / "defaults.json").read_text(encoding="utf-8"))
    assert about == defaults.cell_defaults(cell_of(tiny, "b/noise"))
    if known:
        (work / "defaults.json").write_text(json.dumps({**about, "momentum": 0.125}), encoding="utf-8")
    else:  # of a version that did not say
        (work / "defaults.json").unlink()
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["train"]
    assert json.loads(path.read_text(encoding="utf-8"))["defaults"] == about


def test_a_run_of_the_same_defaults_is_gone_on_with(tiny, tmp_path, interrupted):
    _, called = interrupted
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume"]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


def test_a_network_with_data_is_gone_on_with_too(tiny, tmp_path, monkeypatch):
    pretrain, resume = jobs.pretrain, jobs.resume_pretrain
    called: list[Path] = []

    def stopped(*arguments: Any, **options: Any) -> Any:
        pretrain(*arguments, **options)
        (options["out"] / "result.json").unlink()
        raise KeyboardInterrupt

    def noted(work: Path) -> Any:
        called.append(work)
        return resume(work)

    monkeypatch.setattr(jobs, "pretrain", stopped)
    monkeypatch.setattr(jobs, "resume_pretrain", noted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    path = run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    assert called == [tmp_path / "out" / "runs" / path.stem]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["datafree.runs.os.fsync", "datafree.jobs.fresh.render_report"])
def test_a_full_disk_is_no_result_and_the_run_is_kept(tiny, tmp_path, monkeypatch, interrupted, place):
    """The second: what is not written by `atomic_write`."""
    work, called = interrupted
    with monkeypatch.context() as during:
        during.setattr(place, full)
        with pytest.raises(WriteError, match="No space left"):
            run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume"]
    assert (work / "checkpoint.pt").is_file()
    assert not list((tmp_path / "out").glob("*.json"))
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume", "resume"]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"
    assert not work.exists()


def test_a_failure_is_a_result(tiny, tmp_path):
    path = run_cell(cell_of(tiny, "a/three"), 0, tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.path == path
    assert result.status == "failed"
    assert "nonsense" in result.content["error"]


def test_a_recipe_teacher_is_trained_once(tiny, tmp_path):
    cell = cell_of(tiny, "b/noise")
    first = teacher_options(cell.teacher, beside=tiny, teachers=None, download=False)["teacher"]
    weights = Path(first) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    content = json.loads(run_cell(cell, 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert content["status"] == "done", content["error"]
    assert content["result"]["teacher"] == "lenet5"
    assert weights.stat().st_mtime_ns == before
    assert content["run"]["config"]["teacher"] == Path(first).name  # no folder of this machine


def test_a_recipe_teacher_that_was_interrupted_is_gone_on_with(tmp_path, monkeypatch):
    pretrain, called = jobs.pretrain, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        called.append("pretrain")
        pretrain(*arguments, **options)
        (options["out"] / "result.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("datafree.jobs.cell.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(jobs, "pretrain", stopped)
    recipe = {"data": "digits", "arch": "lenet5_half", "steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trained_teacher(recipe)
    assert (trained_teacher(recipe) / "result.json").is_file()
    assert called == ["pretrain"]


def test_a_recipe_teacher_is_of_its_data_and_of_todays_defaults(tmp_path, monkeypatch):
    made: list[Path] = []

    def pretrain(config: Any, *, out: Path, force: bool) -> None:
        made.append(out)
        out.mkdir(parents=True)
        (out / "result.json").write_text("{}")

    monkeypatch.setattr("datafree.jobs.cell.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(jobs, "pretrain", pretrain)
    file = tmp_path / "d.npz"
    recipe = {"data": f"npz:{file}", "arch": "mlp"}
    file.write_bytes(b"one")
    assert trained_teacher(recipe) == trained_teacher(recipe)
    file.write_bytes(b"other")
    trained_teacher(recipe)
    monkeypatch.setattr("datafree.jobs.cell.defaults_of", lambda *_: {"lr": 7})
    trained_teacher(recipe)
    assert len(made) == len(set(made)) == 3


def test_the_state_of_data_sees_pictures_behind_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    states = [data_state(f"imagefolder:{tmp_path}/data")]
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"one")
    states.append(data_state(f"imagefolder:{tmp_path}/data"))
    assert states[0] != states[1]


def test_what_is_not_here_is_no_failure(tiny, tmp_path):
    cell = cell_of(tiny, "c/noise")
    with pytest.raises(NotHereError, match=r"its teacher net\.pt is not here: .*--teachers"):
        run_cell(cell, 0, tmp_path / "out", teachers=tmp_path)
    assert not list((tmp_path / "out").glob("*.json"))
    (tmp_path / "net.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match="the table wants 00"):
        teacher_options(cell.teacher, beside=tiny, teachers=tmp_path, download=False)


@pytest.mark.parametrize("where", ["b", "teachers.lenet.pretrain"])
def test_missing_test_data_are_found_before_anything_is_trained(tiny, tmp_path, where):
    """Of a distillation: the data that it names, else its teacher's."""
    text = TINY.replace('data = "digits"\nsteps', "steps").replace("[groups.a]", "[groups.a]\noptions = { lr = 0.1 }")
    if where == "b":
        text = text.replace('student = "lenet5_half", batch', 'data = "mnist", student = "lenet5_half", batch')
    else:
        text = text.replace('pretrain = { data = "digits"', 'pretrain = { data = "mnist"')
    tiny.write_text(text, encoding="utf-8")
    with pytest.raises(NotHereError, match="mnist was not found in"):
        run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    assert not (Path.home() / ".cache" / "datafree" / "teachers").exists()


def test_a_run_that_nothing_was_tested_in_is_a_failure(tiny, tmp_path):
    """Data that are there, without test images: a number is missing that every page shows."""
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "train.npz", x_train=images, y_train=labels)
    text = TINY.replace("batch_size = 8", f'batch_size = 8, data = "npz:{tmp_path}/train.npz"')
    tiny.write_text(text, encoding="utf-8")
    run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.status == "failed"
    assert "nothing is evaluated" in result.content["error"]


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_kill_after_the_result_left_is_cleared_away(tiny, tmp_path, keep):
    """By the cell's process where it finds the result of another, else by `reproduce`."""
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    work = folder / "runs" / path.stem
    for again in (
        lambda: run_cell(cell_of(tiny, "a/one"), 0, folder, keep=keep),
        lambda: reproduce(tiny, out=tmp_path / "out", cells=["a/one"], keep=keep),
    ):
        work.mkdir(exist_ok=True)
        (work / "defaults.json").write_text("{}", encoding="utf-8")
        again()
        assert work.exists() == keep


def test_what_another_process_is_at_is_not_cleared_away(tiny, tmp_path):
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    work = folder / "runs" / path.stem
    with locked(folder / "runs" / f"{path.stem}.lock"):
        work.mkdir()
        (work / "defaults.json").write_text("{}", encoding="utf-8")
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
        assert work.exists()


def test_a_kept_set_holds_its_scores_for_report(tmp_path, sets):
    result = run_cell(cell_of(sets, "c/random"), 0, tmp_path / "out", keep=True)
    content = json.loads(result.read_text(encoding="utf-8"))
    assert content["error"] is None
    scores = content["scores"]
    kept = json.loads((tmp_path / "out" / "runs" / result.stem / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["accuracy_mean"] == scores["accuracy_mean"]
    shown = compared_table(read_runs([tmp_path / "out" / "runs" / result.stem]))
    accuracy = dict(zip(shown["heads"], shown["rows"][0], strict=True))["Accuracy"]
    assert accuracy.startswith(f"{100 * scores['accuracy_mean']:.2f} ")


SETS = """\
title = "Sets"
[options]
data = "digits"
ipc = 1
threads = 1
[groups.c]
job = "condense"
evaluation = { networks = 1, protocol = "vico-noaug", archs = ["mlp"] }
[rows.random]
"""


@pytest.fixture
def sets(tmp_path):
    path = tmp_path / "sets.toml"
    path.write_text(SETS, encoding="utf-8")
    return path


def test_a_set_whose_scoring_failed_is_scored_again_and_not_condensed_again(sets, tmp_path, monkeypatch):
    cell, out = cell_of(sets, "c/random"), tmp_path / "out"
    asked: list[int] = []

    def scoring(*_: Any, seed: int, **__: Any) -> Any:
        asked.append(seed)
        if len(asked) == 1:
            raise RuntimeError("out of memory")
        return {"accuracy_mean": 0.5, "accuracy_std": 0.0, "networks": 1, "seconds": 3.0, "archs": {}}

    monkeypatch.setattr(jobs, "evaluate_set", scoring)
    path = run_cell(cell, 1, out)
    assert json.loads(path.read_text(encoding="utf-8"))["error"] == "RuntimeError: out of memory"
    begun = (out / "runs" / path.stem / "condensed.safetensors").stat().st_mtime_ns
    reproducing._tidy([path])
    assert run_cell(cell, 1, out) == path
    assert (out / "runs" / path.stem / "condensed.safetensors").stat().st_mtime_ns == begun
    monkeypatch.setattr(jobs, "condense", None)
    content = json.loads(run_cell(cell, 1, out, retry=True).read_text(encoding="utf-8"))
    assert content["status"] == "done"
    assert asked == [1, 1]  # the run's seed is that of its scoring too
    assert content["seconds"] == pytest.approx(3 + content["result"]["total_seconds"], abs=0.1)  # no sitting's
    assert not (out / "runs" / path.stem).exists()


def test_a_run_that_was_kept_stays(tiny, tmp_path):
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder, keep=True)
    run_cell(cell_of(tiny, "a/one"), 0, folder)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    assert (folder / "runs" / path.stem / "model.safetensors").is_file()
    path.unlink()  # as messages of a malformed result say
    run_cell(cell_of(tiny, "a/one"), 0, folder)
    assert (folder / "runs" / f"{path.stem}-old1" / "model.safetensors").is_file()


def test_a_network_by_a_teachers_recipe_is_the_teacher(tiny, tmp_path, monkeypatch):
    cell, pretrain = cell_of(tiny, "a/one"), jobs.pretrain
    trained: list[Path] = []

    def noted(*arguments: Any, out: Path, **more: Any) -> Any:
        trained.append(out)
        return pretrain(*arguments, out=out, **more)

    monkeypatch.setattr(jobs, "pretrain", noted)
    teacher = trained_teacher(cell.options)
    path = run_cell(cell, 0, tmp_path / "out", recipes=[cell.options])
    assert trained == [teacher]
    kept = json.loads((teacher / "result.json").read_text(encoding="utf-8"))
    assert json.loads(path.read_text(encoding="utf-8"))["result"]["accuracy"] == kept["accuracy"]
    run_cell(cell, 1, tmp_path / "out", recipes=[cell.options])
    assert len(trained) == 2


def test_whatever_a_network_of_ones_own_raises_is_a_result(tiny, tmp_path, monkeypatch):
    boom: dict[str, Any] = {}
    monkeypatch.setattr(jobs, "pretrain", lambda *_, **__: boom["boom"])
    (result,) = read_results(run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out").parent)
    assert result.content["error"].startswith("KeyError: 'boom' (test_reproducing.py, line ")


def test_nothing_is_run_into_the_package(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(reproducing, "tables_folder", lambda: tmp_path.resolve())
    for job in (reproduce, preview):
        with pytest.raises(ValueError, match=r"--out .*mine is in the package's own .*: give a folder elsewhere"):
            job(tiny, out=tmp_path / "mine")


def test_a_lock_holds_though_its_file_has_gone_meanwhile(tmp_path):
    """Who has waited for a file that is no more and who has made a new one must not both go on."""
    path, got = tmp_path / "a.lock", threading.Event()

    def wait() -> None:
        with locked(path):
            got.set()

    with locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        path.unlink()
        newer = locked(path)
        newer.__enter__()
    assert not got.wait(0.3)
    newer.__exit__(None, None, None)
    waiting.join(5)
    assert got.is_set()
    with locked(path), locked(path, wait=False) as held:
        assert not held
    with locked(path, remove=True):
        pass
    assert not path.exists()


def test_an_interruption_while_one_waits_for_a_lock_leaves_nothing_open(tmp_path):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    opened = len(os.listdir("/dev/fd"))
    with locked(tmp_path / "a.lock"):
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a.lock"):
            pass
        signal.signal(signal.SIGALRM, before)
    assert len(os.listdir("/dev/fd")) == opened
    with locked(tmp_path / "a.lock", wait=False) as mine:
        assert mine


def test_a_log_that_somebody_has_removed_is_none(tiny, tmp_path):
    skipped: list[tuple[str, str]] = []
    with subprocess.Popen(["false"], stdin=subprocess.PIPE) as process:
        process.wait()
        assert process.stdin is not None
        path = tmp_path / "none.json"
        child = Child(cell_of(tiny, "a/one"), 0, process, process.stdin, 1, path, path.with_suffix(".log"))
        said = Scheduler({"retry": False}, tmp_path, 1, print).outcome(child, skipped)
    assert said == "not run: its process ended with 1"
    assert skipped == [("a/one, seed 0", "its process ended with 1")]


def killed(cell: Any, path: Path, number: int, said: str = "") -> Child:
    """A cell whose process was killed by a signal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".log")
    log.write_text(said, encoding="utf-8")
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child of `nohup` would inherit that it is ignored
    try:
        with subprocess.Popen(["sh", "-c", f"kill -{number} $$"], stdin=subprocess.PIPE) as process:
            process.wait()
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert process.stdin is not None
    return Child(cell, 0, process, process.stdin, 1, path, log)


@pytest.mark.parametrize(
    ("number", "said", "error"),
    [
        (signal.SIGKILL, "", "its process was killed by SIGKILL (was there too little memory?)"),
        (signal.SIGSEGV, "a warning\nno room at /a/b", "its process was killed by SIGSEGV: no room at b"),
        (40, "", "its process was killed by signal 40"),
    ],
)
def test_a_killed_cell_has_failed_and_is_run_again_by_retry(tiny, tmp_path, number, said, error):
    cell, folder = cell_of(tiny, "a/one"), tmp_path / "out" / "tiny"
    path = folder / cell.file_name(0)
    work = folder / "runs" / path.stem
    work.mkdir(parents=True)
    (work / "defaults.json").write_text("{}", encoding="utf-8")
    child, skipped = killed(cell, path, number, said), list[tuple[str, str]]()
    assert Scheduler({"retry": False, "keep": False}, folder, 1, print).outcome(child, skipped) == f"failed: {error}"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["status"], content["error"], skipped) == ("failed", error, [])
    assert not child.log.exists()
    assert not list((folder / "runs").iterdir())
    assert reproduce(tiny, out=tmp_path / "out", cells=["a/one"]).found == 1
    run_cell(cell, 0, folder, retry=True)
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_cell_has_not_failed(tiny, tmp_path, number):
    cell, skipped = cell_of(tiny, "a/one"), list[tuple[str, str]]()
    child = killed(cell, tmp_path / cell.file_name(0), number)
    scheduler = Scheduler({"retry": False, "keep": False}, tmp_path, 1, print)
    if number == signal.SIGHUP:
        assert scheduler.outcome(child, skipped) == "not run: its process ended with -1"
    else:
        with pytest.raises(KeyboardInterrupt):
            scheduler.outcome(child, skipped)
    assert not list(tmp_path.glob("*.json"))


def test_a_killed_cell_that_another_process_is_at_has_not_failed(tiny, tmp_path):
    cell, skipped = cell_of(tiny, "a/one"), list[tuple[str, str]]()
    child = killed(cell, tmp_path / cell.file_name(0), signal.SIGKILL)
    with locked(tmp_path / "runs" / f"{child.path.stem}.lock"):
        said = Scheduler({"retry": False, "keep": False}, tmp_path, 1, print).outcome(child, skipped)
    assert said == "not run: its process ended with -9"
    assert not list(tmp_path.glob("*.json"))


ORDER = {"budget": None, "teachers": None, "download": False, "keep": False, "retry": False, "threads": 1, "seed": 0}


def begin(table: Path, cell: str, out: Path, *before: str) -> subprocess.Popen[bytes]:
    """A cell's process, whose stdin stays open as that of a living parent does."""
    command = [*before, sys.executable, "-m", "datafree.jobs.cell"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**ORDER, "table": str(table), "cell": cell, "out": str(out)}).encode() + b"\n")
    process.stdin.flush()
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Status and words."""
    assert process.stderr is not None
    with process, process.stderr:
        return process.wait(60), process.stderr.read().decode()


def test_the_process_of_a_cell_says_by_its_status_how_it_ended(tiny, tmp_path):
    run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    lock = tmp_path / "out" / "runs" / f"{Path(cell_of(tiny, 'a/two').file_name(0)).stem}.lock"
    with locked(lock):
        there, elsewhere = begin(tiny, "a/one", tmp_path / "out"), begin(tiny, "c/noise", tmp_path / "out")
        waiting = begin(tiny, "a/two", tmp_path / "out")
        assert ended(there) == (0, "")
        said = "its teacher net.pt is not here: name the folder that holds it by --teachers\n"
        assert ended(elsewhere) == (2, said)
        opened = Path(f"/proc/{waiting.pid}/fd")
        for _ in range(600):  # interrupted while it loads Python's modules, it would say so by a traceback
            if any(each.is_symlink() and each.readlink() == lock for each in opened.iterdir()):
                break
            time.sleep(0.1)
        waiting.send_signal(signal.SIGINT)
        assert ended(waiting) == (130, "")


def test_a_cells_run_says_how_a_person_starts_it(tiny, tmp_path):
    assert ended(begin(tiny, "a/one", tmp_path / "out")) == (0, "")
    (path,) = (tmp_path / "out").glob("*.json")
    command = json.loads(path.read_text(encoding="utf-8"))["run"]["command"]
    assert command == "datafree reproduce tiny.toml --cell a/one --seeds 1"


def test_without_locks_cells_are_run_all_the_same(tmp_path, monkeypatch):
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("datafree.jobs.standing.fcntl.flock", none)
    with locked(tmp_path / "a.lock", remove=True) as held:
        assert held
    assert not (tmp_path / "a.lock").exists()


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_told_by_the_status_too(tiny, tmp_path):
    status, said = ended(begin(tiny, "a/one", tmp_path / "out", "sh", "-c", 'ulimit -f 1; exec "$@"', "sh"))
    assert status == 2
    assert "cannot write" in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.json"))


def test_why_a_cell_was_not_run_is_told(tiny, tmp_path):
    said: list[str] = []
    done = reproduce(tiny, out=tmp_path / "out", cells=["c/noise"], say=said.append)
    reason = "its teacher net.pt is not here: name the folder that holds it by --teachers"
    assert done.skipped == (("c/noise, seed 0", reason),)
    assert said[-1] == f"[1/1] c/noise, seed 0: not run: {reason}"
    assert not list((tmp_path / "out" / "tiny" / "runs").iterdir())


@pytest.mark.parametrize(
    ("group", "name"),
    [("b", "student"), ("a", "arch")],
)
def test_a_network_in_a_file_is_looked_for_beside_the_table(tiny, tmp_path, monkeypatch, group, name):
    text = TINY.replace('"lenet5_half"', '"nets.py:make"')
    tiny.write_text(text, encoding="utf-8")
    seen: list[str] = []

    def job(config: Any = None, *, out: Path, **options: Any) -> None:
        seen.append(options[name] if config is None else getattr(config, name))
        raise ValueError("enough")

    monkeypatch.setattr(jobs, "train", job)
    monkeypatch.setattr(jobs, "pretrain", job)
    monkeypatch.setattr("datafree.jobs.cell.trained_teacher", lambda *_: tmp_path)
    run_cell(cell_of(tiny, {"a": "a/one", "b": "b/noise"}[group]), 0, tmp_path / "out")
    assert seen == [f"{tmp_path.resolve()}/nets.py:make"]


def test_networks_in_files_that_judge_a_set_keep_their_names(tmp_path, sets):
    sets.write_text(SETS.replace('["mlp"]', '["mlp", "nets.py:make"]'), encoding="utf-8")
    network = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "nets.py").write_text(network, encoding="utf-8")
    content = json.loads(run_cell(cell_of(sets, "c/random"), 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert list(content["scores"]["archs"]) == ["mlp", "nets.py:make"]
    assert str(tmp_path) not in json.dumps(content)
    reproducing.write_page(load_table(sets), tmp_path / "out", tmp_path / "page.md")
    assert "| mlp | nets.py:make |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_an_architecture_in_a_file_is_looked_for_beside_the_table(tmp_path):
    entry = {"source": "torchvision:resnet18", "arch": "nets.py:make", "mean": [0.5]}
    options = teacher_options(entry, beside=tmp_path / "t.toml", teachers=None, download=True)
    assert options == {
        "arch": f"{tmp_path.resolve()}/nets.py:make", "mean": (0.5,),
        "teacher": "torchvision:resnet18", "download": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0", ""])
def test_a_shard_is_a_number_below_a_count(text):
    with pytest.raises(ValueError, match="--shard"):
        parse_shard(text)


def test_shards_share_out_cells_and_seeds(tiny, tmp_path):
    def names(**options: Any) -> list[str]:
        return [name for name, _ in preview(tiny, out=tmp_path / "out", cells=["a/*"], seeds=2, **options)]

    shards = [names(shard=f"{n}/4") for n in range(4)]
    assert [len(shard) for shard in shards] == [2, 2, 1, 1]
    assert sorted(name for shard in shards for name in shard) == sorted(names())
    assert len(set(names())) == 6


def test_cells_are_chosen_by_pattern_and_cost(tiny):
    table = load_table(tiny)
    names = [cell.name for cell in choose(table, ["a/*", "b/noise"], None, ["hours"])]
    assert names == ["a/one", "a/two", "a/three", "b/noise"]
    assert choose(table, [], None, ["gpu"]) == []
    assert [cell.name for cell in choose(table, ["a/one"], "2s", [])] == ["a/one@2s"]
    with pytest.raises(ValueError, match=r"tiny has no cell 'd/\*': take GROUP/ROW of a/one"):
        choose(table, ["d/*"], None, [])
    with pytest.raises(ValueError, match="--budget is"):
        choose(table, ["a/one"], "soon", [])


def test_what_the_package_has_a_result_of_can_be_left_out(tiny, tmp_path, monkeypatch):
    """A result that failed, or one of other defaults, is none."""
    shipped = tmp_path / "package" / "results" / "tiny"
    monkeypatch.setattr(reproducing, "tables_folder", lambda: tmp_path / "package")
    paths = [run_cell(cell_of(tiny, name), 0, shipped) for name in ("a/one", "a/two", "a/three")]
    stale(paths[1])
    asked: dict[str, Any] = {"out": tmp_path / "out", "cells": ["a/*"]}
    listed = dict(preview(tiny, **asked))
    assert listed.pop("a/one, seed 0").startswith("minutes, to run, the package has ")
    assert listed == {f"a/{name}, seed 0": "minutes, to run" for name in ("two", "three")}
    assert dict(preview(tiny, **asked, missing=True)) == listed


def test_cells_that_are_one_spec_at_a_budget_are_run_once(tiny, tmp_path, monkeypatch):
    text = TINY.replace('"one", "two"', '"one", "longer", "two"')
    tiny.write_text(text + '\n[rows.longer]\noptions = { arch = "lenet5_half", steps = 9 }\n', encoding="utf-8")
    assert [cell.name for cell in choose(load_table(tiny), ["a/*"], None, [])][-1] == "a/longer"
    run: list[str] = []

    def noted(_: Scheduler, missing: list[Any]) -> list[Any]:
        run.extend(cell.name for cell, _ in missing)
        return []

    monkeypatch.setattr(Scheduler, "run", noted)
    said: list[str] = []
    for asked in (["a/one", "a/longer"], ["a/longer"]):
        reproduce(tiny, out=tmp_path / "out", cells=asked, budget="2s", say=said.append)
    assert run == ["a/one@2s", "a/one@2s"]
    assert said == 2 * [
        "a/longer@2s: at this length one with a/one@2s, which is run for both",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
    ]
    assert preview(tiny, out=tmp_path / "out", cells=["a/longer"], budget="2s") == [
        ("a/one@2s, seed 0", "minutes, to run"), ("a/longer@2s", "one with a/one@2s"),
    ]  # fmt: skip
    page = (tmp_path / "out" / "tiny@2s.md").read_text(encoding="utf-8")
    assert "Not run: one · two · three at 2s" in page


def test_a_result_at_another_length_is_not_superseded(tiny, tmp_path):
    for budget in (None, "1s"):
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"], budget=budget)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    for page in ("tiny.md", "tiny@1s.md"):
        text = (tmp_path / "out" / page).read_text(encoding="utf-8")
        assert text.count("| one |") == 1, page
        assert "Superseded" not in text, page


def test_a_file_that_is_not_the_cells_result_stops_all(tiny, tmp_path):
    """Its name says it is, and its spec that it is not: it would be neither shown nor run again."""
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"steps": 3', '"steps": 4', 1), encoding="utf-8")
    for job in (reproduce, preview):
        with pytest.raises(ValueError, match=rf"{path}:\d+: hash is .*: remove the file and run the cell again"):
            job(tiny, out=tmp_path / "out", cells=["a/one"])
    path.write_text(text.replace('"table": "tiny"', '"table": "tinier"'), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:3: a result of the table 'tinier' among those of 'tiny'"):
        reproduce(tiny, out=tmp_path / "out", cells=["a/two"])


def test_logs_of_processes_that_are_gone_are_cleared_away(tiny, tmp_path, monkeypatch):
    runs = tmp_path / "out" / "tiny" / "runs"
    runs.mkdir(parents=True)
    stem = Path(cell_of(tiny, "a/one").file_name(0)).stem
    gone, used, other = (runs / name for name in (f"{stem}.1.log", f"{stem}.2.log", "another.1.log"))
    gone.touch()
    other.touch()
    monkeypatch.setattr(Scheduler, "run", lambda *_: [])
    with open(used, "wb") as file:
        hold_log(file)
        process = subprocess.Popen(["sleep", "60"], stdout=file)
    try:  # its parent, which was to read the log, has let go of it
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"], keep=True)
        assert sorted(runs.iterdir()) == [used, other]
    finally:
        process.kill()
        process.wait()
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    assert sorted(runs.iterdir()) == [other]


@pytest.mark.slow
def test_shards_side_by_side_make_the_same_results_as_one(tiny, tmp_path):
    lines: list[str] = []
    whole = reproduce(tiny, out=tmp_path / "whole", cells=["a/*", "b/*"], jobs=2, say=lines.append)
    assert (whole.run, whole.found, whole.failed) == (4, 0, 1)
    assert lines[0] == "tiny: 4 cells and seeds, 0 there, 4 to run"
    for shard in ("0/2", "1/2"):
        reproduce(tiny, out=tmp_path / "parts", cells=["a/*", "b/*"], shard=shard)
    again = reproduce(tiny, out=tmp_path / "parts", cells=["a/*", "b/*"])
    assert (again.run, again.found) == (0, 4)
    assert figures(tmp_path / "whole" / "tiny") == figures(tmp_path / "parts" / "tiny")
    skipped = reproduce(tiny, out=tmp_path / "whole").skipped
    reason = "its teacher net.pt is not here: name the folder that holds it by --teachers"
    assert skipped == (("c/noise, seed 0", reason),)
    assert "| one | 3 steps | **" in whole.page.read_text(encoding="utf-8")
    assert "failed: " in whole.page.read_text(encoding="utf-8")


CLOCK = ("seconds", "peak", "latency")  # parts of names


def figures(folder: Path) -> dict[str, Any]:
    """What a result says, without what the clock says."""

    def plain(held: Any) -> Any:
        if isinstance(held, dict):
            return {k: plain(v) for k, v in held.items() if not any(c in k for c in CLOCK)}
        return held

    return {
        r.path.name: (r.status, plain(r.content["result"]), plain(r.content["scores"])) for r in read_results(folder)
    }


@pytest.mark.slow
def test_two_at_a_time_in_one_folder_wait_for_one_another(tiny, tmp_path):
    command = [
        sys.executable,
        "-m",
        "datafree",
        "reproduce",
        str(tiny),
        "--cell",
        "a/*",
        "--out",
        str(tmp_path / "out"),
    ]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate(timeout=200) for process in both]
    assert [words for _, words in answers] == [b"", b""]
    assert [process.returncode for process in both] == [1, 1]  # a/three fails
    results = read_results(tmp_path / "out" / "tiny")
    assert sorted(result.status for result in results) == ["done", "done", "failed"]
    assert not list((tmp_path / "out" / "tiny" / "runs").iterdir())


@pytest.mark.slow
def test_the_smoke_table_survives_being_killed_and_is_then_the_same(tmp_path):
    command = [sys.executable, "-m", "datafree", "reproduce", "digits-smoke", "--out"]
    draw = random.Random(0)
    while True:  # killed at three random moments, then left alone
        kills = len(list(tmp_path.glob("kill*")))
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        if kills == 3:
            assert process.wait(400) == 0
            break
        time.sleep(draw.uniform(8, 30))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / f"kill{kills}").touch()
    assert subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True).returncode == 0
    assert figures(tmp_path / "killed" / "digits-smoke") == figures(tmp_path / "whole" / "digits-smoke")
    begun = time.monotonic()
    done = subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True, text=True)
    assert time.monotonic() - begun < 10
    assert "6 there, 0 to run" in done.stdout
