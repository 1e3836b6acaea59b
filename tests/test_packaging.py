"""What is installed: one top-level name, all packages, their data, and a command that answers at once."""

from __future__ import annotations

import ast
import configparser
import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import datafree

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"kornia", "matplotlib", "numpy", "scipy", "sklearn", "tensorboard", "torch", "torchvision"}
MAPPED = {"generators": "datafree.generators", "benchmarks": "datafree.benchmarks"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def packages_listed() -> list[str]:
    return setup_cfg()["options"]["packages"].split()


def packages_on_disk(top: Path, name: str) -> set[str]:
    """Dotted names of the folders below `top` that hold an `__init__.py`; links are not followed."""
    found = set()
    for folder, subfolders, files in os.walk(top):
        subfolders[:] = [entry for entry in subfolders if entry != "__pycache__"]
        if "__init__.py" in files:
            found.add(".".join((name, *Path(folder).relative_to(top).parts)))
    return found


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this checkout, installed or not."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def test_package_list_equals_the_tree() -> None:
    on_disk = packages_on_disk(ROOT / "datafree", "datafree")
    for folder, name in MAPPED.items():
        on_disk |= packages_on_disk(ROOT / folder, name)
    assert sorted(packages_listed()) == sorted(on_disk)


def test_every_python_file_lies_in_a_package() -> None:
    for top in ("datafree", *MAPPED):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent.relative_to(ROOT)} has no __init__.py"


@pytest.mark.parametrize("folder", sorted(MAPPED))
def test_links_point_beside_the_package(folder: str) -> None:
    link = ROOT / "datafree" / folder
    if not link.is_symlink() and link.is_file():
        pytest.skip("this clone has no symbolic links (git wrote the target's name into a file)")
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"


def test_mapping_is_the_links() -> None:
    lines = setup_cfg()["options"]["package_dir"].split("\n")
    pairs = [[part.strip() for part in line.split("=")] for line in lines if line]
    assert {folder: package for package, folder in pairs} == MAPPED


def test_generators_import_torch_only() -> None:
    for file in (ROOT / "generators").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = ["datafree.generators" if node.level == 1 else "." * node.level + str(node.module or "")]
            else:
                continue
            for name in names:
                allowed = name.split(".")[0] in {"torch", *sys.stdlib_module_names}
                assert allowed or name.startswith("datafree.generators"), f"{file.name} imports {name}"


def test_one_version() -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: datafree.__version__"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {datafree.__version__}\n" in citation
    assert f"\n## [{datafree.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["train", "--no-such-flag"]])
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    # No torch is what makes the answer quick, and unlike a time it does not depend on how busy the machine is.
    code = (
        "import sys\n"
        "from datafree.cli import main\n"
        "status = 0\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, sorted(heavy)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=child_environment(), timeout=60
    )
    assert "AssertionError" not in done.stderr, done.stderr
    assert done.returncode == (2 if "--no-such-flag" in arguments else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout or done.returncode == 2


def test_rooms_are_there_without_another_import() -> None:
    code = "import datafree; print(datafree.losses.kl, datafree.synthesis.METHODS['dafl'], datafree.generators)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    assert {"losses", "synthesis", "condensation", "evaluation", "generators"} <= set(dir(datafree))
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        datafree.loses  # noqa: B018


def links_and_caches(folder: str, names: list[str]) -> set[str]:
    """Left out of the copy: a clone without symbolic links must build a complete wheel too."""
    return {name for name in names if name == "__pycache__" or Path(folder, name).is_symlink()}


@pytest.mark.slow
def test_wheel_is_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    for name in ("datafree", *MAPPED):
        shutil.copytree(ROOT / name, source / name, ignore=links_and_caches)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"datafree-{datafree.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"datafree", info}
    packages = {name.removesuffix("/__init__.py").replace("/", ".") for name in names if name.endswith("/__init__.py")}
    assert packages == set(packages_listed())
    beside = {
        path.relative_to(source).as_posix()
        for folder in ("datafree", *MAPPED)
        for path in (source / folder).rglob("*")
        if path.is_file() and path.suffix != ".py"
    }
    inside = {f"datafree/{name}" if name.split("/")[0] in MAPPED else name for name in beside}
    assert "datafree/py.typed" in inside
    assert inside <= set(names)
    assert metadata["Version"] == datafree.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "datafree = datafree.cli:main" in scripts
