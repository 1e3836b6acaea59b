"""Help, version and usage errors: at once, and without loading anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datafree.synthesis import METHODS

ROOT = Path(__file__).resolve().parents[2]

QUICK = [
    ("", 0),
    ("--help", 0),
    ("--version", 0),
    ("train --help", 0),
    ("train --method dafl --help", 0),
    ("pretrain -h", 0),
    ("evaluate --help", 0),
    ("sample --help", 0),
    ("list methods", 0),
    ("list models", 0),
    ("list data", 0),
    ("list generators", 0),
    ("nonsense", 2),
    ("train --bogus", 2),
    ("train --method nope", 2),
    ("train --method dfad --balance 5", 2),
    ("train --lr -1", 2),
    ("train --budget nonsense", 2),
    ("train --config none.json", 2),
    ("train --resume --out none", 2),
    ("train --resume", 2),
    ("pretrain --resume --out none", 2),
    ("pretrain --resume", 2),
    ("list", 2),
    ("evaluate", 2),
]

# Runs every line in one process, and says after each whether torch was loaded.
PROBE = """
import io, sys, contextlib
from datafree.cli import main
for line in sys.argv[1:]:
    sys.argv = ["datafree", *line.split()]
    status, quiet = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            main()
    except SystemExit as end:
        status = end.code
    print(status, *sorted({"torch", "numpy", "torchvision", "matplotlib", "rich"} & set(sys.modules)))
"""


def test_help_version_and_usage_errors_load_nothing_heavy(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROBE, *(line for line, _ in QUICK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    answers = dict(zip((line for line, _ in QUICK), done.stdout.splitlines(), strict=True))
    assert answers == {line: str(status) for line, status in QUICK}
    assert list(tmp_path.iterdir()) == []


def test_python_m_datafree_answers_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "datafree", "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - begin
    assert done.returncode == 0
    assert done.stdout.startswith("datafree, version ")
    assert done.stderr == ""
    assert seconds < 5  # a fifth of a second on an idle machine; loading torch takes longer on a busy one


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "datafree", "list", "models"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert err == b""


def test_without_arguments_the_help_is_shown(cli: Callable[..., Any]) -> None:
    answer = cli()
    assert answer.status == 0
    assert answer.out == cli("--help").out
    assert answer.err == ""
    for command in ("train", "pretrain", "evaluate", "sample", "list"):
        assert f"\n  {command} " in answer.out


def test_train_help_shows_the_flags_that_scripts_rely_on(cli: Callable[..., Any]) -> None:
    text = cli("train", "--help").out
    flags = (
        "--batch-size --lr --teacher --arch --student --method --data --shape --classes --mean --std --epochs --steps "
        "--budget --device --precision --threads --seed --out --checkpoint-every --resume --config --force --quiet "
        "--dry-run --download"
    )
    for flag in flags.split():
        assert f"{flag} " in text.replace(",", " "), flag
    assert "--balance" not in text
    assert "--bank" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_job_says_its_own_default_batch(cli: Callable[..., Any]) -> None:
    """The two commands share the option, not its default."""
    from datafree.jobs.pretraining import DEFAULTS

    lines = {command: " ".join(cli(command, "--help").out.split()) for command in ("train", "pretrain")}
    assert "images a step; default: 256 at 32 px and below" in lines["train"]
    assert f"images a step; default: {DEFAULTS['batch_size']} --" in lines["pretrain"]


def test_of_a_flag_that_is_given_twice_the_last_holds(cli: Callable[..., Any]) -> None:
    text = cli("train", "--method", "dafl", "--method=fast", "--help").out
    assert "Method fast:" in text
    assert "Method dafl:" not in text


def test_a_methods_help_adds_its_flags(cli: Callable[..., Any]) -> None:
    text = cli("train", "--method", "dafl", "--help").out
    assert "Method dafl:" in text
    assert "--balance" in text
    assert "--bank" in text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("train --bogus", "--bogus"),
        ("train --method gan", "unknown method 'gan': take one of noise, dafl, dfad, dfq"),
        ("train --method blnd", "unknown method 'blnd'; did you mean 'blend'?"),
        ("train --method dfad --balance 5", "belongs to --method dafl or dfq or"),
        ("train --steps many", "'many' is not a valid int"),
        ("train --precision 16", "'16' is not one of '32', 'bf16'"),
        ("train extra", "unexpected extra argument"),
        ("train --mean a,b", "give numbers with commas between"),
        ("evaluate gone --teacher-mean .5,,.5", "'--teacher-mean': '.5,,.5': give numbers with commas between"),
        ("train --resume", "name it with --out DIR"),
        ("pretrain --resume", "name it with --out DIR"),
        ("pretrain --resume --out run --steps 7", "leave out --steps"),
        ("list", "Choose from: methods, condensers, models, data, generators"),
        ("list everything", "is not one of"),
        ("evaluate", "name a student or a condensed set"),
        ("sample x", "Missing option '--out'"),
        ("pretrain --bogus", "No such option"),
    ],
)
def test_a_usage_error_is_short(cli: Callable[..., Any], line: str, text: str) -> None:
    answer = cli(*line.split())
    assert answer.status == 2
    assert answer.out == ""
    assert text in answer.err
    assert answer.err.startswith("error: ")
    assert "see: datafree" in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_help_says_how_long_a_run_is_where_nobody_does(cli: Callable[..., Any]) -> None:
    from datafree.jobs import condense_defaults, planning

    for command, usual, embedded in (
        ("train", planning.USUAL_LENGTH, planning.EMBEDDED_LENGTH),
        ("condense", condense_defaults.LENGTH, condense_defaults.EMBEDDED_LENGTH),
    ):
        text = " ".join(cli(command, "--help").out.split())
        assert f"default: {usual['budget']}, " in text
        assert f" {embedded['steps']:,} steps" in text


def test_digits_are_not_here_without_scikit_learn(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.cli.listing.find_data", lambda name: None)
    assert "; not here" in cli("list", "data").out.splitlines()[0]


def test_the_lists_name_what_there_is(cli: Callable[..., Any]) -> None:
    assert [line.split()[0] for line in cli("list", "methods").out.splitlines()] == list(METHODS)
    models = [line.split()[0] for line in cli("list", "models").out.splitlines()]
    assert {"lenet5", "lenet5_half", "resnet20", "wrn16_1", "vgg11", "convnet3", "mlp", "mobilenetv2"} <= set(models)
    data = {line.split()[0]: line for line in cli("list", "data").out.splitlines()}
    assert data["digits"].endswith("; here")
    assert data["tiny-imagenet"].endswith("not here")
    assert [line.split()[0] for line in cli("list", "generators").out.splitlines()] == ["small", "large", "dcgan"]
