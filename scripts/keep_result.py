"""Keeps a finished run's figures in benchmarks/results, one JSON a run, and renders the README's table from them.

python scripts/keep_result.py RUN NAME    # writes benchmarks/results/NAME.json
python scripts/keep_result.py             # renders the table between the markers in README.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def named(value: Any) -> Any:
    """Files by their names: folders of the machine that made a run are nobody's business."""
    if isinstance(value, dict):
        return {key: named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [named(item) for item in value]
    return re.sub(r"(?<![\w.])[^\s:'\"=]*/(?=[^/\s]+)", "", value) if isinstance(value, str) else value


def keep(run: Path, path: Path) -> Path:
    """Writes the manifest, the result and the accuracy's curve of a run."""
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[row["step"], row["seconds"], row["test/accuracy"]] for row in rows if "test/accuracy" in row]
    path.write_text(
        json.dumps(named({"curve": curve, "result": result, "run": manifest}), indent=1) + "\n", encoding="utf-8"
    )
    return path


def variant(method: str, options: dict[str, Any]) -> str:
    """What sets a row apart from the method's defaults, of what the table compares."""
    sigmoid = method in ("dafl", "dfad") and options.get("output", "sigmoid") == "sigmoid"
    return (", sigmoid" if sigmoid else "") + (", fresh images" if options.get("feed") == "fresh" else "")


def table() -> str:
    """The README's table, a row a result file."""
    head = [
        "teacher → student",
        "data",
        "method",
        "budget",
        "teacher",
        "student",
        "agreement",
        "images",
        "machine",
        "log",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        result, run = kept["result"], kept["run"]
        budget = run["config"]["budget"] or f"{result['steps']:,} steps, {result['total_seconds']:.0f} s"
        cells = [
            f"{run['teacher']['source']} ({result['teacher']}) → {result['student']}",
            result["data"],
            result["method"] + variant(result["method"], run["method_options"]),
            f"{budget}, {result['precision']}",
            f"{result['teacher_accuracy']:.2%}",
            f"**{result['student_accuracy']:.2%}**",
            f"{result['agreement']:.2%}",
            f"{result['images']:,}",
            f"{result['threads']} thread{'s' * (result['threads'] > 1)}, {run['machine']['cpu']}",
            f"[json](benchmarks/results/{path.name})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rendered(readme: str) -> str:
    """The README with its table as the result files have it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> None:
    if len(arguments) == 2:
        print(keep(Path(arguments[0]), RESULTS / f"{arguments[1]}.json"))
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
