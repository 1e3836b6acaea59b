"""What a result file holds, and what of one is wrong.

The numbers are those that the pages read. A result may hold more of them; a run's finish is judged by the same, so that
no run writes a file that is refused later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from datafree.tables.kinds import (
    AMOUNT,
    COUNT,
    CURVE,
    JOB,
    NOTHING,
    SAID,
    SECTION,
    SHARE,
    TEXT,
    WHOLE,
    Kind,
    one_of,
    or_none,
)
from datafree.tables.specs import digest_of

SCHEMA = 1
# What a file holds, neither more nor less. The first results have no "defaults". "superseded" is written by hand: why a
# result does not count any more, where neither its spec nor its defaults tell.
FILE: dict[str, Kind] = {
    "schema": Kind(f"{SCHEMA}, which this version reads", lambda value: value == SCHEMA and value is not True),
    "table": SAID,
    "cell": Kind('a text such as "GROUP/ROW"', lambda value: isinstance(value, str) and "/" in value),
    "seed": WHOLE,
    "hash": TEXT,
    "spec": SECTION,
    "defaults": or_none(SECTION),
    "superseded": or_none(SAID),
    "status": one_of("done", "failed"),
    "error": or_none(SAID),
    "seconds": AMOUNT,
    "result": or_none(SECTION),
    "scores": or_none(SECTION),
    "curve": CURVE,
    "run": or_none(SECTION),
}
SPEC = {"job": JOB, "options": SECTION, "teacher": or_none(SECTION), "evaluation": or_none(SECTION)}
# What a finished run of each job has to give, and what it may.
NEEDS: dict[str, dict[str, Kind]] = {
    "train": {"student_accuracy": SHARE, "steps": WHOLE, "images": WHOLE, "total_seconds": AMOUNT},
    "pretrain": {"accuracy": SHARE, "steps": WHOLE, "total_seconds": AMOUNT},
    "condense": {"steps": WHOLE, "decoded_images": WHOLE, "preparation_seconds": AMOUNT},
}
MAY: dict[str, Kind] = {
    **dict.fromkeys(("agreement", "teacher_accuracy", "student_accuracy"), or_none(SHARE)),
    **dict.fromkeys(("synthesis_seconds", "distillation_seconds", "total_seconds", "peak_rss_mb"), or_none(AMOUNT)),
}
ACCURACY = {"accuracy_mean": SHARE, "accuracy_std": AMOUNT}
RANDOM = {f"random_{name}": kind for name, kind in ACCURACY.items()}
SCORES = {**ACCURACY, "networks": COUNT, "seconds": AMOUNT}  # of a condensed set

Problem = tuple[tuple[str, ...], str]  # the keys that lead to it, and what is wrong
MOST_SHOWN = 60  # characters of a value


def problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a file's content, from the outside inwards: what comes after the first may make no sense."""
    for key in content:
        if key not in FILE:
            yield (key,), f"unknown key {key!r}"
    yield from _checked(content, FILE, {})
    yield from _checked(content["spec"], SPEC, {}, "spec")
    seed, digest = content["spec"]["options"].get("seed"), digest_of(content["spec"])
    if seed != content["seed"]:
        yield ("seed",), f"seed is {content['seed']}, its spec has {seed}"
    if digest != content["hash"]:
        yield ("hash",), f"hash is {_shown(content['hash'])}, that of its spec is {digest!r}"
    if (content["status"] == "failed") != (content["error"] is not None):
        yield ("status",), "a failed result has an error, and a finished one has none"
    if content["status"] == "done":
        yield from _checked(content, {"run": SECTION}, {})
        if (content["result"] or {}).get("seed", seed) != seed:
            yield ("result", "seed"), f"result.seed is {content['result']['seed']}, its spec has {seed}"
        yield from run_problems(content["spec"]["job"], content["result"], content["scores"])


def run_problems(job: str, result: Mapping[str, Any] | None, scores: Mapping[str, Any] | None) -> Iterator[Problem]:
    """What is wrong with what a run gave, if it is to count as finished."""
    yield from _checked(result or {}, NEEDS[job], MAY, "result")
    if job != "condense":
        yield from _checked({"scores": scores}, {}, {"scores": NOTHING})
        return
    held = scores or {}
    yield from _checked(held, SCORES, {"archs": SECTION}, "scores")
    nets = held.get("archs", {})
    yield from _checked(nets, {}, dict.fromkeys(nets, SECTION), "scores", "archs")
    for where, each in ((("scores",), held), *((("scores", "archs", name), net) for name, net in nets.items())):
        yield from _checked(each, {**ACCURACY, **(RANDOM if set(RANDOM) & set(each) else {})}, {}, *where)


def _checked(
    held: Mapping[str, Any], needs: Mapping[str, Kind], may: Mapping[str, Kind], *where: str
) -> Iterator[Problem]:
    for name, kind in {**may, **needs}.items():
        if name in needs and held.get(name) is None and not (name in held and kind.holds(None)):
            number = "number " if kind in (SHARE, AMOUNT, WHOLE, COUNT) else ""
            yield where, f"no {number}{name!r}" + (f" in its {'.'.join(where)}" if where else "")
        elif name in held and not kind.holds(held[name]):
            yield (*where, name), f"{'.'.join((*where, name))} is {_shown(held[name])} in the place of {kind.words}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
