"""The README's Python example, as it stands but for names and lengths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import datafree

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.split()) < 1700


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    datafree.pretrain(data="digits", arch="resnet20", epochs=2, out="teacher")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in example.splitlines() if line]
    assert len(lines) <= 5
    changes = {'"resnet20.pt"': '"teacher"', '"cifar10"': '"digits"', '"fashion-mnist"': '"digits"'}
    changes |= {'"15m"': '"4s"', '"10m"': '"4s"', "ipc=10": "ipc=1"}
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    example = example.replace('(small, "digits")', '(small, "digits", protocol="vico-noaug", networks=1)')
    exec(example, {})
    student, condensed = capsys.readouterr().out.strip().split("\n", 1)
    assert 0 <= float(student.split()[0]) <= 1
    assert 0.1 < float(condensed.splitlines()[-1]) <= 1
