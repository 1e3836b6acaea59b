"""`reproduce` from end to end: shards, two at a time, killed and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datafree.jobs import reproduce
from datafree.tables import read_results


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
        time.sleep(draw.uniform(4, 14))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / f"kill{kills}").touch()
    assert subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True).returncode == 0
    assert figures(tmp_path / "killed" / "digits-smoke") == figures(tmp_path / "whole" / "digits-smoke")
    begun = time.monotonic()
    done = subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True, text=True)
    assert time.monotonic() - begun < 10
    assert "6 there, 0 to run" in done.stdout
