"""Small teachers on the embedded digits, trained once for all tests of the jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

import datafree


def pretrained(folder: Path, arch: str, steps: int) -> str:
    datafree.pretrain(out=folder, data="digits", arch=arch, steps=steps, batch_size=64, lr=0.1, augment=False)
    return str(folder / "model.safetensors")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with batch norm that is right about more than half of the digits."""
    return pretrained(tmp_path_factory.mktemp("jobs") / "teacher", "resnet8", 60)


@pytest.fixture(scope="session")
def plain_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network without batch norm."""
    return pretrained(tmp_path_factory.mktemp("jobs") / "plain", "mlp", 3)
