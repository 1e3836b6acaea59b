"""`datafree evaluate`."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from datafree.cli.display import percent, table
from datafree.cli.options import Numbers
from datafree.config import MOST_THREADS
from datafree.fields import flag

# Options that students and sets have in common, and those that only a set has use for.
COMMON = ("data", "teacher", "teacher_arch", "teacher_mean", "teacher_std", "device", "download")
SETS_ONLY = ("protocol", "seeds", "seed", "validation", "whole", "set_lr", "set_labels", "rank", "precision")
BY_PYTHON = {"seeds": "networks", "set_lr": "lr"}  # what Python's arguments are called otherwise
# What is said of a set's labels, and the names of DD-Ranking's scores in a terminal.
LABELS = {"own": "", "hard": ", hard labels", "teacher": ", a teacher's labels of set and random images"}
RANKING = (
    ("hard-label recovery", "hard_label_recovery"),
    ("improvement over random", "improvement_over_random"),
    ("label-robust score", "label_robust_score"),
    ("augmentation-robust score", "augmentation_robust_score"),
)


@click.command()
@click.argument("what", required=False)
@click.option("--data", metavar="NAME", help="data whose test split is taken  [default: the student's or set's own]")
@click.option("--arch", metavar="TEXT", help="the student's architecture; for a set, networks with commas between")
@click.option(
    "--teacher", metavar="TEXT",
    help="measure agreement with it  [default: the run's]; for a set, of --protocol rded, --set-labels teacher, --rank",
)  # fmt: skip
@click.option(
    "--teacher-arch",
    metavar="TEXT",
    help="the teacher's architecture, where its file does not say; the file.py:function of a run's",
)
@click.option("--protocol", metavar="NAME", help="how networks are trained on a set  [default: default]")
@click.option("--seeds", type=int, metavar="N", help="networks trained on a set  [default: the protocol's]")
@click.option("--seed", type=int, metavar="N", help="seed of every random draw for a set  [default: 0]")
@click.option("--validation", is_flag=True, help="test a set on held-out training images, to choose settings")
@click.option("--whole", is_flag=True, help="train on all real images too, if that is not in the cache yet")
@click.option(
    "--set-labels", type=click.Choice(["own", "hard", "teacher"]),
    help="a set's labels: its own, the classes of its images, or --teacher's; random real images have class numbers, "
    "or --teacher's too  [default: own]",
)  # fmt: skip
@click.option(
    "--rank", is_flag=True,
    help="DD-Ranking's four scores, with --protocol ddranking: 90 networks more for 5, and one on all real images",
)  # fmt: skip
@click.option("--images", metavar="FILE", help="somebody else's set: a file with a tensor of images")
@click.option("--labels", metavar="FILE", help="their class numbers, or soft labels as logits")
@click.option(
    "--space", type=click.Choice(["pixel", "normalised"]),
    help="of --images: [0, 1] pixels, or (x - mean) / std  [default: pixel]",
)  # fmt: skip
@click.option(
    "--mean", type=Numbers(), metavar="X,X,..",
    help="normalisation of the student's file or of --images  [default: the data's]",
)  # fmt: skip
@click.option(
    "--std", type=Numbers(), metavar="X,X,..",
    help="normalisation of the student's file or of --images  [default: the data's]",
)  # fmt: skip
@click.option(
    "--teacher-mean", type=Numbers(), metavar="X,X,..",
    help="normalisation of the teacher's file  [default: the data's]",
)  # fmt: skip
@click.option(
    "--teacher-std", type=Numbers(), metavar="X,X,..",
    help="normalisation of the teacher's file  [default: the data's]",
)  # fmt: skip
@click.option(
    "--set-lr", type=float, metavar="X", help="rate of SGD on a set  [default: the set's own, else the protocol's]"
)
@click.option("--precision", type=click.Choice(["32", "bf16"]), help="arithmetic of networks on a set  [default: 32]")
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: as many as torch sees")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...; auto takes cuda where there is one")
@click.option("--download", is_flag=True, help="allow the data to be downloaded")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def evaluate(what: str | None, **values: Any) -> None:
    """Test a student, or train networks on a condensed set and test them.

    WHAT is a student (a run folder or a file): its accuracy, and fidelity to its teacher where that is known.

    Or it is a condensed set (a folder of datafree condense): networks are trained on it from scratch by a --protocol,
    others on as many random real images, and both are tested. Protocols: default, vico, vico-noaug, mtt, idc, rded,
    ddranking.
    """
    as_json = values.pop("as_json")
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    foreign = {"images", "labels"} & set(given)
    if what is None and not foreign:
        raise click.UsageError("name a student or a condensed set, or give --images and --labels")
    if foreign and (what is not None or len(foreign) < 2):
        raise click.UsageError("--images and --labels go together, without a student or set beside them")
    for name in ("seeds", "threads"):
        if values[name] is not None and values[name] < 1:
            raise ValueError(f"--{name} is {values[name]}: give 1 or more")
    if not 0 <= (values["seed"] or 0) < 2**63:
        raise ValueError(f"--seed is {values['seed']}: give a number from 0 to below 2^63")
    if (values["threads"] or 0) > MOST_THREADS:
        raise ValueError(f"--threads is {values['threads']}: give {MOST_THREADS:,} or fewer")
    from datafree import jobs
    from datafree.jobs.judging import is_condensed

    if values["threads"] is not None:
        import torch

        torch.set_num_threads(values["threads"])
    if what is not None and not is_condensed(what):
        if not what.startswith(("torchvision:", "timm:")) and not os.path.exists(os.path.expanduser(what)):
            raise ValueError(
                f"there is nothing at {what}: name a condensed set (the folder that condense wrote), a run folder, a "
                "checkpoint or torchvision:NAME"
            )
        sets_only = _flags(given, *SETS_ONLY, "space")
        if sets_only:
            raise ValueError(f"{what} is no condensed set, and {sets_only} is for sets: leave it out")
        _student(what, given, as_json)
        return
    foreign_only = _flags(given, "mean", "std", "space") if what is not None else ""
    if foreign_only:
        raise ValueError(f"{what} says its own normalisation, and {foreign_only} is for --images: leave it out")
    scores = jobs.evaluate_set(
        _foreign(values) if what is None else what,
        archs=[name.strip() for name in given.get("arch", "").split(",") if name.strip()],
        say=lambda line: click.echo(line, err=True),
        **_asked(given, *SETS_ONLY),
    )
    click.echo(json.dumps(scores) if as_json else table(_rows(scores)))


def _asked(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """What goes on to Python of the options that were given: `COMMON` and `names`."""
    return {BY_PYTHON.get(name, name): given[name] for name in (*COMMON, *names) if name in given}


def _student(student: str, given: dict[str, Any], as_json: bool) -> None:
    from datafree import jobs

    scores = jobs.evaluate(student, say=lambda line: click.echo(line, err=True), **_asked(given, "arch", "mean", "std"))
    if as_json:
        click.echo(json.dumps(scores))
        return
    rows = [("accuracy", f"{percent(scores['accuracy'])} on {scores['images']:,} images of {scores['data']}")]
    if scores["agreement"] is not None:
        rows += [("teacher", percent(scores["teacher_accuracy"])), ("agreement", percent(scores["agreement"]))]
        rows += [("KL", f"{scores['kl']:.4f} nats")]
    click.echo(table(rows))


def _flags(given: dict[str, Any], *names: str) -> str:
    """Those of the options that were given, as a person wrote them."""
    return ", ".join(flag(name) for name in sorted(names) if name in given)


def _foreign(values: dict[str, Any]) -> Any:
    """The set that --images and --labels give."""
    from datafree.data import data_domain
    from datafree.domain import make_domain
    from datafree.jobs.foreign import foreign_set

    if values["data"] is None:
        raise click.UsageError("--images needs --data NAME: the data that the set was made from")
    domain = make_domain(base=data_domain(values["data"]), mean=values["mean"], std=values["std"])
    return foreign_set(values["images"], values["labels"], domain=domain, space=values["space"] or "pixel")


def _rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    networks = "1 network" if scores["networks"] == 1 else f"{scores['networks']} networks"
    labels = LABELS[scores["set_labels"]]
    rows = [("protocol", f"{scores['protocol']}, {networks}, {scores['split']} images{labels}")]
    for arch, each in scores["archs"].items():
        rows.append((arch, f"{_spread(each, '')}  (random real images: {_spread(each, 'random_')})"))
    if scores["whole_accuracy"] is not None:
        rows.append(("all real images", percent(scores["whole_accuracy"])))
    rows += [(name, _mean(scores, key)) for name, key in RANKING if f"{key}_mean" in scores]
    rows.append(("budget", f"{scores['stored_images']:,} images stored, {scores['decoded_images']:,} decoded"))
    rows.append(("time on the set", f"{scores['seconds']:.0f} s"))
    return rows


def _spread(each: dict[str, Any], prefix: str) -> str:
    """Mean and standard deviation over networks; one has none."""
    spread = f" ± {100 * each[prefix + 'accuracy_std']:.2f}" if len(each[prefix + "accuracies"]) > 1 else ""
    return f"{100 * each[prefix + 'accuracy_mean']:.2f}{spread} %"


def _mean(scores: dict[str, Any], key: str) -> str:
    """A score's mean and standard deviation over networks, fractions of 1."""
    spread = f" ± {scores[f'{key}_std']:.3f}" if scores["networks"] > 1 else ""
    return f"{scores[f'{key}_mean']:.3f}{spread}"
