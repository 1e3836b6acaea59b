"""The guides: their shell blocks are run as they stand; their links and the flags of all their commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from datafree.cli import COMMANDS, group

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/not-run.md")),
    ]
)
# What may follow ```: a misspelt word would take a block out of the tests without anybody noticing. Only bash is run.
KINDS = {"bash", "console", "sh", "text", "python", "toml"}
# A guide takes up to 60 s of one core; the rest is for machines that have other things to do.
SECONDS = 900

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXIT = re.compile(r"# exit (\d+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: the word after the fence, the text inside, and the line it begins at."""

    kind: str
    text: str
    line: int


class Command(NamedTuple):
    """What follows the word `datafree`, the line it stands in, and whether it is a line of code or words of a text."""

    words: tuple[str, ...]
    line: int
    code: bool


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def blocks(text: str) -> list[Block]:
    return [Block(found[1], found[2], line_at(text, found.start(2))) for found in FENCE.finditer(text)]


def commands(text: str) -> Iterator[Command]:
    """Those in blocks (continued lines joined), in indented lines and between backticks."""
    prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for block in blocks(text):
        if block.kind not in ("python", "toml"):
            joined = re.sub(r" *\\\n *", lambda found: " " * len(found[0]), block.text)
            for number, line in enumerate(joined.splitlines()):
                yield from command_in(line, block.line + number, code=True)
    for number, line in enumerate(prose.splitlines(), 1):
        for part in [line] if line.startswith("    ") else SPAN.findall(line):
            yield from command_in(part, number, code=line.startswith("    "))


def command_in(text: str, line: int, *, code: bool) -> Iterator[Command]:
    """The command in a line, whatever stands before `datafree`; comments, redirections and pipes are left out."""
    found = re.search(r"(?<![\w./-])datafree (.*)", text)
    if text.lstrip().startswith("#") or found is None:
        return
    rest = re.split(r"\s#|[|;&<>`]|\s\d>", found[1])[0]
    first = rest.split(" ", 1)[0]
    if first in COMMANDS or first.startswith("-") or re.match(r"\s*(\$ )?datafree ", text):
        yield Command(tuple(word for word in shlex.split(rest) if word != "..."), line, code)


def complaint(command: Command) -> str | None:
    """What the command line would say of the words, or None. Nothing is run and no file is read."""
    name, *words = command.words
    if name.startswith("-"):
        return None if name in ("--help", "-h", "--version") else f"no option {name}"
    found = group.get_command(click.Context(group), name)
    if found is None:
        return f"no command {name}"
    if "--config" in words:  # its file would say the method
        at = words.index("--config")
        del words[at : at + 2]
    asked = {"--help", "-h"} & set(words)
    try:
        found.make_context(name, [word for word in words if word not in asked])
    except click.MissingParameter as error:
        return None if asked or not command.code else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    return None


def test_commands_are_found_wherever_they_stand() -> None:
    text = (
        "Say `datafree list methods`, or `--seed 3`.\n\n    datafree report runs/a  # a page\n\n"
        "```bash\nA=1 torchrun -m datafree train \\\n    --steps 3 > log 2>&1\n# datafree is a package\n```\n"
        "```console\n$ datafree evaluate set --json | head\nerror: datafree has no words\n```\n"
        "```python\nimport datafree\n```\n"
    )
    assert [(command.words, command.line, command.code) for command in commands(text)] == [
        (("train", "--steps", "3"), 6, True),
        (("evaluate", "set", "--json"), 11, True),
        (("list", "methods"), 1, False),
        (("report", "runs/a"), 3, True),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --method dafl --balance 5 --config run.json", None),
        ("condense --ipc", "requires an argument"),
        ("train --no-such-flag", "No such option"),
        ("train --method dfad --balance 5", "belongs to --method dafl"),
        ("train --method nope", "unknown method"),
        ("nonsense", "no command"),
        ("--no-such-flag", "no option"),
        ("sample run", "Missing option"),
        ("list --help", None),
    ],
)
def test_what_does_not_exist_is_told(line: str, said: str | None) -> None:
    found = complaint(Command(tuple(line.split()), 1, code=True))
    assert (found is None) if said is None else (found is not None and said in found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [
        f"{name_of(page)}:{command.line}: datafree {shlex.join(command.words)}: {said}"
        for command in commands(text)
        if (said := complaint(command))
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = []
    for found in LINK.finditer(FENCE.sub("", text)):
        target, _, heading = found[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (heading and heading not in headings(path)):
            missing.append(found[1])
    assert missing == []


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_fences_are_of_kinds_that_we_know() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        opened = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert len(opened) == 2 * len(blocks(text)), f"{name_of(page)} has a fence that is not closed, or is indented"
        kinds = {block.kind for block in blocks(text)}
        assert kinds <= KINDS, f"{name_of(page)} has a block of {kinds - KINDS}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_stand_in_fences(page: Path) -> None:
    """An indented one has no kind: it would look like those that are run, and never be."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert not re.findall(r"^    (?:\$ )?datafree .*", prose, re.MULTILINE)


def test_the_index_names_every_page() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    named = {(DOCS / found.partition("#")[0]).resolve() for found in LINK.findall(text)}
    assert {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"} <= named


RUN = [page for page in PAGES if any(block.kind == "bash" for block in blocks(page.read_text(encoding="utf-8")))]


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a shell in which `datafree`, `python` and `torchrun` are this checkout's and this interpreter's."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in {"datafree": "-m datafree ", "python": "", "torchrun": "-m torch.distributed.run "}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {
        **os.environ,  # HOME and DATAFREE_DATA are the test's own, see conftest.py
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_blocks_run_as_they_stand(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """In order, in one folder. A block stops at its first failure; its status is 0, or what `# exit 2` says."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind != "bash":
            continue
        wanted = int((EXIT.findall(block.text) or ["0"])[-1])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        where = f"{name_of(page)}:{block.line}"
        assert done.returncode == wanted, f"{where}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"
