"""Building networks by name: every kind of name, and every message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.models import build_model, load_model
from datafree.models.build import run_file
from datafree.runs import save_network

RGB = (3, 32, 32)

USER_FILE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
import neighbour_of_nets

@dataclass
class Widths:
    hidden: int = neighbour_of_nets.HIDDEN

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, Widths().hidden), nn.ReLU(), nn.Linear(Widths().hidden, 5))

def number():
    return 3

def broken():
    raise RuntimeError("first line\\nsecond line")

constant = 1
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    (tmp_path / "neighbour_of_nets.py").write_text("HIDDEN = 6\n")
    path = tmp_path / "nets.py"
    path.write_text(USER_FILE)
    return str(path)


def test_alias() -> None:
    names = set(build_model("convnet", shape=RGB, classes=10).state_dict())
    assert names == set(build_model("convnet3", shape=RGB, classes=10).state_dict())


def test_unknown_name_lists_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'resnet21'; closest: .*resnet20.*datafree list models"):
        build_model("resnet21", shape=RGB, classes=10)
    with pytest.raises(ValueError, match=r"closest: .*torchvision:resnet34"):
        build_model("torchvision:resnet33", shape=RGB, classes=10)


@pytest.mark.parametrize("shape", [(3, 32), (0, 32, 32), (3, -1, 32)])
def test_impossible_shapes(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a shape is channels, height, width"):
        build_model("resnet8", shape=shape, classes=10)


def test_impossible_classes() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        build_model("resnet8", shape=RGB, classes=0)


def test_torchvision_takes_other_channels_and_classes() -> None:
    network = build_model("torchvision:resnet18", shape=(1, 28, 28), classes=7)
    assert network.training
    assert network.get_parameter("conv1.weight").shape == (64, 1, 7, 7)
    assert network.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_torchvision_transformer_follows_the_size() -> None:
    network = build_model("torchvision:vit_b_32", shape=(3, 64, 64), classes=3)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="torchvision:vit_b_32 cannot be built for 3x40x40"):
        build_model("torchvision:vit_b_32", shape=(3, 40, 40), classes=3)


def test_torchvision_network_too_deep_for_the_image() -> None:
    with pytest.raises(ValueError, match="torchvision:squeezenet1_0 cannot take images of 3x8x8") as caught:
        build_model("torchvision:squeezenet1_0", shape=(3, 8, 8), classes=10)
    assert "\n" not in str(caught.value)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'datafree\[timm\]'"):
        build_model("timm:resnet18", shape=RGB, classes=10)


@pytest.mark.slow
def test_timm() -> None:
    pytest.importorskip("timm")
    network = build_model("timm:resnet10t", shape=(1, 32, 48), classes=4)
    assert network.eval()(torch.zeros(1, 1, 32, 48)).shape == (1, 4)
    assert build_model("timm:vit_tiny_patch16_224", shape=(3, 32, 32), classes=4)(torch.zeros(1, *RGB)).shape == (1, 4)
    with pytest.raises(ValueError, match=r"unknown network 'timm:resnet1818'; closest: timm:"):
        build_model("timm:resnet1818", shape=RGB, classes=4)


def test_user_file(user_file: str) -> None:
    path_before = list(sys.path)
    network = build_model(f"{user_file}:make", shape=(3, 4, 4), classes=5)
    assert isinstance(network, nn.Module)
    assert network(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("function", "shape", "classes", "message"),
    [
        ("make", (3, 5, 5), 5, "cannot take images of 3x5x5"),
        ("make", (3, 4, 4), 6, r"gives an output of shape \(1, 5\) for one image of 3x4x4, not \(1, 6\) logits"),
        ("number", (3, 4, 4), 5, "returned int, not a torch.nn.Module"),
        ("broken", (3, 4, 4), 5, "failed when it was run: RuntimeError: first line$"),
        ("absent", (3, 4, 4), 5, "defines no function 'absent'"),
        ("constant", (3, 4, 4), 5, "defines no function 'constant'"),
    ],
)
def test_user_file_messages(
    user_file: str, function: str, shape: tuple[int, int, int], classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(f"{user_file}:{function}", shape=shape, classes=classes)


OWN = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.norm, self.drop = kind, nn.BatchNorm2d(3), nn.Dropout()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))

    def forward(self, images):
        with torch.set_grad_enabled(self.kind != "silent" and (self.kind != "thrifty" or self.training)):
            logits = self.head(self.drop(self.norm(images)))
        if self.kind == "both" and self.training:
            return logits, logits
        return logits.softmax(1) if self.kind == "probable" or (self.kind == "late" and not self.training) else logits


class Bare(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :5]


def thrifty(): return Own("thrifty")
def silent(): return Own("silent")
def frozen(): return Own("").requires_grad_(False)
def bare(): return Bare()
def both(): return Own("both")
def probable(): return Own("probable")
def late(): return Own("late")
def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
def sized():
    network = lazy()
    network(torch.zeros(2, 3, 4, 4))
    return network
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("silent", r"silent cannot be trained, no gradient reaches its weights: leave torch.no_grad, detach and"),
        ("frozen", r"frozen cannot be trained, no gradient reaches its weights"),
        ("bare", r"bare cannot be trained, .* or give a network that has weights$"),
        ("both", r"both returns tuple in training: its forward must return the logits \(N, classes\) alone$"),
        ("probable", r"probable answers with probabilities: its forward must return the logits, which a softmax made"),
        ("late", r"late answers with probabilities"),
        ("lazy", r"lazy has layers without sizes \(LazyConv2d\): give these, or pass a batch through it first"),
    ],
)
def test_networks_of_ones_own_that_cannot_be_trained(tmp_path: Path, function: str, message: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(f"{tmp_path}/own.py:{function}", shape=(3, 4, 4), classes=5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["thrifty", "sized"])
def test_looking_at_a_network_of_ones_own_changes_nothing(tmp_path: Path, function: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.manual_seed(0)
    network = build_model(f"{tmp_path}/own.py:{function}", shape=(3, 4, 4), classes=5)
    drawn, state = torch.rand(3), {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(0)
    fresh = run_file(f"{tmp_path}/own.py:{function}")
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())
    assert all(module.training for module in network.modules())
    if function == "sized":  # of known sizes, it is read again
        save_network(tmp_path / "own.safetensors", network, {"shape": (3, 4, 4), "classes": 5})
        again = load_model(tmp_path / "own.safetensors", arch=f"{tmp_path}/own.py:sized").network
        assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


def test_user_file_that_is_not_there_or_no_python(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give path/file.py:function"):
        build_model(f"{tmp_path}/none.py:make", shape=RGB, classes=10)
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(ValueError, match="failed when it was run: SyntaxError"):
        build_model(f"{tmp_path}/bad.py:make", shape=RGB, classes=10)
    for ends in ("import sys\nsys.exit()\n", "def make(): raise SystemExit(3)\n"):
        (tmp_path / "ends.py").write_text(ends)
        with pytest.raises(ValueError, match="ends the program when it is run: put that under if __name__"):
            build_model(f"{tmp_path}/ends.py:make", shape=RGB, classes=10)
    (tmp_path / "flags.py").write_text(
        "import argparse\nfrom torch import nn\np = argparse.ArgumentParser()\np.add_argument('--lr', default=1)\n"
        "p.parse_args()\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
    )
    build_model(f"{tmp_path}/flags.py:make", shape=(3, 8, 8), classes=10)
