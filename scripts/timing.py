"""What speed.py and its parts share: clocks, medians over turns, a process for each case, flags, the printed JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from datafree.config import MachineConfig
from datafree.jobs.machine import find_device, prepare
from datafree.models import model_names
from datafree.runs import environment

WALL, PROCESSOR = 0, 1  # the clocks: places in what `times` returns
Turn = dict[str, tuple[float, float]]  # what has its turn -> its times
Found = Callable[..., dict[str, Any]]


def times(act: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the wall clock and by the processor's; on a GPU until its work is done."""
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    settle()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def on_gpu() -> bool:
    """Whether this process has used a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def settle() -> None:
    """Waits for what a GPU still has to do."""
    if on_gpu():
        torch.cuda.synchronize()


def peak_device_mb() -> dict[str, float]:
    """The largest memory (10^6 bytes) that tensors have taken on a GPU, under its name; nothing without a GPU."""
    return {"peak_device_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)} if on_gpu() else {}


def take_turns(acts: Mapping[str, Callable[[], object]], repeats: int) -> list[Turn]:
    """The acts' times, one after the other in every turn, so that what slows the machine meets all of them alike."""
    return [{name: times(act) for name, act in acts.items()} for _ in range(repeats)]


def median(turns: Sequence[Turn], name: str, clock: int) -> float:
    return statistics.median(turn[name][clock] for turn in turns)


def medians(turns: Sequence[Turn], clock: int, steps: int = 1) -> dict[str, float]:
    """Each act's milliseconds a step, where an act is so many steps."""
    return {name: round(median(turns, name, clock) / steps, 1) for name in turns[0]}


def ratios(turns: Sequence[Turn], slow: str, clock: int, digits: int = 2) -> dict[str, float]:
    """How many times as fast as `slow` ours are. The median of ratios within a turn is steadier than that of times."""

    def ratio(quick: str) -> float:
        return round(statistics.median(turn[slow][clock] / turn[quick][clock] for turn in turns), digits)

    return {name: ratio(name) for name in turns[0] if name.startswith("ours_")}


def ours(precisions: Sequence[str]) -> dict[str, str]:
    """Our variants' names -> their precisions."""
    return {f"ours_{precision}": precision for precision in precisions}


def in_child(script: str, case: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What the script finds for the case in a process of its own, so that its peak memory is its own."""
    print(json.dumps(case), file=sys.stderr, flush=True)
    command = [sys.executable, script, "--threads", str(threads), "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run(args: argparse.Namespace, measure: Found, report: Found) -> None:
    """Prints what `report` finds for the arguments, or in a child process what `measure` finds for the case."""
    place = prepare(MachineConfig(device=args.device, threads=args.threads))
    if args.case is not None:
        print(json.dumps(measure(**args.case)))
    else:
        print(json.dumps({**environment(place), **report(args)}, indent=2))


def common_flags(about: str, methods: Sequence[str], *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the flags that every part has. Each checks its value: a wrong one ends the program with a line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=names(methods), default=",".join(methods), help="default: %(default)s")
    parser.add_argument("--precision", type=names(["32", "bf16"]), default="32,bf16", help="default: %(default)s")
    parser.add_argument("--repeats", type=count, default=repeats, help="measurements a case; default: %(default)s")
    parser.add_argument("--threads", type=count, default=1, help="default: %(default)s")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # what a child process measures, as JSON
    return parser


def pair_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of data-free methods."""
    about = "TEACHER:STUDENT,...; default: %(default)s"
    parser.add_argument("--pairs", type=pairs, default="wrn16_1:resnet8", help=about)
    parser.add_argument("--batch", type=count, default=64, help="images a step; default: %(default)s")
    parser.add_argument("--width", type=count, default=64, help="channels of the generator; default: %(default)s")


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def device(text: str) -> str:
    """The name of a device that is there."""
    try:
        find_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads a list of names that are known."""

    def read(text: str) -> list[str]:
        for name in (found := text.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: take one of {', '.join(known)}")
        return found

    return read


def pairs(text: str) -> list[tuple[str, str]]:
    """Teachers with their students."""
    found, known = [], names(model_names())
    for pair in text.split(","):
        teacher, colon, student = pair.partition(":")
        if not colon:
            raise argparse.ArgumentTypeError(f"{pair!r} is no pair: give TEACHER:STUDENT, such as wrn16_1:resnet8")
        for name in (teacher, student):
            known(name)
        found.append((teacher, student))
    return found
