"""Runs the cells of benchmarks/data-free.toml and keeps one JSON a cell in benchmarks/data-free.

python scripts/data_free_table.py TEACHERS PAIR METHOD [METHOD ...] [--budget 10m] [--seed 0]   # TEACHERS: their folder
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "benchmarks" / "data-free.toml"
RESULTS = ROOT / "benchmarks" / "data-free"


def spec() -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content: dict[str, Any] = toml.loads(SPEC.read_text(encoding="utf-8"))
    return content


def flag(name: str, value: Any) -> list[str]:
    """An option as it is typed; true and false are switches."""
    return [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]


def command(about: dict[str, Any], teachers: Path, pair: str, method: str, budget: str, seed: int) -> list[str]:
    """The command line of a cell, without its folder."""
    of, run = about["pairs"][pair], about["run"]
    options = {"method": method} | about["methods"][method]
    flags = {name: of[name] for name in ("student", "data", "mean", "std") if name in of}
    flags |= {"budget": budget, "precision": run["precision"], "threads": run["threads"], "seed": seed, **options}
    if "arch" in of:
        flags["arch"] = f"{ROOT / 'scripts' / 'architectures.py'}:{of['arch']}"
    given = [part for name, value in flags.items() for part in flag(name, value)]
    return [sys.executable, "-m", "datafree", "train", "--teacher", str(teachers / of["teacher"]), *given]


def run_cell(about: dict[str, Any], teachers: Path, pair: str, method: str, budget: str, seed: int) -> None:
    """Runs one cell; a failure is kept as one, with its last line."""
    path = RESULTS / f"{pair}-{method}-{budget}-{seed}.json"
    if path.exists():
        print(f"{path.name}: there")
        return
    keep = import_module("keep_result")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        arguments = [*command(about, teachers, pair, method, budget, seed), "--out", str(folder), "-q"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        RESULTS.mkdir(exist_ok=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
            path.write_text(json.dumps({"failed": keep.named(reason)}, indent=1) + "\n", encoding="utf-8")
        else:
            keep.keep(folder, path)
    print(
        f"{path.name}: {done.returncode or json.loads(path.read_text(encoding='utf-8'))['result']['student_accuracy']}"
    )


def lines() -> list[str]:
    """The tables as Markdown: one a pair, a row a method and budget."""
    about = spec()
    made = []
    for pair, of in about["pairs"].items():
        made += [
            f"## {of['title']}",
            "",
            "| method | budget | student | agreement | teacher | images | steps | synthesis | distillation | peak | |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method in about["methods"]:
            for budget in about["run"]["budgets"]:
                made += row(pair, method, budget)
        made.append("")
    return made


def row(pair: str, method: str, budget: str) -> list[str]:
    """One line, over the seeds that were run; none for a longer budget that was not."""
    files = sorted(RESULTS.glob(f"{pair}-{method}-{budget}-[0-9]*.json"))
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    links = " ".join(f"[{path.stem.rpartition('-')[2]}](data-free/{path.name})" for path in files)
    failed = [each["failed"] for each in kept if "failed" in each]
    if failed:
        return [f"| {method} | {budget} | failed: {failed[0]} | | | | | | | | {links} |"]
    if not kept:
        return [f"| {method} | {budget} | not run | | | | | | | | |"] if budget == spec()["run"]["budgets"][0] else []
    results = [each["result"] for each in kept]
    first = results[0]
    return [
        f"| {method} | {budget} | **{over(results, 'student_accuracy')}** | {over(results, 'agreement')} "
        f"| {100 * first['teacher_accuracy']:.2f} | {first['images']:,} | {first['steps']:,} "
        f"| {first['synthesis_seconds']:.0f} s | {first['distillation_seconds']:.0f} s "
        f"| {first['peak_rss_mb']:.0f} MB | {links} |"
    ]


def over(results: list[dict[str, Any]], name: str) -> str:
    values = [100 * each[name] for each in results]
    spread = f" ± {statistics.stdev(values):.2f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", type=Path, help="folder of the teachers' files")
    parser.add_argument("pair")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for method in arguments.methods:
        run_cell(spec(), arguments.teachers.resolve(), arguments.pair, method, arguments.budget, arguments.seed)


if __name__ == "__main__":
    main()
