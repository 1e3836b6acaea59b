"""The cells of a table that `reproduce` runs, side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from datafree.jobs.standing import held, hold_log, lock_of, locked, release, stands, work_of
from datafree.runs import write_json
from datafree.tables import Cell, TableResult
from datafree.tables.defaults import cell_defaults
from datafree.tables.results import make_content

POLL_SECONDS = 0.1
# By these a person or the system ends all that runs: the cell goes on later. One killed by any other has failed.
INTERRUPTS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def full_name(cell: Cell, seed: int) -> str:
    return f"{cell.name}, seed {seed}"


@dataclass
class Scheduler:
    """Runs cells side by side, in order; a cell of several threads takes as many places.

    Attributes:
        order: what all children are told.
        folder: of the results; the children's words go to runs/CELL.PID.log there, with our own number.
        jobs: places.
        say: called with a line a cell.
    """

    order: dict[str, Any]
    folder: Path
    jobs: int
    say: Callable[[str], None]

    def run(self, missing: Sequence[tuple[Cell, int]]) -> list[tuple[str, str]]:
        """Returns what could not be run here, with the reason."""
        waiting, running, skipped = list(missing), list[Child](), list[tuple[str, str]]()
        done = 0
        try:
            while waiting or running:
                while waiting and self._places(waiting[0][0]) <= self.jobs - sum(c.places for c in running):
                    running.append(self._start(*waiting.pop(0)))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    done += 1
                    self.say(f"[{done}/{len(missing)}] {child.name}: {self.outcome(child, skipped)}")
                time.sleep(POLL_SECONDS)
        finally:
            for child in running:  # interrupted: they have the signal, or get it by the end of their stdin
                child.close()
            for child in running:
                child.process.wait()
                child.log.unlink(missing_ok=True)
        return skipped

    def _places(self, cell: Cell) -> int:
        return max(1, min(cell.threads or 1, self.jobs))

    def _start(self, cell: Cell, seed: int) -> Child:
        places = self._places(cell)
        threads = cell.threads or (1 if self.jobs > 1 else None)
        path = self.folder / cell.file_name(seed)
        log = work_of(path).with_name(f"{path.stem}.{os.getpid()}.log")  # others may wait for this cell
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        with open(log, "wb") as words:
            hold_log(words)
            process = subprocess.Popen(
                [sys.executable, "-m", "datafree.jobs.cell"],
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=words,
                env=environment,
            )
        assert process.stdin is not None
        order = {**self.order, "cell": cell.name, "seed": seed, "threads": threads}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return Child(cell, seed, process, process.stdin, places, path, log)

    def outcome(self, child: Child, skipped: list[tuple[str, str]]) -> str:
        """What became of a cell whose process has ended, in a few words; adds to what was skipped.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        child.close()
        code, words = child.process.returncode, child.words()
        result = held(child.path)
        if code in (0, 2, 130):  # it has said all; of a crash the log stays
            child.log.unlink(missing_ok=True)
        if result is not None and (code == 0 or stands(child.cell, result, self.order["retry"])):
            child.log.unlink(missing_ok=True)
            return outcome(result)
        reason = words[-1] if words else f"its process ended with {code}"
        if code in (130, -2, -15):
            raise KeyboardInterrupt("interrupted; the same command goes on")
        if code < 0 and -code not in INTERRUPTS and (result := record_death(child, self.order["keep"])) is not None:
            child.log.unlink(missing_ok=True)
            return outcome(result)
        skipped.append((child.name, reason))
        return f"not run: {reason}"


@dataclass
class Child:
    """A running cell."""

    cell: Cell
    seed: int
    process: subprocess.Popen[bytes]
    stdin: IO[bytes]
    places: int
    path: Path
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return full_name(self.cell, self.seed)

    def words(self) -> list[str]:
        """The lines that it has said; none where somebody has removed them."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


def record_death(child: Child, keep: bool) -> TableResult | None:
    """Writes down that a cell has failed whose process was killed, and could not do so itself.

    None, and nothing is written, where another process is at the cell by now, or has a result of it.
    """
    number = -child.process.returncode
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    hint = " (was there too little memory?)" if number == signal.SIGKILL else ""
    error = ": ".join([f"its process was killed by {name}{hint}", *child.words()[-1:]])
    with locked(lock_of(child.path), wait=False, remove=True) as mine:
        if not mine or held(child.path) is not None:
            return None
        cell = child.cell
        defaults = cell_defaults(cell)
        seconds = time.monotonic() - child.begun
        write_json(child.path, make_content(cell, child.seed, seconds=seconds, defaults=defaults, error=error))
        release(child.path, keep)
    return held(child.path)


def outcome(result: TableResult) -> str:
    """A result in a few words."""
    content = result.content
    if not result.done:
        return f"failed: {content['error']}"
    found = content["scores"] or content["result"]
    value = next(found[name] for name in ("accuracy_mean", "student_accuracy", "accuracy") if name in found)
    return f"{100 * value:.2f} % after {content['seconds']:.0f} s"
