"""The main job on real digits: what it writes, that it resumes to the last bit, what it warns of and refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import datafree
from datafree import runs
from datafree.cli import group
from datafree.jobs import Interrupted, pretraining, scoring
from datafree.report import render_report
from datafree.runs import CHECKPOINT, PREVIOUS
from datafree.synthesis.imaging import Imaging
from datafree.training import TermError, Trainer

# A run of a second: narrow generator, few and small steps; resnet8 is the smallest network that takes 8 px.
SHORT: dict[str, Any] = {"student": "resnet8", "steps": 20, "batch_size": 8, "student_steps": 3, "threads": 1}
NARROW: dict[str, Any] = {"generator_width": 4, "latent": 8, "bank": 100}
DFQ: dict[str, Any] = {**SHORT, **NARROW, "method": "dfq", "generator_steps": 1, "reset": 4}


class PowerCutError(Exception):
    """Stands for what ends a process at once."""


def same_weights(one: Path, two: Path, names: tuple[str, ...] = ("student", "generator")) -> None:
    for name in names:
        a, b = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), f"{name} differs"


@pytest.fixture(scope="session")
def finished(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of dfq. Tests copy the folder before they change it."""
    out = tmp_path_factory.mktemp("jobs") / "finished"
    datafree.train(teacher=teacher, out=out, **DFQ)
    return out


def test_a_run_writes_all_its_files(finished: Path, teacher: str) -> None:
    held = {p.name for p in finished.iterdir()}
    wanted = {"run.json", "result.json", "metrics.jsonl", "tensorboard", "images", "report.html", CHECKPOINT}
    assert wanted | {"student.safetensors", "generator.safetensors"} <= held
    assert not [name for name in held if name.endswith((".tmp", ".new"))]
    assert list((finished / "images").glob("step-*.png"))
    assert list((finished / "tensorboard").iterdir())
    assert (finished / "images" / "step-0000020.png").read_bytes().startswith(b"\x89PNG")
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "<html" in report
    assert "http://" not in report
    assert "https://" not in report


def test_the_result_has_what_scripts_rely_on(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    for name in ("teacher_accuracy", "student_accuracy", "agreement"):
        assert 0 <= result[name] <= 1
    for name in ("kl", "synthesis_seconds", "distillation_seconds", "total_seconds", "peak_rss_mb"):
        assert result[name] >= 0
    assert 0 < min(result["teacher_latency_ms"], result["student_latency_ms"]) < 1000
    assert result["latency_on"] == "cpu, 1 thread"
    assert result["teacher_accuracy"] > 0.5
    # 20 steps by 3 are 7 rounds of one batch, and warm-up rounds before them.
    assert result["images"] >= 7 * 8
    assert result["images"] % 8 == 0
    # The teacher's decisions against the student's, of every test image.
    counts = np.array(result["confusion"])
    assert counts.shape == (10, 10)
    assert counts.sum() == 355
    assert counts.trace() / 355 == result["agreement"]
    assert (result["steps"], result["threads"], result["seed"], result["precision"]) == (20, 1, 0, "32")
    named = {name: result[name] for name in ("method", "teacher", "student", "data")}
    assert named == {"method": "dfq", "teacher": "resnet8", "student": "resnet8", "data": "digits"}


def test_the_manifest_says_what_was_run(finished: Path, teacher: str) -> None:
    import hashlib

    about = json.loads((finished / "run.json").read_text())
    assert {"command", "config", "method_options", "set_by_user", "seed", "versions", "git", "machine"} <= about.keys()
    assert about["teacher"]["sha256"] == hashlib.sha256(Path(teacher).read_bytes()).hexdigest()
    assert about["config"]["steps"] == 20
    assert about["method_options"]["latent"] == 8
    assert {"teacher", "student", "steps", "batch_size", "latent", "reset"} <= set(about["set_by_user"])
    assert "temperature" not in about["set_by_user"]
    assert about["config"]["temperature"] == 20.0
    assert about["domain"]["shape"] == [1, 8, 8]
    assert about["domain"]["classes"] == 10


def test_metrics_are_rows_with_named_terms(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["step"] == 20  # however short the run
    tested = [row for row in rows if "test/accuracy" in row]
    assert len(tested) == 9  # ten parts of the run have nine borders
    assert {
        "student/kl",
        "generator/bn",
        "generator/adv",
        "generator/onehot",
        "generator/balance",
        "agreement",
        "lr",
    } <= tested[-1].keys()


def test_the_saved_student_is_the_one_that_was_tested(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    scores = datafree.evaluate(str(finished))
    assert scores["accuracy"] == result["student_accuracy"]
    assert scores["agreement"] == result["agreement"]
    assert scores["kl"] == pytest.approx(result["kl"], rel=1e-6)
    student, domain = datafree.load_student(str(finished))
    assert not student.training
    assert domain.name == "digits"
    assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_samples_come_with_soft_labels(finished: Path, tmp_path: Path) -> None:
    folder = datafree.sample(finished, 7, out=tmp_path / "samples")
    assert len(list((folder / "images").glob("*.png"))) == 7
    labels = load_file(folder / "labels.safetensors")
    assert labels["logits"].shape == (7, 10)
    torch.testing.assert_close(labels["probabilities"].sum(1), torch.ones(7))


@pytest.mark.parametrize(("mode", "feed", "training"), [("eval", "fresh", False), ("eval", "bank", True)])
def test_samples_are_drawn_as_the_student_was_shown_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, feed: str, training: bool
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["method_options"] |= {"sample_mode": mode, "feed": feed}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    plain, modes = scoring._batch, list[bool]()

    def batch(generator: torch.nn.Module, *rest: Any) -> torch.Tensor:
        modes.append(generator.training)
        return plain(generator, *rest)

    monkeypatch.setattr(scoring, "_batch", batch)
    datafree.sample(tmp_path / "run", 2, out=tmp_path / "samples")
    assert modes == [training]


def test_on_real_images_a_run_goes_on_with_its_own(teacher: str, tmp_path: Path, power_cut: Any) -> None:
    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 10
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    options = {**SHORT, "source": "real", "data": f"npz:{tmp_path / 'own.npz'}", "steps": 4, "checkpoint_every": 1e-9}
    with power_cut(1) as show:
        datafree.train(teacher=teacher, out=tmp_path / "run", show=show, **options)
    np.savez(tmp_path / "own.npz", x_train=255 - images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(
        ValueError, match=r"^the training images of npz:.* are not those .*: put the run's own back, or"
    ):
        datafree.resume(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a train run, which finds its data by their name: leave data out"):
        datafree.resume(tmp_path / "run", data=images)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["data_sha256"]  # as older runs have it
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    assert datafree.resume(tmp_path / "run").metrics["steps"] == 4
    assert not (tmp_path / "run" / "images").exists()  # grids would show the real images


def test_samples_that_were_interrupted_are_never_taken_for_others(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it happens: pictures and labels of two calls never stand side by side."""
    plain, left = runs.atomic_write, [0]

    def write(path: Path, content: Any) -> None:
        if path.suffix == ".png" and not left[0]:
            raise PowerCutError
        left[0] -= path.suffix == ".png"
        plain(path, content)

    monkeypatch.setattr(runs, "atomic_write", write)
    folder = tmp_path / "samples"
    left[0] = 4
    with pytest.raises(PowerCutError):
        datafree.sample(finished, 7, out=folder)
    assert len(list((folder / "images").iterdir())) == 4
    left[0] = 3
    datafree.sample(finished, 3, out=folder, force=True, seed=1)
    assert len(list((folder / "images").iterdir())) == 3
    assert load_file(folder / "labels.safetensors")["logits"].shape == (3, 10)
    left[0] = 2
    with pytest.raises(PowerCutError):
        datafree.sample(finished, 3, out=folder, force=True, seed=2)
    assert len(list((folder / "images").iterdir())) == 2
    assert not (folder / "labels.safetensors").exists()


def test_a_file_that_only_a_run_names_is_not_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from datafree.models import build_model\n\nopen('ran', 'w').close()\n\n"
        "def make():\n    return build_model('resnet8', shape=(1, 8, 8), classes=10)\n"
    )
    shutil.copytree(finished, "run")
    about = json.loads(Path("run/run.json").read_text())
    about["config"]["arch"] = "net.py:make"
    Path("run/run.json").write_text(json.dumps(about))
    for act in (datafree.evaluate, partial(datafree.sample, n=2, out="samples")):
        with pytest.raises(
            ValueError, match=r"^the teacher of .* --arch net.py:make: give --teacher-arch net.py:make \("
        ):
            act("run")
        with pytest.raises(ValueError, match=r"^the run in .* says what its teacher is: leave --teacher-arch out"):
            act(str(finished), teacher_arch="resnet8")
    assert not Path("ran").exists()
    scores = datafree.evaluate("run", teacher_arch="net.py:make")
    assert scores == {**datafree.evaluate(str(finished)), "student": "run"}
    assert datafree.sample("run", 2, out="samples", teacher_arch="net.py:make").is_dir()


def test_a_teacher_that_has_changed_since_is_no_measure(teacher: str, tmp_path: Path) -> None:
    """Its folder may hold another network by now."""
    copied = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, copied)
    datafree.train(teacher=str(copied), out=tmp_path / "run", **{**DFQ, "steps": 1})
    state = {name: t + 0.1 if t.is_floating_point() else t for name, t in load_file(copied).items()}
    with safe_open(teacher, framework="pt") as archive:
        save_file(state, copied, metadata=archive.metadata())
    with pytest.raises(ValueError, match=r"has changed since the run in .* was made") as caught:
        datafree.evaluate(str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"has changed since the run in .* was made"):
        datafree.sample(tmp_path / "run", 2, out=tmp_path / "samples")
    assert not (tmp_path / "samples").exists()
    named = datafree.evaluate(str(tmp_path / "run"), teacher=teacher)
    shutil.copy(teacher, copied)
    assert datafree.evaluate(str(tmp_path / "run")) == named


@pytest.mark.parametrize("method", ["nayer", "blend"])
def test_generators_that_are_told_classes_are_sampled(method: str, teacher: str, tmp_path: Path) -> None:
    """As many as asked for, over several batches; the same again for the same seed."""
    datafree.train(teacher=teacher, out=tmp_path / "run", method=method, steps=2, batch_size=20, threads=1)
    folders = [datafree.sample(tmp_path / "run", 25, out=tmp_path / str(i), seed=3) for i in range(2)]
    one, two = (load_file(folder / "labels.safetensors")["logits"] for folder in folders)
    assert one.shape == (25, 10)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), 10, pytest.param(18, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_to_the_last_bit(
    finished: Path, teacher: str, tmp_path: Path, step: int, power_cut: Any
) -> None:
    out = tmp_path / "run"
    with power_cut(step) as show:
        datafree.train(teacher=teacher, out=out, checkpoint_every=1e-9, show=show, **DFQ)
    assert not (out / "result.json").exists()
    assert (out / CHECKPOINT).exists()
    said: list[str] = []
    result = datafree.resume(out, say=said.append)
    assert f"going on from step {step - 1}" in said
    same_weights(finished, out)
    for name in ("student_accuracy", "agreement", "kl", "images", "rounds", "steps"):
        assert result.metrics[name] == json.loads((finished / "result.json").read_text())[name]
    rows = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)), "steps that were run twice are logged twice"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["noise", "dafl", "dfad"])
def test_every_method_resumes_to_the_last_bit(teacher: str, tmp_path: Path, method: str, power_cut: Any) -> None:
    common = {**SHORT, **({} if method == "noise" else NARROW), "teacher": teacher, "method": method, "steps": 12}
    common |= {"ema": 0.9, "evaluations": 4}
    datafree.train(out=tmp_path / "straight", **common)
    with power_cut(6) as show:
        datafree.train(out=tmp_path / "killed", checkpoint_every=1e-9, show=show, **common)
    datafree.resume(tmp_path / "killed")
    same_weights(
        tmp_path / "straight", tmp_path / "killed", ("student",) if method == "noise" else ("student", "generator")
    )


def test_a_torn_checkpoint_costs_steps_but_no_bit(finished: Path, teacher: str, tmp_path: Path, power_cut: Any) -> None:
    out = tmp_path / "run"
    with power_cut(12) as show:
        datafree.train(teacher=teacher, out=out, checkpoint_every=1e-9, show=show, **DFQ)
    content = (out / CHECKPOINT).read_bytes()
    (out / CHECKPOINT).write_bytes(content[: len(content) // 3])
    said: list[str] = []
    datafree.resume(out, say=said.append)
    assert [line for line in said if "torn or corrupt" in line]
    assert "going on from step 10" in said
    same_weights(finished, out)


def test_a_run_without_any_checkpoint_starts_anew(finished: Path, teacher: str, tmp_path: Path, power_cut: Any) -> None:
    out = tmp_path / "run"
    with power_cut(6) as show:
        datafree.train(teacher=teacher, out=out, show=show, **DFQ)
    assert not (out / CHECKPOINT).exists()
    assert not (out / PREVIOUS).exists()
    said: list[str] = []
    datafree.resume(out, say=said.append)
    assert "no checkpoint yet: starting from step 0" in said
    same_weights(finished, out)


@pytest.mark.slow
def test_the_embedded_job_without_any_checkpoint_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_cut: Any
) -> None:
    """Its teacher is there by then and not trained again; the student begins as it began all the same."""
    monkeypatch.setattr(pretraining, "EMBEDDED", {**pretraining.EMBEDDED, "epochs": 1})
    datafree.train(out=tmp_path / "straight", **DFQ)
    with power_cut(6) as show:
        datafree.train(out=tmp_path / "killed", show=show, **DFQ)
    datafree.resume(tmp_path / "killed")
    same_weights(tmp_path / "straight", tmp_path / "killed", ("student", "generator", "teacher"))


def test_a_folder_that_is_being_written_is_left_to_its_owner(finished: Path, teacher: str, tmp_path: Path) -> None:
    """Neither resumed nor overwritten, by this process or another; readers go on."""
    out, refused = tmp_path / "run", list[str]()

    def show(row: Mapping[str, Any]) -> None:
        if row["step"] == 10:
            acts: tuple[Callable[[], Any], ...] = (
                partial(datafree.resume, out),
                partial(datafree.train, teacher=teacher, out=out, force=True, **DFQ),
            )
            for act in acts:
                # Another process: it seeds none of this one's generators.
                with torch.random.fork_rng(), pytest.raises(ValueError, match="another run is being written") as caught:
                    act()
                refused.append(str(caught.value))
            assert "<html" in render_report(out)

    datafree.train(teacher=teacher, out=out, show=show, **DFQ)
    assert len(refused) == 2
    same_weights(finished, out)
    rows = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    assert not list(out.glob(".*"))


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    said: list[str] = []
    result = datafree.resume(finished, say=said.append)
    assert result.metrics == json.loads((finished / "result.json").read_text())
    assert said[-1].endswith("is finished")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_resume_refuses_a_teacher_that_has_changed(finished: Path, plain_teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    about = json.loads((out / "run.json").read_text())
    about["teacher"]["sha256"] = "0" * 64
    (out / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="has changed since the run began: start anew with another --out"):
        datafree.resume(out)


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run in"):
        datafree.resume(tmp_path)


def test_a_saved_configuration_gives_the_same_student(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    arguments = ["train", "--config", str(finished / "run.json"), "--out", str(out), "-q"]
    done = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    same_weights(finished, out)
    first, second = (json.loads((path / "run.json").read_text()) for path in (finished, out))
    assert first["config"] == second["config"]
    assert first["method_options"] == second["method_options"]


def test_flags_beside_a_saved_configuration_override_it(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    arguments = [
        "train",
        "--config",
        str(finished / "run.json"),
        "--out",
        str(out),
        "-q",
        "--epochs",
        ".01",
        "--seed",
        "1",
    ]
    assert CliRunner().invoke(group, arguments, catch_exceptions=False).exit_code == 0
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["steps"], config["epochs"], config["seed"]) == (None, 0.01, 1)
    with pytest.raises(AssertionError, match="student differs"):
        same_weights(finished, out)


def test_same_seed_same_student_another_seed_another(finished: Path, teacher: str, tmp_path: Path) -> None:
    datafree.train(teacher=teacher, out=tmp_path / "same", **DFQ)
    same_weights(finished, tmp_path / "same")
    datafree.train(teacher=teacher, out=tmp_path / "other", **{**DFQ, "seed": 1, "steps": 3})
    with pytest.raises(AssertionError, match="student differs"):
        same_weights(finished, tmp_path / "other")


def test_a_run_that_a_person_stops_is_saved(finished: Path, teacher: str, tmp_path: Path) -> None:
    import os
    import signal

    out = tmp_path / "run"

    def show(row: Mapping[str, Any]) -> None:
        if row["step"] == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=f"datafree train --resume --out {out}"):
        datafree.train(teacher=teacher, out=out, show=show, **DFQ)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    said: list[str] = []
    datafree.resume(out, say=said.append)
    assert [line for line in said if line in ("going on from step 10", "going on from step 11")]
    same_weights(finished, out)


def test_a_term_that_is_not_finite_ends_the_run(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(TermError, match=r"the term '.*' became (nan|inf|-inf) at step \d+: .*checkpoint"):
        datafree.train(teacher=teacher, out=tmp_path / "run", **{**DFQ, "lr": 1e30})
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("network", ["student", "generator"])
def test_weights_that_are_not_finite_are_never_saved(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """A step can spoil the weights though its terms were finite, and the next term comes after the checkpoint."""
    target = Trainer if network == "student" else Imaging
    plain, calls = target.step, list[int]()

    def step(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        calls.append(1)
        if len(calls) == 4:
            weights = self.network if network == "student" else self.generator
            with torch.no_grad():
                next(iter(weights.parameters())).fill_(torch.inf)

    monkeypatch.setattr(target, "step", step)
    with pytest.raises(TermError, match="the last good checkpoint is kept"):
        datafree.train(teacher=teacher, out=tmp_path / "run", **{**DFQ, "reset": 0, "checkpoint_every": 1e-9})
    monkeypatch.undo()
    result = datafree.resume(tmp_path / "run")
    assert result.metrics["steps"] == 20


def test_a_teacher_near_chance_gets_a_warning(teacher: str, tmp_path: Path) -> None:
    """Its classes are in another order than the data's: the usual mistake beside a wrong normalisation."""
    file = tmp_path / "shifted.safetensors"
    with safe_open(teacher, framework="pt") as archive:
        about = archive.metadata()
    state = load_file(teacher)
    shifted = {k: t.roll(1, 0).contiguous() if len(t.shape) and k.startswith("linear") else t for k, t in state.items()}
    save_file(shifted, file, metadata=about)
    said: list[str] = []
    result = datafree.train(teacher=str(file), out=tmp_path / "run", say=said.append, **{**DFQ, "steps": 2})
    (warning,) = [line for line in said if "near chance" in line]
    assert warning.startswith("warning: ")
    assert "wrong normalisation (--mean, --std) or class order?" in warning
    assert warning.removeprefix("warning: ") in result.metrics["warnings"]


def test_no_warning_where_all_is_well(finished: Path) -> None:
    assert json.loads((finished / "result.json").read_text())["warnings"] == []


def test_without_batch_norm_the_term_is_dropped_with_a_warning(plain_teacher: str, tmp_path: Path) -> None:
    said: list[str] = []
    result = datafree.train(teacher=plain_teacher, out=tmp_path / "run", say=said.append, **{**DFQ, "steps": 3})
    assert "warning: the teacher has no batch norm: the term 'bn' has nothing to match and is dropped" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["method_options"]["bn"] == 0.0
    assert result.metrics["images"] > 0


def test_asking_for_the_term_without_batch_norm_is_refused(plain_teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bn 2: the teacher has no batch norm"):
        datafree.train(teacher=plain_teacher, out=tmp_path / "run", **{**DFQ, "bn": 2.0})
    assert not (tmp_path / "run").exists()


def test_without_test_data_there_are_no_scores(tmp_path: Path) -> None:
    """A teacher of a shape and classes that no data set is known for: everything but the evaluation works."""
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels)
    datafree.pretrain(
        out=tmp_path / "teacher", data=f"npz:{tmp_path / 'own.npz'}", arch="resnet8", steps=3, batch_size=8
    )
    (tmp_path / "own.npz").unlink()
    file = str(tmp_path / "teacher" / "model.safetensors")
    result = datafree.train(teacher=file, out=tmp_path / "run", **{**DFQ, "steps": 4})
    names = ("teacher_accuracy", "student_accuracy", "agreement", "kl")
    assert [result.metrics[name] for name in names] == [None] * 4
    assert (tmp_path / "run" / "student.safetensors").exists()
    assert (tmp_path / "run" / "report.html").exists()
    assert result.student(torch.rand(2, 3, 12, 10)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "dfg"}, "unknown method 'dfg'"),
        ({"copy_share": 0.5}, "--copy-share belongs to mad, not to --method dfq"),
        ({"temprature": 3}, "unknown option 'temprature'"),
        ({"student": "resnet9"}, "resnet9"),
        ({"device": "cuda:7"}, "--device cuda:7 is not there"),
        ({"classes": 11}, "11"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean"),
        ({"shape": "8x8"}, "shape"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    teacher: str, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        datafree.train(teacher=teacher, out=tmp_path / "run", **{**DFQ, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_done(finished: Path, teacher: str) -> None:
    with pytest.raises(ValueError, match="go on with --resume, start anew with --force"):
        datafree.train(teacher=teacher, out=finished, **DFQ)


def test_force_does_not_delete_a_run_for_a_mistake(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {p.name for p in out.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)):
        datafree.train(teacher=str(tmp_path / "missing.pt"), out=out, force=True, **DFQ)
    assert {p.name for p in out.iterdir()} == before


def test_force_starts_anew(finished: Path, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    datafree.train(teacher=teacher, out=out, force=True, **{**DFQ, "steps": 3})
    assert json.loads((out / "result.json").read_text())["steps"] == 3
    assert not (out / "images" / "step-0000020.png").exists()


def test_a_dry_run_writes_nothing(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.jobs import dry_run

    monkeypatch.chdir(tmp_path)
    plan = dry_run(teacher=teacher, **DFQ)
    assert plan["expected_memory_mb"] > 0
    assert plan["student"]["parameters"] > 0
    assert plan["teacher"]["multiply_adds"] > 0
    assert not list(tmp_path.iterdir())


def test_bf16_trains(teacher: str, tmp_path: Path) -> None:
    result = datafree.train(teacher=teacher, out=tmp_path / "run", **{**DFQ, "steps": 4, "precision": "bf16"})
    assert result.metrics["precision"] == "bf16"
    weights = load_file(tmp_path / "run" / "student.safetensors")
    scores = datafree.evaluate(str(tmp_path / "run"))  # in float32, as a result is
    assert scores["accuracy"] == result.metrics["student_accuracy"]
    assert scores["kl"] == pytest.approx(result.metrics["kl"], rel=1e-6)
    assert all(t.dtype != torch.bfloat16 and t.isfinite().all() for t in weights.values() if t.is_floating_point())


def test_a_budget_is_kept(teacher: str, tmp_path: Path) -> None:
    options = {name: value for name, value in DFQ.items() if name != "steps"}
    result = datafree.train(teacher=teacher, out=tmp_path / "run", budget="2s", evaluations=0, **options)
    assert result.metrics["total_seconds"] == pytest.approx(2.0, rel=0.15)  # steps are long beside so short a budget
