"""Runs the cells of benchmarks/condensation.toml, keeps one JSON a cell, and renders the tables.

python scripts/condensation_table.py run DATA IPC METHOD [METHOD ...]    # the cells that have no result yet
python scripts/condensation_table.py render                              # benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))  # for the scripts beside this one
SPEC = ROOT / "benchmarks" / "condensation.toml"
RESULTS = ROOT / "benchmarks" / "condensation"
PAGE = ROOT / "benchmarks" / "README.md"


def spec() -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content: dict[str, Any] = toml.loads(SPEC.read_text(encoding="utf-8"))
    return content


def named(value: Any) -> Any:
    """Files by their names, as in the other results."""
    return import_module("keep_result").named(value)


def cell_path(data: str, ipc: int, method: str, budget: str) -> Path:
    return RESULTS / f"{data}-{ipc}-{method}-{budget}.json"


def row_options(about: dict[str, Any], row: str) -> dict[str, Any]:
    """Flags of a row: its name is the method unless it says otherwise; the row "default" names none."""
    options: dict[str, Any] = about["methods"][row]
    return options if row == "default" else {"method": row} | options


def datafree(*arguments: object) -> str:
    """Runs the command line and returns what it prints."""
    command = [sys.executable, "-m", "datafree", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def run_cell(data: str, ipc: int, method: str, budget: str | None, flags: list[str], keep: Path | None) -> None:
    """Condenses and scores one cell, and writes its JSON."""
    about = spec()
    run, protocol = about["run"], about["protocol"]
    length = budget or run["budget"]
    path = cell_path(data, ipc, method, length)
    if path.exists():
        print(f"{path.name}: there")
        return
    settings = {name: run[name] for name in ("precision", "threads", "seed")} | row_options(about, method)
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep / path.stem if keep is not None else Path(temporary) / "set"
        datafree(
            "condense", "--data", data, "--ipc", ipc, "--budget", length, "--out", folder, "--force", "-q",
            *options, *flags,
        )  # fmt: skip
        scores = json.loads(
            datafree(
                "evaluate", folder, "--data", data, "--protocol", protocol["name"], "--seeds", protocol["networks"],
                "--precision", protocol["precision"], "--threads", run["threads"], "--json",
            )
        )  # fmt: skip
        content = {
            "scores": scores,
            "result": json.loads((folder / "result.json").read_text(encoding="utf-8")),
            "run": json.loads((folder / "run.json").read_text(encoding="utf-8")),
        }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(named(content), indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {100 * scores['accuracy_mean']:.2f} ± {100 * scores['accuracy_std']:.2f}")


def render() -> str:
    """The page: the data-free tables, and one of condensed sets for each data set and size."""
    about = spec()
    name, networks = about["protocol"]["name"], about["protocol"]["networks"]
    lines = [
        "# Results",
        "",
        "Rendered by `python scripts/condensation_table.py render` from the JSON files beside it, which hold the runs'",
        "manifests. Earlier data-free runs of 15 and 30 minutes stand in the [main README](../README.md). Runs so far",
        "had seven to nine tenths of a core each, because tests ran beside them.",
        "",
        "# Without data",
        "",
        "One CPU thread a run, two runs side by side, bf16; the last iterate on the whole test set. A row is of one",
        "seed unless a spread and the number of seeds stand beside it; images, steps, times and peak are of the first.",
        "The student of `blend` begins with the teacher's layers where these fit; all other rows begin at random.",
        "",
        *import_module("data_free_table").lines(),
        "# Condensed sets",
        "",
        f"Protocol `{name}`: {networks} networks (ConvNet-3-128 with instance norm),",
        "last iterate, mean ± standard deviation over the networks, one condensed set a cell (seed 0), whole test set.",
        "The random real subset has as many stored images. Preparation (networks, experts) is stated apart from the",
        "budget. Published figures are of their own protocols and of hours on GPUs.",
        "",
    ]
    for data, sizes in about["data"].items():
        for ipc in sizes:
            lines += table(data, int(ipc), about)
    return "\n".join(lines).rstrip() + "\n"


def table(data: str, ipc: int, about: dict[str, Any]) -> list[str]:
    published = about.get("published", {}).get(data, {}).get(str(ipc), {})
    lines = [
        f"## {data}, {ipc} {'image' if ipc == 1 else 'images'} a class",
        "",
        "| method | budget | accuracy | random real | published | decoded | prepared | steps | scored | log |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in about["methods"]:
        known = published.get(method)
        quoted = "–" if known is None else " ± ".join(f"{value:g}" for value in known)
        found = sorted(RESULTS.glob(f"{data}-{ipc}-{method}-[0-9]*.json"))
        if not found:
            lines.append(f"| {method} | {about['run']['budget']} | not run | | {quoted} | | | | | |")
        for path in found:
            held = json.loads(path.read_text(encoding="utf-8"))
            scores, result = held["scores"], held["result"]
            budget = path.stem.rpartition("-")[2] if result["steps"] else "–"
            lines.append(
                f"| {method} | {budget} | **{spread(scores, '')}** | {spread(scores, 'random_')} | {quoted} "
                f"| {result['decoded_images']} | {result['preparation_seconds']:.0f} s | {result['steps']:,} "
                f"| {scores['seconds']:.0f} s | [json](condensation/{path.name}) |"
            )
    return [*lines, ""]


def spread(scores: dict[str, Any], prefix: str) -> str:
    return f"{100 * scores[prefix + 'accuracy_mean']:.1f} ± {100 * scores[prefix + 'accuracy_std']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="condense and score cells")
    one.add_argument("data")
    one.add_argument("ipc", type=int)
    one.add_argument("methods", nargs="+")
    one.add_argument("--budget", help="in the place of the specification's")
    one.add_argument("--keep", type=Path, help="keep the sets in this folder")
    one.add_argument("--flags", default="", help="further flags of datafree condense")
    commands.add_parser("render", help="write benchmarks/README.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        for method in arguments.methods:
            run_cell(arguments.data, arguments.ipc, method, arguments.budget, arguments.flags.split(), arguments.keep)
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
