"""A table's specification: groups of cells that share a setting, and rows that say what is compared in each.

    title, papers, metric, protocol, notes    what the table is; notes are shown below the title
    order, layout, budgets, seeds, cost       place on the page; "rows", "matrix" or "speed"; lengths; seeds
    [options]                                 of every cell, as the job's flags
    [teachers.NAME]                           a file (with sha256, arch, mean, std), a source, or options of pretrain
    [groups.NAME]                             title, job, teacher, rows, cost, evaluation, options
    [rows.NAME]                               title, job, groups, cost, options; its method is its name unless said
    [cells.GROUP.ROW]                         options of one cell, over all others
    [published.GROUP.ROW]                     value, spread, source, tolerance (points)

Whatever is misspelt or impossible is an error that names the file and the line. Only when a cell is run is seen what
needs torch (networks of torchvision and timm) and what lies elsewhere (GPUs, weights, data, what a FILE.py holds).
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from datafree.config import PretrainConfig, light_config
from datafree.data.sources import split_name
from datafree.fields import fields_of, replace
from datafree.idle import TRAIN, check_idle
from datafree.models import model_names
from datafree.tables.defaults import JOBS, ROOMS, presets_of, protocols, usual_pretraining
from datafree.tables.keys import key_lines
from datafree.tables.kinds import DEVICE, KEYS, SECTION, TYPES, Kind
from datafree.tables.results import line_of
from datafree.tables.specs import EVALUATION, LENGTHS, Cell, Published, Table, find_tables, missing_file

# The options that name networks.
NETWORKS = {"train": ("student", "arch"), "pretrain": ("arch",), "condense": ("arch", "teacher")}
AUTO = ("auto",)  # what condensing and judging take besides


def load_table(table: str | Path) -> Table:
    """Reads a table by its name, or from a file ending in .toml.

    Raises:
        ValueError: no such table, or something in it is wrong; names file and line.
    """
    if not str(table).endswith(".toml"):
        known = find_tables()
        if table not in known:
            raise ValueError(f"unknown table {str(table)!r}: take one of {', '.join(known)}, or a .toml file")
        table = known[str(table)]
    return Reader(Path(table)).table()


class Reader:
    """One TOML file with its lines, for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        try:
            self.text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{line_of(error)}: not UTF-8 ({error}): save it as UTF-8") from error
        try:
            self.content: dict[str, Any] = toml.loads(self.text)
        except ValueError as error:
            line = re.search(r"line (\d+)", str(error))
            end = self.text.rstrip("\n").count("\n") + 1  # some are of the end of the document
            raise ValueError(f"{path}:{line[1] if line else end}: no valid TOML: {error}") from error
        self.begun = tuple(key_lines(self.text))

    def line(self, *keys: str) -> int:
        """Where a key stands, or the nearest section above it that does. Lines count from 1."""
        for depth in range(len(keys), 0, -1):
            begun = [(number, held) for number, held in self.begun if held[:depth] == keys[:depth]]
            whole = [number for number, held in begun if len(held) == depth]
            if begun:
                return whole[0] if whole else begun[0][0]
        return 1

    def fail(self, message: str, *keys: str) -> ValueError:
        return ValueError(f"{self.path}:{self.line(*keys)}: {message}")

    def check(self, value: Any, kind: Kind, *where: str) -> None:
        if not kind.holds(value):
            raise self.fail(f"{'.'.join(where)} is {value!r}: give {kind.words}", *where)

    def check_keys(self, held: Any, kind: str, *where: str) -> None:
        """`held` is a section whose keys are all known for its kind, with values that they may have."""
        self.check(held, SECTION, *where)
        for key, value in held.items():
            if key not in KEYS[kind]:
                raise self.fail(
                    f"unknown key {key!r}{' of ' + '.'.join(where) if where else ''}: "
                    f"take one of {', '.join(sorted(KEYS[kind]))}",
                    *where, key,
                )  # fmt: skip
            self.check(value, KEYS[kind][key], *where, key)

    def section(self, name: str) -> dict[str, Any]:
        held: dict[str, Any] = self.content.get(name, {})
        return held

    def table(self) -> Table:
        content = self.content
        self.check_keys(content, "")
        for kind in ("teachers", "groups", "rows"):
            for name, held in self.section(kind).items():
                self.check_keys(held, kind, kind, name)
        for name, held in self.section("teachers").items():
            self._check_teacher(held, "teachers", name)
        for name, held in self.section("groups").items():
            self._check_evaluation(held.get("evaluation", {}), "groups", name, "evaluation")
        for key in ("title", "groups", "rows"):
            if not content.get(key):
                raise self.fail(f"the table has no {key}: give it", key)
        self._check_crossings()
        cells = tuple(self._cells())
        self._check_read(cells)
        seen: dict[str, Cell] = {}
        named: dict[str, Cell] = {}
        for cell in cells:
            other = named.setdefault(cell.name, cell)
            if other is not cell:
                raise self.fail(
                    f"{cell.name} is the name of row {other.row!r} in group {other.group!r} and of row {cell.row!r} in "
                    f"{cell.group!r}: call one otherwise", "rows", cell.row,
                )  # fmt: skip
            other = seen.setdefault(cell.digest(0), cell)
            if other is not cell:
                raise self.fail(
                    f"{cell.name} and {other.name} (line {other.line}) are one spec (hash {cell.digest(0)}): "
                    "leave one out or tell them apart", "rows", cell.row,
                )  # fmt: skip
        groups = {name: str(held.get("title", name)) for name, held in self.section("groups").items()}
        return Table(
            name=self.path.stem,
            title=str(content["title"]),
            path=self.path,
            cells=cells,
            groups=groups,
            papers=tuple(content.get("papers", ())),
            metric=str(content.get("metric", "")),
            protocol=str(content.get("protocol", "")),
            notes=str(content.get("notes", "")).strip(),
            order=int(content.get("order", 99)),
            layout=str(content.get("layout", "rows")),
            seeds=int(content.get("seeds", 1)),
        )

    def _check_teacher(self, held: dict[str, Any], *where: str) -> None:
        """Where it comes from is said once; how it is trained are options of `pretrain`."""
        ways = [key for key in ("file", "source", "pretrain") if key in held]
        if len(ways) != 1:
            raise self.fail(
                f"{'.'.join(where)} has {' and '.join(ways) or 'no origin'}: give one of file, source, pretrain", *where
            )
        if "arch" in held:
            self._check_network(held["arch"], (), *where, "arch")
        recipe = held.get("pretrain", {})
        for name in recipe:
            if name not in {field.name for field in fields_of(PretrainConfig)} - {"download"}:
                raise self.fail(f"unknown option {name!r} of pretrain", *where, "pretrain", name)
        self._check_values("pretrain", None, recipe, lambda name: (*where, "pretrain", name))
        self._drop_idle(dict(recipe), lambda name: (*where, "pretrain", name))

    def _check_evaluation(self, held: dict[str, Any], *where: str) -> None:
        self.check_keys(held, "evaluation", *where)
        for arch in held.get("archs", ()):
            self._check_network(arch, AUTO, *where, "archs")
        protocol = held.get("protocol")
        self._check_name("protocol", protocol, tuple(protocols()), *where, "protocol")
        if protocol is not None and "labels='teacher'" in protocols()[protocol]:
            raise self.fail(
                f"protocol {protocol} trains on a teacher's labels, which a table cannot name: take another, and "
                f"judge the set by datafree evaluate --protocol {protocol} --teacher FILE",
                *where, "protocol",
            )  # fmt: skip

    def _check_name(self, what: str, name: str | None, known: Sequence[str], *where: str) -> None:
        """None: there is nothing to check."""
        if name is not None and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            others = f"take one of {', '.join(known)}" if known else "there is none"
            raise self.fail(f"unknown {what} {name!r}: {f'did you mean {near[0]}?' if near else others}", *where)

    def _check_network(self, name: str, besides: tuple[str, ...], *where: str) -> None:
        """Names with a colon are torchvision's, timm's and those of functions: torch alone knows whether they exist."""
        known = (*model_names(), *besides)
        if ":" not in name and name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "'datafree list models' shows all"
            raise self.fail(f"unknown network {name!r}: {hint}", *where)
        if (file := missing_file(self.path, name)) is not None:
            raise self.fail(f"{name}: there is no file {file}: give its path as from the table's folder", *where)

    def _check_crossings(self) -> None:
        """Cells and published figures are of rows that their groups have; figures name their source."""
        groups, rows = self.section("groups"), self.section("rows")
        for kind in ("cells", "published"):
            for group, held in self.section(kind).items():
                if group not in groups:
                    raise self.fail(f"{kind}: unknown group {group!r}: take one of {', '.join(groups)}", kind, group)
                self.check(held, SECTION, kind, group)
                for row, entry in held.items():
                    if row not in rows:
                        raise self.fail(f"{kind}: unknown row {row!r}: take one of {', '.join(rows)}", kind, group, row)
                    if not self._crosses(group, row):
                        raise self.fail(
                            f"{kind}: group {group!r} has no row {row!r}: its rows, or the row's groups, leave it out",
                            kind, group, row,
                        )  # fmt: skip
                    self.check(entry, SECTION, kind, group, row)
                    if kind == "published":
                        self.check_keys(entry, "published", kind, group, row)
                        if "value" not in entry:
                            raise self.fail(f"published {group}.{row} has no value in per cent", kind, group, row)
                        if "source" not in entry:
                            raise self.fail(
                                f"published {group}.{row} has no source: name the paper and table", kind, group, row
                            )
        for kind, other in (("groups", rows), ("rows", groups)):
            for name, held in self.section(kind).items():
                for each in held.get("rows" if kind == "groups" else "groups", ()):
                    if each not in other:
                        raise self.fail(
                            f"{kind}.{name}: unknown name {each!r}: take one of {', '.join(other)}", kind, name
                        )
                    if not self._crosses(*((name, each) if kind == "groups" else (each, name))):
                        own, its = ("rows", "groups") if kind == "groups" else ("groups", "rows")
                        raise self.fail(
                            f"{kind}.{name}.{own} has {each!r}, whose own {its} leave {name!r} out: "
                            f"add it there, or take {each!r} out", kind, name, own,
                        )  # fmt: skip

    def _check_read(self, cells: Sequence[Cell]) -> None:
        """What a group says of its teacher or of the judging of sets is read by one of its cells."""
        for group, held in self.section("groups").items():
            jobs = {cell.job for cell in cells if cell.group == group}
            for key, job in (("teacher", "train"), ("evaluation", "condense")):
                if key in held and job not in jobs:
                    raise self.fail(
                        f"groups.{group} has no row whose job is {job}: nothing reads its {key}, leave it out",
                        "groups", group, key,
                    )  # fmt: skip

    def _crosses(self, group: str, row: str) -> bool:
        """Whether the table has a cell of these."""
        groups, rows = self.section("groups"), self.section("rows")
        return row in groups[group].get("rows", rows) and group in rows[row].get("groups", groups)

    def _cells(self) -> Iterator[Cell]:
        everywhere = self.content.get("budgets", [None])
        for group, of in self.section("groups").items():
            for row, held in self.section("rows").items():
                if not self._crosses(group, row):
                    continue
                budgets = held.get("budgets", of.get("budgets", everywhere))
                for budget in budgets:
                    yield self._cell(group, of, row, held, budget, several=max(len(budgets), len(everywhere)) > 1)

    def _cell(
        self, group: str, of: dict[str, Any], row: str, held: dict[str, Any], budget: str | None, *, several: bool
    ) -> Cell:
        job = str(held.get("job", of.get("job", "train")))
        over = self.section("cells").get(group, {}).get(row, {})
        layers = {
            ("options",): self.section("options"),
            ("groups", group, "options"): of.get("options", {}),
            ("rows", row, "options"): held.get("options", {}),
            ("cells", group, row): over,
        }
        options: dict[str, Any] = {}
        for values in layers.values():
            if set(LENGTHS) & set(values):
                options = {k: v for k, v in options.items() if k not in LENGTHS}
            options |= values
        if budget is not None and not set(LENGTHS) & (set(over) | set(held.get("options", {}))):
            options = {k: v for k, v in options.items() if k not in LENGTHS} | {"budget": budget}
        if job in ROOMS and "method" not in options:
            options["method"] = self._method(job, group, row, options)
        if job == "pretrain" and "student" in options:
            options["arch"] = options.pop("student")
        options = self._checked(job, options, layers, group, row)
        teacher = of.get("teacher")
        if teacher is not None and teacher not in self.section("teachers"):
            raise self.fail(f"unknown teacher {teacher!r}: give [teachers.{teacher}]", "groups", group, "teacher")
        if teacher is not None and "teacher" in options and job == "train":
            raise self.fail(
                f"an option names a teacher, and groups.{group} has one: leave one of them out",
                *next((*where, "teacher") for where, held in reversed(layers.items()) if "teacher" in held),
            )
        taught = None if teacher is None or job != "train" else {"name": teacher, **self.section("teachers")[teacher]}
        evaluation = EVALUATION | of.get("evaluation", {}) if job == "condense" else None
        cost = held.get("cost", of.get("cost", self.content.get("cost", "minutes")))
        quoted = self.section("published").get(group, {}).get(row)
        published = None
        if quoted is not None:
            tolerance = float(quoted.get("tolerance", self.content.get("tolerance", 1.0)))
            spread = quoted.get("spread")
            published = Published(
                value=float(quoted["value"]),
                spread=None if spread is None else float(spread),
                source=str(quoted["source"]),
                tolerance=tolerance,
            )
        return Cell(
            table=self.path.stem,
            group=group,
            row=row,
            name=f"{group}/{row}" + (f"@{budget}" if several else ""),
            title=str(held.get("title", row)),
            job=job,
            options=options,
            teacher=taught,
            evaluation=evaluation,
            cost=str(cost),
            published=published,
            file=str(self.path),
            line=self.line("rows", row),
        )

    def _method(self, job: str, group: str, row: str, options: Mapping[str, Any]) -> str:
        """Of a row whose options name none."""
        if row in ROOMS[job].METHODS:
            return row
        if row == "default" or "source" in options:  # the images of a source are no method's
            return str(JOBS[job].method)
        near = difflib.get_close_matches(row, ROOMS[job].METHODS, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}? Else name" if near else "name"
        raise self.fail(
            f"rows.{row}: {row!r} is no method of {job}: {hint} its method: options = {{ method = ... }}"
            f"{self._meant(group, row)}",
            "rows", row,
        )  # fmt: skip

    def _meant(self, group: str, row: str) -> str:
        """How a message ends on a row that may have met a group of another job unawares."""
        groups = self.section("groups")
        if len({of.get("job", "train") for of in groups.values()}) == 1 or "groups" in self.section("rows")[row]:
            return ""
        return f" (in groups.{group}: keep the row out of it by groups = [...])"

    def _checked(
        self, job: str, options: dict[str, Any], layers: dict[tuple[str, ...], dict[str, Any]], group: str, row: str
    ) -> dict[str, Any]:
        """The options, each known to the job or to its method, with values that these accept."""

        def place(name: str) -> tuple[str, ...]:
            """Where the option was last given; a baseline's network may be given as the group's student."""
            names = (name, "student") if job == "pretrain" and name == "arch" else (name,)
            given = [(*where, each) for where, held in reversed(layers.items()) for each in names if each in held]
            return given[0] if given else ("rows", row)

        own: Any = None
        if job in ROOMS:
            try:
                own = light_config(ROOMS[job].method_spec(str(options["method"])))
            except ValueError as error:
                raise self.fail(f"{error}{self._meant(group, row)}", *place("method")) from error
        common = {f.name for f in fields_of(JOBS[job])}
        known = common | ({f.name for f in fields_of(own)} if own else set())
        for name in [n for n in options if n not in known]:
            shared = place(name)[0] in ("options", "groups")
            if (
                job == "pretrain"
                and shared
                and any(name in {f.name for f in fields_of(each)} for each in JOBS.values())
            ):
                del options[name]  # a baseline stands in groups whose options are the methods'
                continue
            of = f"{job} --method {options['method']}" if own else job
            raise self.fail(f"unknown option {name!r} of {of}{self._meant(group, row)}", *place(name))
        if "seed" in options:
            raise self.fail("seed is no option: seeds are counted from 0", *place("seed"))
        if "download" in options:
            raise self.fail("download is no option of a table: give reproduce --download", *place("download"))
        self._check_values(job, own, options, place)
        if job == "pretrain":
            self._drop_idle(options, place)
        return options

    def _drop_idle(self, options: dict[str, Any], place: Callable[[str], tuple[str, ...]]) -> None:
        """Of a network with data: what its group says for the methods goes; its own that nothing reads is wrong."""
        for name in [name for name in options if name in TRAIN]:
            given = {n: tuple(value) if isinstance(value, list) else value for n, value in options.items()}
            try:
                check_idle(given, usual_pretraining(), {name: TRAIN[name]})
            except ValueError as error:
                if place(name)[0] not in ("options", "groups"):
                    raise self.fail(str(error), *place(name)) from error
                del options[name]

    def _check_values(
        self, job: str, own: Any, options: Mapping[str, Any], place: Callable[[str], tuple[str, ...]]
    ) -> None:
        """Values of known options: their types, what the configurations accept, the names of networks and data."""
        fields = {field.name: field for each in (JOBS[job], own) if each is not None for field in fields_of(each)}
        for name, value in options.items():
            if not TYPES[fields[name].type].holds(value):
                raise self.fail(
                    f"{fields[name].flag} is {value!r}: give {TYPES[fields[name].type].words}", *place(name)
                )
        common = {field.name for field in fields_of(JOBS[job])}
        try:
            replace(JOBS[job](), {k: v for k, v in options.items() if k in common})
            if own is not None:
                replace(own(), {k: v for k, v in options.items() if k not in common})
        except (ValueError, TypeError) as error:
            named = re.findall(r"--([\w-]+)", str(error))  # whole names: --student-steps is not --student
            name = next((n for n in options if n.replace("_", "-") in named), "method")
            raise self.fail(str(error), *place(name)) from error
        if "device" in options:
            self.check(options["device"], DEVICE, *place("device"))
        if "preset" in options:
            method = str(options["method"])
            self._check_name(f"preset of {method}", options["preset"], tuple(presets_of(job, method)), *place("preset"))
        for name in NETWORKS[job]:
            if name in options:
                self._check_network(options[name], AUTO if job == "condense" else (), *place(name))
        if "data" in options:
            try:
                split_name(options["data"])
            except ValueError as error:
                raise self.fail(str(error), *place("data")) from error
