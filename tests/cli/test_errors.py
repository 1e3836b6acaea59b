"""Bad input: exit status 2, one line on stderr that says what to do, no traceback, nothing written or lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Cli = Callable[..., Any]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(answer: Any, text: str) -> None:
    assert answer.status == 2, answer
    assert answer.out == ""
    assert text in answer.err, answer.err
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) == 1, answer.err


NUMBERS = """--steps -3|--steps is -3: give a number above 0
--steps 0|--steps is 0: give a number above 0
--epochs nan|--epochs is nan
--lr -1|--lr is -1.0: give a number above 0
--lr 0|--lr is 0.0: give a number above 0
--batch-size -1|--batch-size is -1
--threads 0|--threads is 0
--seed -1|--seed is -1: give a number 0 or more
--seed 99999999999999999999|give a number below 2^63
--classes -1|--classes is -1
--temperature 0|--temperature is 0.0
--ema 1|--ema is 1.0: give a number from 0 to below 1
--momentum 1.5|--momentum is 1.5
--weight-decay -1|--weight-decay is -1.0
--checkpoint-every 0|--checkpoint-every is 0.0
--evaluations -1|--evaluations is -1
--prior nan,1,1,1,1,1,1,1,1,1|--prior is (nan, 1.0
--prior inf,1,1,1,1,1,1,1,1,1|give one share a class, 0 or more, not all 0
--prior 0,0|give one share a class, 0 or more, not all 0
--milestones 2|--milestones is (2.0,): give shares of the run
--budget nonsense|--budget is 'nonsense': give a time such as 90s, 15m or 1.5h
--budget -5m|give a time such as
--budget 0|give a time such as
--budget 5m --steps 3|exclude each other: give one
--latent 0|--latent is 0
--bank -1|--bank is -1
--student-steps 0|--student-steps is 0
--warmup 2|--warmup is 2.0
--generator-lr nan|--generator-lr is nan
--device cuda:99|is not there: take cpu
--device meta|is not there: take cpu
--device nonsense|is not there: take cpu"""


@pytest.mark.parametrize("line", NUMBERS.splitlines())
def test_impossible_values(cli: Cli, tmp_path: Path, line: str) -> None:
    flags, _, text = line.partition("|")
    refused(cli("train", *flags.split()), text)
    assert list(tmp_path.iterdir()) == []


TEACHERS = """missing.pt|no file missing.pt: give a checkpoint
resnet34|say torchvision:resnet34
.|is a folder without
text.pt|is no checkpoint, or is cut short
empty.pt|is empty
text.safetensors|is no safetensors file
pickled.pt|holds a pickled object, which would run code when loaded; convert it
nothing.pt|holds no state dict
square.pt|name it with --arch: lenet5
resnet20.pt --arch resnet56|does not fit resnet56: missing layer1.3.conv1.weight
resnet20.pt --arch resnet56|closest: resnet20
resnet20.pt --arch nope|unknown network 'nope'
resnet20.pt --classes 5|has 10 classes
resnet20.pt --data cifar100|has 10 classes
resnet20.pt --data nope|unknown data 'nope'
resnet20.pt --mean 0|--mean has 1 value, the images have 3 channels: give 3
resnet20.pt --std 1,1|--std has 2 values
resnet20.pt --std 0,1,1|greater than 0
resnet20.pt --mean nan,0,0|finite
resnet20.pt --shape 3x32|give channels x height x width
resnet20.pt --shape 1x32x32|takes 3 channels
resnet20.pt --student nope|unknown network 'nope'
resnet20.pt --student nets.py:raises|RuntimeError: first line
wrn10_1.pt --shape 3x24x40 --student nets.py:square|cannot take images of 3x24x40
square.pt --arch nets.py:square --shape 3x24x24|give data that fit
square.pt --arch nets.py:raises|failed when it was run: RuntimeError: first line
square.pt --arch nets.py:no_module|returned int, not a torch.nn.Module
square.pt --arch nets.py:wants|TypeError
square.pt --arch nets.py:gone|defines no function 'gone'
square.pt --arch gone.py:f|no file gone.py
square.pt --arch broken.py:f|SyntaxError
torchvision:nope|unknown network 'torchvision:nope'
torchvision:resnet18|allow the download with --download
timm:resnet18|timm"""


@pytest.mark.parametrize("line", TEACHERS.splitlines())
def test_teachers_that_cannot_be_had(
    cli: Cli, foreign: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    monkeypatch.chdir(foreign)
    flags, _, text = line.partition("|")
    before = tree(foreign)
    refused(cli("train", "--steps", 1, "--out", tmp_path / "run", "--teacher", *flags.split()), text)
    assert not (tmp_path / "run").exists()
    after = {name: content for name, content in tree(foreign).items() if "__pycache__" not in name}
    assert after == before


def test_a_batch_norm_weight_without_batch_norm(cli: Cli, teacher: Path) -> None:
    refused(cli("train", "--teacher", teacher, "--bn", 1), "the teacher has no batch norm")


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_folders_that_hold_something_else(cli: Cli, teacher: Path, tmp_path: Path, command: str) -> None:
    given = ("--teacher", teacher) if command == "train" else ("--arch", "lenet5")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    refused(cli(command, *given, "--steps", 1, "--out", "thesis"), "thesis is not empty (it holds thesis.tex)")
    refused(cli(command, *given, "--steps", 1, "--out", "file"), "file is a file: give a folder as --out")
    refused(cli(command, *given, "--steps", 1, "--out", "file/sub"), "give another --out")
    assert tree(tmp_path) == before


EMPTY = """train --teacher=|--teacher is empty: give its value, or leave it out
train --student= --steps 1|--student is empty
train --out= --steps 1|--out is empty: give its value, or leave it out
pretrain --out= --steps 1|--out is empty
condense --out= --method random|--out is empty
condense --method rded --teacher=|--teacher is empty
experts --out= --count 1 --epochs 1|--out is empty
evaluate net --teacher=|--teacher is empty
sample net --out=|--out is empty
report net --out=|out is empty: give its value
reproduce digits-smoke --out=|--out is empty
reproduce digits-smoke --dry-run --out=|--out is empty
reproduce digits-smoke --teachers=|--teachers is empty"""


@pytest.mark.parametrize("line", EMPTY.splitlines())
def test_an_empty_value_is_none(cli: Cli, tmp_path: Path, line: str) -> None:
    (tmp_path / "net").mkdir()
    flags, _, text = line.partition("|")
    refused(cli(*flags.split()), text)
    assert list(tmp_path.iterdir()) == [tmp_path / "net"]


def test_a_misspelt_name_of_data_is_told_before_the_teacher_that_they_need(cli: Cli, tmp_path: Path) -> None:
    refused(cli("train", "--data", "fashon-mnist"), "unknown data 'fashon-mnist': did you mean fashion-mnist")
    refused(cli("train", "--data", "mnist"), "--data mnist needs --teacher")
    assert list(tmp_path.iterdir()) == []


def test_experts_do_not_lie_among_the_images_they_learn_from(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    flags = ("--data", "imagefolder:photos", "--count", 1, "--epochs", 1, "--out", "photos/experts")
    refused(cli("experts", *flags), "--out photos/experts lies in --data photos, whose images it would be among")
    assert list((tmp_path / "photos").rglob("*")) == [tmp_path / "photos" / "cat"]


def test_force_and_bad_input_lose_nothing(
    cli: Cli, teacher: Path, short: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", "--teacher", teacher, *short, "--out", "run", "-q").status == 0
    assert cli("pretrain", "--steps", 2, "--out", "net", "-q").status == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    refused(cli("train", "--teacher", "gone.pt", "--out", "run", "--force"), "no file gone.pt")
    refused(cli("train", "--student", "nope", "--out", "run", "--force"), "unknown network")
    refused(cli("train", "--teacher", "run", "--out", "run", "--force"), "lies in --out run")
    refused(cli("train", "--teacher", "net/model.safetensors", "--out", "net", "--force"), "lies in --out net")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(cli("train", "--teacher=~/net/model.safetensors", "--out", "net", "--force"), "lies in --out net")
    refused(cli("train", "--source", "condensed:run", "--out", "run", "--force"), "--source run lies in --out run")
    refused(cli("pretrain", "--data", "imagefolder:run/images", "--out", "run", "--force"), "lies in --out run")
    refused(cli("pretrain", "--arch", "nope", "--out", "net", "--force"), "unknown network")
    refused(cli("pretrain", "--data", "svhn", "--out", "net", "--force"), "svhn was not found")
    refused(cli("pretrain", "--steps", 2, "--out", "net"), "net is not empty")
    refused(cli("train", "--teacher", teacher, "--out", "run"), "go on with --resume, start anew with --force")
    refused(cli("sample", "run", "--n", 2, "--out", "run", "--force"), "run holds a run: give another --out")
    assert tree(tmp_path) == before
    assert cli("train", "--teacher", teacher, *short, "--out", "run", "-q", "--force").status == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_force_keeps_a_folder_of_pictures_that_no_run_made(
    cli: Cli, teacher: Path, short: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "trip" / "images").mkdir(parents=True)
    (tmp_path / "trip" / "images" / "sea.png").write_text("x")
    assert cli("train", "--teacher", teacher, *short, "--out", "trip", "-q", "--force").status == 0
    assert (tmp_path / "trip" / "images" / "sea.png").read_text() == "x"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("pretrain", "--data", "mnist"), "mnist was not found in "),
        (("pretrain", "--data", "mnist"), ".cache/datafree, data, /usr/share/datasets: add --download"),
        (("pretrain", "--data", "nope"), "unknown data 'nope'"),
        (("pretrain", "--data", "npz:gone.npz"), "gone.npz is not there"),
        (("pretrain", "--data", "imagefolder:gone"), "gone is not there"),
        (("pretrain", "--mean", "0,0,0"), "--mean has 3 values, the images have 1 channel: give 1"),
        (("pretrain", "--steps", "-1"), "--steps is -1"),
        (("pretrain", "--device", "nonsense"), "is not there: take cpu"),
        (("evaluate", "gone"), "there is nothing at gone"),
        (("evaluate", "TEACHER", "--data", "cifar100"), "cifar100 was not found in "),
        (("evaluate", "TEACHER", "--data", "nope"), "unknown data"),
        (("evaluate", "TEACHER", "--device", "cuda:99"), "--device cuda:99 is not there"),
        (("evaluate", "TEACHER", "--teacher", "gone.pt"), "no file gone.pt"),
        (("sample", "gone", "--out", "s"), "no run in gone"),
        (("sample", "TEACHER", "--out", "s"), "has no generator.safetensors"),
        (("sample", "TEACHER", "--out", "s", "--n", "0"), "--n is 0: give 1 or more"),
        (("sample", "TEACHER", "--out", "s", "--seed", "-1"), "--seed is -1"),
    ],
)
def test_the_other_commands(cli: Cli, teacher: Path, tmp_path: Path, args: tuple[str, ...], text: str) -> None:
    refused(cli(*(str(teacher) if arg == "TEACHER" else arg for arg in args)), text)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_wants_to_know_the_data(cli: Cli, foreign: Path) -> None:
    refused(cli("evaluate", foreign / "resnet20.pt"), "does not say which data it is for: give --data NAME")


@pytest.mark.parametrize("flags", ["--steps 7", "--seed 0", "--method dafl", "--force", "--dry-run"])
def test_resume_refuses_other_flags(cli: Cli, tmp_path: Path, flags: str) -> None:
    answer = cli("train", "--resume", "--out", "run", *flags.split())
    assert answer.status == 2
    assert f"leave out {flags.split()[0]}" in answer.err
    assert len(answer.err.splitlines()) == 2


def test_a_killed_pretraining_goes_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of another job is refused."""
    from datafree.jobs import pretraining

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    short = ("--steps", 3, "--batch-size", 300, "--checkpoint-every", 1e-9)
    assert cli("pretrain", *short, "--out", "straight", "-q").status == 0
    monkeypatch.setattr(pretraining, "save_network", power_cut)
    assert cli("pretrain", *short, "--out", "net", "-q").status == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(cli("train", "--resume", "--out", "net"), "resume it with datafree pretrain --resume")
    answer = cli("pretrain", "--resume", "--out", "net")
    assert answer.status == 0, answer
    assert "going on from step 3" in answer.err
    assert "net/model.safetensors" in answer.out
    networks = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "net")]
    assert networks[0] == networks[1]
    answer = cli("pretrain", "--resume", "--out", "net")
    assert (answer.status, "the run in net is finished" in answer.err) == (0, True)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"config": []}',
        '{"config": {}, "method_options": 3}',
        '{"config": {"steps": "many"}, "method_options": {}}',
        '{"config": {"stepz": 3}, "method_options": {}}',
        '{"config": {"mean": ["a"]}, "method_options": {}}',
        '{"config": {"method": "nope"}, "method_options": {}}',
        '{"config": {"method": "dfq"}, "method_options": {"bn": "x"}}',
        '{"config": {"method": "dfq"}, "method_options": {"nope": 1}}',
        '{"config": {"steps": -3}, "method_options": {}}',
        '{"job": "pretrain", "config": {}, "method_options": {}}',
    ],
)
def test_garbage_for_a_saved_run(cli: Cli, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    for args in (("train", "--config", "run/run.json"), ("train", "--resume", "--out", "run")):
        answer = cli(*args)
        assert (answer.status, answer.out) == (2, "")
        assert len(answer.err.splitlines()) <= 2, answer.err
    assert tree(tmp_path) == {"run/run.json": content.encode()}


def test_config_of_other_files(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x00\xff")
    refused(cli("train", "--config", "gone.json"), "gone.json cannot be read: No such file or directory")
    refused(cli("train", "--config", "weights.pt"), "weights.pt is no run.json of datafree train")
    refused(cli("train", "--config", tmp_path), "cannot be read: Is a directory")


def test_broken_results_of_a_finished_run(cli: Cli, teacher: Path, short: tuple[object, ...], tmp_path: Path) -> None:
    assert cli("train", "--teacher", teacher, *short, "--out", "run", "-q").status == 0
    result = tmp_path / "run" / "result.json"
    whole = json.loads(result.read_text())
    result.write_text("{torn")
    refused(cli("train", "--resume", "--out", "run", "-q"), "result.json cannot be read")
    result.unlink()  # as the line says: the run is evaluated again
    assert cli("train", "--resume", "--out", "run", "-q").status == 0
    again = json.loads(result.read_text())
    assert again["student_accuracy"] == whole["student_accuracy"]
    assert again["steps"] == whole["steps"]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["teacher"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    refused(cli("train", "--resume", "--out", "run", "-q"), "no run.json of datafree train")


def test_not_enough_memory_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    refused(cli("train", "--dry-run"), "not enough memory: give a smaller --batch-size")


def test_a_fault_of_the_program_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("datafree.jobs.dry_run", fail)
    with pytest.raises(ZeroDivisionError):
        cli("train", "--dry-run")
