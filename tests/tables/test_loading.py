"""Specifications: what a table's TOML makes of cells, and what is said of its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.config import PretrainConfig, light_config
from datafree.evaluation.protocols import PROTOCOLS
from datafree.fields import fields_of
from datafree.jobs.pretraining import DEFAULTS
from datafree.synthesis import load_method
from datafree.tables import find_tables, load_table
from datafree.tables.defaults import JOBS, ROOMS, presets_of, protocols, usual_pretraining
from datafree.tables.kinds import TYPES
from datafree.tables.specs import with_budget

SMALL = """\
title = "A table"
budgets = ["10m", "30m"]

[options]
threads = 1

[teachers.t]
file = "t.pt"
arch = "nets.py:make"

[groups.a]
title = "Group A"
teacher = "t"
options = { data = "digits", student = "lenet5_half" }

[rows.noise]

[rows.start]
title = "from nothing"
options = { method = "blend", inherit = false }

[published.a]
noise = { value = 88.01, source = "DAFL, Table 1" }
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "nets.py").touch()
    return path


def test_a_cell_is_a_row_of_a_group_at_a_length(tmp_path):
    table = load_table(written(tmp_path, SMALL))
    assert [cell.name for cell in table.cells] == ["a/noise@10m", "a/noise@30m", "a/start@10m", "a/start@30m"]
    first, last = table.cells[0], table.cells[-1]
    assert first.options == {
        "threads": 1, "data": "digits", "student": "lenet5_half", "budget": "10m", "method": "noise",
    }  # fmt: skip
    assert last.options["method"] == "blend"
    assert last.options["inherit"] is False
    assert last.title == "from nothing"
    assert first.published is not None
    assert (first.published.value, first.published.spread) == (88.01, None)
    assert first.teacher == {"name": "t", "file": "t.pt", "arch": "nets.py:make"}


def test_a_cell_overrides_its_row_and_a_length_ousts_another(tmp_path):
    more = SMALL.replace('["10m", "30m"]', '["10m"]') + "\n[cells.a.noise]\nsteps = 7\n"
    cell = load_table(written(tmp_path, more)).cells[0]
    assert cell.name == "a/noise"
    assert cell.options["steps"] == 7
    assert "budget" not in cell.options
    assert with_budget(cell, "90s").options["budget"] == "90s"
    assert "steps" not in with_budget(cell, "90s").options
    assert with_budget(cell, "90s").name == "a/noise@90s"


LAYERS = """\
title = "Layers"
budgets = ["10m"]

[options]
data = "digits"
threads = 1

[teachers.t]
file = "t.pt"
arch = "nets.py:make"

[groups.a]
rows = ["noise", "dafl", "dfq", "base"]
teacher = "t"
options = { threads = 2 }

[groups.b]
rows = ["dm"]
job = "condense"
evaluation = { networks = 7 }

[rows.noise]

[rows.dafl]
options = { threads = 3 }

[rows.dfq]
budgets = ["1m", "2m"]
options = { threads = 3 }

[rows.base]
job = "pretrain"
options = { steps = 50 }

[rows.dm]

[cells.a.dfq]
threads = 4
"""


def test_what_is_nearer_to_a_cell_counts_and_a_baseline_has_no_teacher(tmp_path):
    table = load_table(written(tmp_path, LAYERS))
    cells = {cell.name: cell for cell in table.cells}
    assert {name: cell.options["threads"] for name, cell in cells.items()} == {
        "a/noise": 2, "a/dafl": 3, "a/dfq@1m": 4, "a/dfq@2m": 4, "a/base": 2, "b/dm": 1,
    }  # fmt: skip
    assert [cells[f"a/dfq@{each}"].options["budget"] for each in ("1m", "2m")] == ["1m", "2m"]
    assert cells["a/dafl"].teacher is not None
    assert cells["a/base"].teacher is None
    assert cells["a/base"].spec(0)["teacher"] is None
    assert cells["b/dm"].evaluation is not None
    assert (cells["b/dm"].evaluation["networks"], cells["b/dm"].evaluation["protocol"]) == (7, "default")
    # What is as by default is no part of the hash: results stay when a new entry comes.
    assert cells["b/dm"].spec(0)["evaluation"] == {"networks": 7}


def test_a_length_of_a_row_ousts_the_tables(tmp_path):
    text = SMALL.replace('budgets = ["10m", "30m"]\n', "").replace("threads = 1", "steps = 5")
    cells = load_table(written(tmp_path, text.replace("inherit = false", 'budget = "1m"'))).cells
    assert [(cell.options.get("steps"), cell.options.get("budget")) for cell in cells] == [(5, None), (None, "1m")]


def test_the_hash_follows_what_decides_the_result_and_nothing_else(tmp_path):
    def digest(text: str, seed: int = 0) -> str:
        return load_table(written(tmp_path, text)).cells[0].digest(seed)

    first = digest(SMALL)
    assert len(first) == 16
    assert digest(SMALL, 1) != first
    cell = load_table(written(tmp_path, SMALL)).cells[0]
    assert cell.file_name(3) == f"a-noise-10m-3-{digest(SMALL, 3)[:8]}.json", "one spec's result takes no other's place"
    assert digest(SMALL.replace("threads = 1", "threads = 2")) != first
    assert digest(SMALL.replace('"t.pt"', '"other.pt"')) != first
    assert digest(SMALL.replace("A table", "Another title").replace("Group A", "A")) == first
    assert digest(SMALL.replace("88.01", "88.02")) == first
    assert digest(SMALL.replace('["10m", "30m"]', '["10m"]')) == first


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("threads = 1", "thread = 1", 5, "unknown option 'thread'"),
        ("threads = 1", "threads = 0", 5, "--threads is 0"),
        ("[rows.start]", "[rows.start]\nmethod = 'blend'", 19, "unknown key 'method' of rows.start"),
        ('method = "blend", inherit = false', 'method = "blen"', 20, "unknown method 'blen'"),
        ('method = "blend", inherit = false', "", 18, "rows.start: 'start' is no method of train: name its method"),
        ("[rows.start]", "[rows.nois]\n[rows.start]", 18, "rows.nois: .* no method of train: did you mean noise"),
        ('teacher = "t"', 'teacher = "u"', 13, "unknown teacher 'u'"),
        ("noise = {", "dafl = {", 23, "unknown row 'dafl'"),
        ("[published.a]", "[published.b]", 22, "unknown group 'b'"),
        (', source = "DAFL, Table 1"', "", 23, "no source"),
        ("value = 88.01, ", "", 23, "no value"),
        ("[rows.noise]", "[rows.noise", 16, "no valid TOML"),
        ("[rows.noise]", "[rows.noise]\njob = 'sell'", 17, "job is 'sell'"),
        ("[options]", "layout = 'round'\n[options]", 4, "layout is 'round'"),
        ('title = "A table"', "", 1, "no title"),
        ("inherit = false", "temperature = -1.0", 20, "--temperature is -1.0"),
        ('method = "blend", inherit = false', 'method = "noise"', 18, "are one spec"),
        ("inherit = false", "seed = 3", 20, "seed is no option"),
        # Top-level keys and sections of another type.
        ('title = "A table"', "title = 3", 1, "title is 3: give a text"),
        ('["10m", "30m"]', '"10m"', 2, "budgets is '10m': give a list of times"),
        ('["10m", "30m"]', '["10m", "soon"]', 2, "budgets is .*'soon'.*: give a list of times"),
        ('["10m", "30m"]', "[]", 2, "budgets is .*: give a list of times"),
        ("[options]", "seeds = 'two'\n[options]", 4, "seeds is 'two': give a whole number above 0"),
        ("[options]", "seeds = 0\n[options]", 4, "seeds is 0: give a whole number above 0"),
        ("[options]", "seeds = true\n[options]", 4, "seeds is True: give a whole number"),
        ("[options]", "order = 'first'\n[options]", 4, "order is 'first': give a whole number"),
        ("[options]", "papers = 'one'\n[options]", 4, "papers is 'one': give a list of texts"),
        ("[options]", "cost = 'cheap'\n[options]", 4, "cost is 'cheap': give one of minutes, hours, gpu"),
        ("[options]", "tolerance = 'a'\n[options]", 4, "tolerance is 'a': give a number"),
        ("[options]\nthreads = 1", "options = 'fast'", 4, "options is 'fast': give a section"),
        ("[rows.noise]", "[rows.noise]\ncost = 'cheap'", 17, "rows.noise.cost is 'cheap': give one of minutes"),
        ("[rows.noise]", "[rows.noise]\ngroups = 'a'", 17, "rows.noise.groups is 'a': give a list of texts"),
        ("[rows.noise]", "[rows]\nnoise = 'x'", 17, "rows.noise is 'x': give a section"),
        ('title = "Group A"', "rows = 'noise'", 12, "groups.a.rows is 'noise': give a list of texts"),
        ('title = "Group A"', "evaluation = { protocoll = 'x' }", 12, "unknown key 'protocoll' of groups.a.evaluation"),
        ('title = "Group A"', "evaluation = { networks = 0 }", 12, "networks is 0: give a whole number above 0"),
        ('title = "Group A"', "evaluation = { archs = ['lenett'] }", 12, "unknown network 'lenett'"),
        ("[published.a]", "[cells]\na = 'x'\n[published.a]", 23, "cells.a is 'x': give a section"),
        ("[published.a]", "[cells.a]\nnoise = 'x'\n[published.a]", 23, "cells.a.noise is 'x': give a section"),
        ("value = 88.01", "value = '88'", 23, "published.a.noise.value is '88': give a number"),
        ("value = 88.01", "spread = 'a', value = 88.01", 23, "published.a.noise.spread is 'a': give a number"),
        ("[published.a]\nnoise =", "[published.x.noise]\n#", 22, "unknown group 'x'"),
        ("value = 88.01", "value = nan", 23, "value is nan: give a number from 0 to 100"),
        ("value = 88.01", "value = inf", 23, "value is inf: give a number from 0 to 100"),
        ("value = 88.01", "value = -5", 23, "value is -5: give a number from 0 to 100"),
        ("value = 88.01", "value = 190", 23, "value is 190: give a number from 0 to 100"),
        ("value = 88.01", "value = 88, tolerance = -5", 23, "tolerance is -5: give a number of 0 or more"),
        ("value = 88.01", "value = 88, tolerance = nan", 23, "tolerance is nan: give a number of 0 or more"),
        ("value = 88.01", "value = 88, spread = -1", 23, "spread is -1: give a number of 0 or more"),
        ("[options]", "tolerance = -1\n[options]", 4, "tolerance is -1: give a number of 0 or more"),
        ("DAFL, Table 1", "  ", 23, "source is '  ': give a text that is not blank"),
        # What stands for groups and rows that have no cell.
        ('title = "Group A"', "rows = ['start']", 23, "published: group 'a' has no row 'noise'"),
        (
            "[published.a]",
            "[groups.b]\nrows=['noise']\n[cells.b.start]\nx = 1\n[published.a]",
            24,
            "cells: group 'b' has",
        ),
        (
            "[rows.noise]",
            "[rows.noise]\ngroups = ['a']\n[groups.b]\nrows = ['start']\n[rows.dafl]\ngroups = ['b']",
            21,
            "rows.dafl.groups has 'b', whose own rows leave 'dafl' out",
        ),
        (
            "[rows.noise]",
            "[groups.b]\nrows = ['noise']\n[rows.noise]\ngroups = ['a']",
            17,
            "groups.b.rows has 'noise', whose own groups leave 'b' out",
        ),
        # A row that meets a group of another job.
        (
            "[rows.noise]",
            "[groups.b]\njob = 'condense'\n[rows.noise]",
            18,
            "'noise' is no method of condense: .* .in groups.b: keep the row out of it",
        ),
        (
            "[rows.noise]",
            "[groups.b]\njob = 'condense'\n[rows.noise]\ngroups = ['a']",
            23,
            "unknown condensation method 'blend'.* .in groups.b: keep the row out of it",
        ),
        # What was found after hours: ways to judge, presets, devices.
        ('title = "Group A"', "evaluation = { protocol = 'vicoo' }", 12, "unknown protocol 'vicoo': did you mean vico"),
        ('title = "Group A"', "evaluation = { protocol = 'rded' }", 12, "protocol rded trains on a teacher's labels"),
        (
            'title = "Group A"',
            "evaluation = { networks = 2 }",
            12,
            "groups.a has no row whose job is condense: .*leave",
        ),
        (
            'teacher = "t"',
            'teacher = "t"\nrows = ["noise"]\njob = "pretrain"',
            13,
            "groups.a has no row whose job is train: .*teacher",
        ),
        ("[rows.start]", "[rows.start]\njob = 'pretrain'", 21, "unknown option 'method' of pretrain"),
        ("inherit = false", "teacher = 'u.pt'", 20, "an option names a teacher, and groups.a has one"),
        ('["10m", "30m"]', '["60s", "1m"]', 2, "budgets is .*: give a list of times, no two alike"),
        ("[rows.start]", "[rows.'noise@10m']\n[rows.start]", 18, "'noise@10m' is no method of train"),
        (
            "[rows.start]",
            "[rows.'b/noise']\noptions = { method = 'noise', lr = 1.0 }\n[groups.'a/b']\nteacher = 't'\n[rows.start]",
            16,
            "a/b/noise@10m is the name of row 'b/noise' in group 'a' and of row 'noise' in 'a/b': call one otherwise",
        ),
        ('Table 1" }\n', 'Table 1" }\nfoo', 24, "no valid TOML: .*document"),
        ("threads = 1", f"batch_size = 1{'0' * 400}", 5, "--batch-size is 1000.*: give a whole number"),
        ("threads = 1", f"lr = 1{'0' * 400}", 5, "--lr is 1000.*: give a number"),
        ("value = 88.01", f"value = 1{'0' * 400}", 23, "value is 1000.*: give a number from 0 to 100"),
        ('arch = "nets.py:make"', "mean = [nan]\nstd = [1.0]", 9, "mean is .*: give a list of numbers"),
        ('arch = "nets.py:make"', "mean = [0.5]\nstd = [0.0]", 10, "std is .*: give a list of numbers above 0"),
        ("inherit = false", "student_steps = 0", 20, "--student-steps is 0"),  # not where --student stands
        ("inherit = false", "preset = 'x'", 20, "unknown preset of blend 'x': there is none"),
        (
            'method = "blend", inherit = false',
            "method = 'dafl', preset = 'ofical'",
            20,
            "unknown preset of dafl 'ofical': did you mean official",
        ),
        ("inherit = false", "device = 'cudaa'", 20, "device is 'cudaa': give auto, cpu, cuda or cuda:N"),
        ("inherit = false", "download = true", 20, "download is no option of a table: give reproduce --download"),
        ("threads = 1", "download = false", 5, "download is no option of a table"),
        # Options: their types, networks and data.
        ("inherit = false", "temperature = 'hot'", 20, "--temperature is 'hot': give a number"),
        ("inherit = false", "steps = 2.5", 20, "--steps is 2.5: give a whole number"),
        ("inherit = false", "inherit = 1", 20, "--inherit is 1: give true or false"),
        ("inherit = false", "prior = 0.5", 20, "--prior is 0.5: give a list of numbers"),
        ('student = "lenet5_half"', 'student = "resnot8"', 14, "unknown network 'resnot8': did you mean .*resnet8"),
        ('student = "lenet5_half"', 'student = "auto"', 14, "unknown network 'auto'"),
        ('student = "lenet5_half" }', 'student = "lennet" }\njob = "pretrain"', 14, "unknown network 'lennet'"),
        ('data = "digits"', 'data = "digit"', 14, "unknown data 'digit': did you mean digits"),
        # Networks in files.
        ('student = "lenet5_half"', 'student = "nope.py:f"', 14, "nope.py:f: there is no file /.*/nope.py: give its"),
        ("inherit = false", "student = 'far/nets.py:make'", 20, "there is no file /.*/far/nets.py"),
        ('arch = "nets.py:make"', "arch = 'nope.py:f'", 9, "nope.py:f: there is no file"),
        # Teachers and how they are trained.
        ('arch = "nets.py:make"', "arch = 'resnot8'", 9, "unknown network 'resnot8'"),
        ('file = "t.pt"', "", 7, "teachers.t has no origin: give one of file"),
        ('file = "t.pt"', 'file = "t.pt"\nsource = "x"', 7, "teachers.t has file and source: give one"),
        ('file = "t.pt"', "mean = 0.5\nfile = 't.pt'", 8, "teachers.t.mean is 0.5: give a list of numbers"),
        ('file = "t.pt"', "pretrain = 'x'", 8, "teachers.t.pretrain is 'x': give a section"),
        ('file = "t.pt"', "pretrain = { epoch = 1 }", 8, "unknown option 'epoch' of pretrain"),
        ('file = "t.pt"', "pretrain.epoch = 1", 8, "unknown option 'epoch' of pretrain"),
        ('file = "t.pt"', "pretrain.download = true", 8, "unknown option 'download' of pretrain"),
        ('file = "t.pt"', "pretrain = { epochs = 'one' }", 8, "--epochs is 'one': give a number"),
        ('file = "t.pt"', "pretrain = { epochs = -1 }", 8, "--epochs is -1"),
        ('file = "t.pt"', "pretrain = { arch = 'resnot8' }", 8, "unknown network 'resnot8'"),
        ('file = "t.pt"', "pretrain = { data = 'mnits' }", 8, "unknown data 'mnits'"),
        ('file = "t.pt"', "pretrain = { milestones = [0.6] }", 8, "nothing reads --milestones with --schedule cosine"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, old, new, line, words):
    assert SMALL.count(old) == 1
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ValueError, match=words) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), caught.value


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ("[rows.dafl]", "dafl"),
        ("[rows.mine]\noptions = { method = 'dafl' }", "dafl"),
        ("[rows.mine]\n[cells.a.mine]\nmethod = 'dafl'", "dafl"),
        ("[rows.mine]\noptions = { source = 'real' }", "blend"),  # the images are no method's
        ("[rows.default]", "blend"),
        ("[rows.default]\njob = 'condense'", "frepo"),
        ("[rows.mine]\njob = 'pretrain'", None),
    ],
)
def test_whose_method_a_row_has(tmp_path, row, method):
    text = f"title = 'A'\n[groups.a]\noptions = {{ data = 'digits', steps = 1 }}\n{row}\n"
    (cell,) = load_table(written(tmp_path, text)).cells
    assert cell.options.get("method") == method


def test_a_network_with_data_takes_of_its_group_what_it_reads(tmp_path):
    text = """\
title = "A"
[groups.a]
options = { data = "digits", steps = 1, milestones = [0.6], momentum = 0.5, augment = false, flip = true }
[rows.plain]
job = "pretrain"
[rows.stepwise]
job = "pretrain"
options = { schedule = "multistep", augment = true }
[rows.adam]
job = "pretrain"
options = { optimizer = "adam", flip = false }
"""
    plain, stepwise, adam = load_table(written(tmp_path, text)).cells
    shared = {"data": "digits", "steps": 1}
    assert plain.options == {**shared, "momentum": 0.5, "augment": False}
    own = {"schedule": "multistep", "augment": True}
    assert stepwise.options == {**shared, "milestones": [0.6], "momentum": 0.5, "flip": True, **own}
    assert adam.options == {**shared, "augment": False, "optimizer": "adam", "flip": False}
    path = written(tmp_path, text.replace("flip = false", "momentum = 0.6"))
    with pytest.raises(ValueError, match="nothing reads --momentum with --optimizer adam") as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}:11: ")


def test_what_a_longer_text_quotes_is_no_line_of_the_table(tmp_path):
    notes = "notes = QQQ\n[options]\nthread = 1\nQQQ\nmetric = QQQof one lineQQQ\n".replace("QQQ", "'" * 3)
    path = written(tmp_path, SMALL.replace("[options]", f"{notes}[options]").replace("threads = 1", "thread = 1"))
    with pytest.raises(ValueError, match="unknown option 'thread'") as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}:10: ")


def test_presets_and_protocols_are_read_without_torch():
    for method in ROOMS["train"].METHODS:
        assert tuple(presets_of("train", method)) == tuple(getattr(load_method(method), "PRESETS", {}))
    assert tuple(protocols()) == tuple(PROTOCOLS)


def test_what_a_network_with_data_is_trained_by_is_read_without_torch():
    usual = {field.name: field.default for field in fields_of(PretrainConfig)}
    assert usual_pretraining() == usual | DEFAULTS


def test_what_torch_alone_knows_is_not_refused(tmp_path):
    text = SMALL.replace('"lenet5_half"', '"torchvision:resnet18"').replace('"nets.py:make"', '"timm:vit"')
    assert load_table(written(tmp_path, text)).cells[0].options["student"] == "torchvision:resnet18"


def test_every_option_has_a_type_that_is_checked():
    specs = [JOBS[job] for job in JOBS]
    specs += [light_config(spec) for room in ROOMS.values() for spec in room.METHODS.values()]
    assert {field.type for spec in specs for field in fields_of(spec)} <= set(TYPES)


def test_an_unknown_table_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown table 'mnist': take one of .*digits-smoke"):
        load_table("mnist")
    with pytest.raises(ValueError, match="cannot be read"):
        load_table("nowhere.toml")


def test_tables_come_in_the_order_of_the_page():
    names = list(find_tables())
    assert names[:3] == ["digits-smoke", "data-free-cpu", "condensation-cpu"]


def test_a_table_is_utf_8_with_or_without_a_mark(tmp_path):
    text = find_tables()["digits-smoke"].read_text(encoding="utf-8")
    path = tmp_path / "smoke.toml"
    path.write_text(text, encoding="utf-8-sig")
    assert load_table(path).title == load_table("digits-smoke").title
    path.write_bytes("layout = 'rows'\ntitle = 'für'".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}:2: not UTF-8 .*: save it as UTF-8"):
        load_table(path)
