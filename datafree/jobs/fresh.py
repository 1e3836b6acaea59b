"""The folder of a run that begins, where one that fails early leaves nothing in the way; and how a run is concluded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from datafree import parallel
from datafree.report import render_report
from datafree.runs import CHECKPOINT, Run, atomic_write
from datafree.training import TermError

# What a run writes before its first row of measurements; one without rows (a selection) also its end.
_FIRST = (
    "run.json", "metrics.jsonl", "report.html", "tensorboard", "images", "teacher.safetensors", "condensed.safetensors",
    "card.md",
)  # fmt: skip


@contextlib.contextmanager
def fresh_run(out: str | Path | None, name: str, *, force: bool = False) -> Iterator[Run]:
    """A locked folder as `Run.create` gives it; of several processes, the first one's for all.

    Where an error ends the run before it has logged a row or saved a checkpoint, what it wrote is removed, and the
    folder with it if the run made it: the corrected command is not in its own way. What stood there before stays. So
    does all where a person stopped the run, which then goes on with --resume (where it has a run.json by then), or
    where a term was not finite.

    Raises:
        ValueError, WriteError: as `Run.create`.
    """
    made = out is None or not Path(out).exists()
    with Run.create(out, name, force=force) if parallel.rank() == 0 else Run(Path()) as folder:
        main, folder.path = parallel.rank() == 0, Path(parallel.from_first(str(folder.path)))
        before = {path.name for path in folder.path.iterdir()} if main else set()
        try:
            yield folder
            return
        except TermError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            stopped = isinstance(error, KeyboardInterrupt) and (folder.path / "run.json").exists()
            if not main or stopped or _began(folder.path):
                raise
            folder.close()
            for path in [folder.path / each for each in _FIRST if each not in before]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            folder.unlock()
            if made:
                with contextlib.suppress(OSError):  # somebody has put something there since
                    folder.path.rmdir()
            raise


@contextlib.contextmanager
def concluded(run: Run) -> Iterator[None]:
    """A run's steps are taken inside: however they end, the log is closed and the report written.

    Raises:
        TermError: as inside, with what is kept of the run.
    """
    try:
        yield
    except TermError as error:
        kept = "the last good checkpoint is kept" if (run.path / CHECKPOINT).exists() else "no checkpoint was due yet"
        raise TermError(f"{error}; {kept}") from error
    finally:
        run.close()
        if parallel.rank() == 0 and (run.path / "run.json").exists():
            atomic_write(run.path / "report.html", render_report(run.path))


def _began(path: Path) -> bool:
    rows = path / "metrics.jsonl"
    return (
        (path / CHECKPOINT).exists() or (path / "result.json").exists() or (rows.exists() and rows.stat().st_size > 0)
    )
