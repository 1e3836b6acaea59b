"""Loading checkpoints as networks: what is inferred, under which names, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from datafree.jobs.loading import load_teacher
from datafree.models import MODELS, build_model, load_model
from datafree.models.fit import build_empty
from datafree.models.naming import shapes_of

RGB = (3, 32, 32)


def fresh(name: str, shape: tuple[int, int, int] = RGB, classes: int = 10) -> dict[str, Tensor]:
    """The state dict of a new network, batch norm's buffers moved away from their start."""
    state = build_model(name, shape=shape, classes=classes).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    return state


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("resnet18", "resnet34", "vgg11")])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
def test_every_network_comes_back_by_its_name_alone(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    if name == "convnet5" and shape[1] < 32:
        return
    state = fresh(name, shape, classes=7)
    torch.save(state, tmp_path / f"{name}.pt")
    found = load_model(str(tmp_path / f"{name}.pt"))
    assert (found.arch, found.classes) == (name, 7)
    # The size of grey images is 28 only for networks whose tensors tell it or that are usual there.
    fixed = name.startswith(("lenet5", "mlp", "convnet"))
    assert found.shape == (shape if fixed or shape[0] == 3 else (1, 32, 32))
    assert not found.network.training
    assert all(torch.equal(value, state[key]) for key, value in found.network.state_dict().items())
    assert found.choices[0] == f"architecture: {name} (from the file's name)"
    assert (found.mean, found.std, found.data) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 8, 8)),
        ("mlp", (1, 8, 8)),
        ("mlp", (3, 64, 64)),
        ("convnet3", (3, 64, 64)),
        ("convnet4", (3, 96, 96)),
    ],
)
def test_the_size_is_read_off_the_weights_where_they_tell_it(
    tmp_path: Path, name: str, shape: tuple[int, int, int]
) -> None:
    torch.save(fresh(name, shape), tmp_path / f"{name}.pt")
    assert load_model(str(tmp_path / f"{name}.pt")).shape == shape


def test_oblong_shape_given(tmp_path: Path) -> None:
    torch.save(fresh("lenet5", (3, 24, 40)), tmp_path / "lenet5.pt")
    found = load_model(str(tmp_path / "lenet5.pt"), shape=(3, 24, 40))
    assert found.shape == (3, 24, 40)
    assert found.network(torch.zeros(1, 3, 24, 40)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"does not fit lenet5: misshapen fc1\.weight"):
        load_model(str(tmp_path / "lenet5.pt"))


def test_cifar_stem_under_both_namings(tmp_path: Path) -> None:
    state = fresh("resnet18", classes=5)
    theirs = {
        key.replace(".shortcut.", ".downsample.").replace("linear.", "fc."): value for key, value in state.items()
    }
    assert "layer2.0.downsample.0.weight" in theirs
    torch.save(state, tmp_path / "resnet18.pt")
    torch.save(theirs, tmp_path / "resnet18_best.pt")
    images = torch.rand(2, *RGB)
    outputs = []
    for name in ("resnet18.pt", "resnet18_best.pt"):
        found = load_model(str(tmp_path / name))
        assert (found.arch, found.shape, found.classes) == ("resnet18", RGB, 5)
        outputs.append(found.network(images))
    assert torch.equal(*outputs)
    assert "names of the tensors: torchvision's (downsample, fc), renamed" in found.choices
    assert "classes: 5 (read off fc.weight)" in found.choices


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v2", "vgg11_bn", "densenet121", "googlenet"])
def test_torchvisions_own_state_dicts(tmp_path: Path, name: str) -> None:
    options = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    state = models.get_model(name, weights=None, num_classes=12, **options).state_dict()
    torch.save(state, tmp_path / f"{name}.pth")
    found = load_model(str(tmp_path / f"{name}.pth"))
    assert (found.arch, found.shape, found.classes) == (f"torchvision:{name}", (3, 224, 224), 12)


def test_torchvisions_resnet_and_the_cifar_stem_are_told_apart(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None, num_classes=12).state_dict(), tmp_path / "resnet18.pt")
    found = load_model(str(tmp_path / "resnet18.pt"))
    assert (found.arch, found.shape, found.classes) == ("torchvision:resnet18", (3, 224, 224), 12)
    with pytest.raises(ValueError, match=r"does not fit resnet18: .*closest: torchvision:resnet18 \(100 % of tensors"):
        load_model(str(tmp_path / "resnet18.pt"), arch="resnet18")


def test_wide_resnet_under_other_names(tmp_path: Path) -> None:
    state = fresh("wrn16_1")
    theirs = {
        key.replace("block", "layer").replace("fc.", "linear."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": theirs}, tmp_path / "cifar10-WRN-16-1.th")
    found = load_model(str(tmp_path / "cifar10-WRN-16-1.th"))
    assert found.arch == "wrn16_1"
    assert torch.equal(found.network.get_parameter("fc.weight"), state["fc.weight"])


def test_the_files_own_word_on_its_architecture(tmp_path: Path) -> None:
    torch.save({"arch": "resnet20", "state_dict": fresh("resnet20")}, tmp_path / "checkpoint.pt")
    found = load_model(str(tmp_path / "checkpoint.pt"))
    assert found.arch == "resnet20"
    assert found.choices[0] == "architecture: resnet20 (from the checkpoint)"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_a_config(tmp_path: Path, file: str) -> None:
    state = fresh("resnet8")
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    (tmp_path / "config.json").write_text('{"architecture": "resnet8", "num_classes": 10}')
    found = load_model(tmp_path)
    assert (found.arch, found.choices[0]) == ("resnet8", "architecture: resnet8 (from config.json beside it)")
    torch.save(fresh("resnet20"), tmp_path / "resnet20.pt")
    assert load_model(tmp_path / "resnet20.pt").choices[0] == "architecture: resnet20 (from the file's name)"


def test_a_folder_of_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(models.resnet18(weights=None, num_classes=12).state_dict(), tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text('{"architecture": "resnet18", "pretrained_cfg": {"tag": "a1_in1k"}}')
    found = load_model(tmp_path)
    assert (found.arch, found.shape, found.classes) == ("torchvision:resnet18", (3, 224, 224), 12)
    monkeypatch.setitem(sys.modules, "timm", None)
    config.write_text('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}')
    with pytest.raises(ValueError, match=r"pip install 'datafree\[timm\]'"):
        load_model(tmp_path)


def test_a_folder_of_timms_that_only_timm_knows(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("resnet10t", num_classes=12).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet10t", "pretrained_cfg": {}}')
    found = load_model(tmp_path)
    assert (found.arch, found.shape[0] if found.shape else 0, found.classes) == ("timm:resnet10t", 3, 12)


def test_half_precision_and_missing_counters(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in fresh("resnet8").items() if "num_batches" not in key}
    torch.save(state, tmp_path / "resnet8.pt")
    network = load_model(str(tmp_path / "resnet8.pt")).network
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert torch.equal(network.get_parameter("linear.weight"), state["linear.weight"].float())


def ours(path: Path, arch: str, **changes: object) -> None:
    facts = {"arch": arch, "shape": [1, 8, 8], "classes": 10, "mean": [0.3], "std": [0.4], "data": "digits"} | changes
    save_file(fresh("lenet5", (1, 8, 8)), path, metadata={"datafree": json.dumps(facts)})


def test_our_own_file_and_folder(tmp_path: Path) -> None:
    ours(tmp_path / "student.safetensors", "lenet5")
    for source in (tmp_path, tmp_path / "student.safetensors"):
        found = load_model(str(source))
        assert (found.arch, found.shape, found.classes) == ("lenet5", (1, 8, 8), 10)
        assert (found.mean, found.std, found.data) == ((0.3,), (0.4,), "digits")
        assert found.source == str(source)
        assert found.choices == ("architecture: lenet5 (from the checkpoint)",)
        assert found.sha256 is not None
        assert len(found.sha256) == 64


def test_a_file_that_only_the_checkpoint_names_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "nets.py"
    trap.write_text("raise SystemExit('run')\n")
    ours(tmp_path / "model.safetensors", f"{trap}:make")
    with pytest.raises(ValueError, match="give --arch again"):
        load_model(str(tmp_path))
    ours(tmp_path / "model.safetensors", "resnet9000")
    with pytest.raises(ValueError, match="unknown network 'resnet9000'"):
        load_model(str(tmp_path))


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    torch.save(fresh("resnet8"), tmp_path / "resnet8.pt")
    before = torch.get_rng_state()
    load_model(str(tmp_path / "resnet8.pt"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_of_the_users_own_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
    )
    torch.save({"1.weight": torch.ones(3, 4), "1.bias": torch.ones(3)}, tmp_path / "x.pt")
    before = torch.get_rng_state()
    load_model(str(tmp_path / "x.pt"), arch=f"{tmp_path}/nets.py:make", shape=(1, 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_misfit_names_keys_and_the_closest_network(tmp_path: Path) -> None:
    state = fresh("resnet20")
    state["extra.weight"] = torch.ones(3)
    state["conv1.weight"] = torch.ones(16, 3, 5, 5)
    del state["bn1.bias"]
    torch.save(state, tmp_path / "resnet32.pt")
    with pytest.raises(ValueError, match="resnet32") as caught:
        load_model(str(tmp_path / "resnet32.pt"))
    text = str(caught.value)
    assert "\n" not in text
    assert "missing bn1.bias, layer1.3.conv1.weight, layer1.3.bn1.weight and " in text
    assert "unexpected extra.weight;" in text
    assert "misshapen conv1.weight (16, 3, 5, 5) instead of (16, 3, 3, 3);" in text
    # ResNet-20 has 19 convolutions, 4 tensors for each of 19 batch norms, 2 of the linear layer: 97; with the extra one
    # 98 names, of which 95 agree: 96.9 %.
    assert "closest: resnet20 (96 % of tensors match)" in text


def test_no_architecture_known(tmp_path: Path) -> None:
    torch.save(fresh("resnet20"), tmp_path / "best.pt")
    with pytest.raises(ValueError, match="neither the file nor its name") as caught:
        load_model(str(tmp_path / "best.pt"))
    text = str(caught.value)
    assert all(name in text for name in (*MODELS, "file.py:function"))
    assert "says the architecture; closest: resnet20 (100 % of tensors match); name it with --arch: " in text
    assert load_model(str(tmp_path / "best.pt"), arch="resnet20").choices[0].startswith("classes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 100}, r"has 10 classes \(read off linear.weight\), not 100"),
        ({"shape": (1, 28, 28)}, r"takes 3 channels \(read off conv1.weight\), not 1: give data of as many"),
        ({"arch": "resnet21"}, "unknown network 'resnet21'; closest: "),
        ({"arch": "resnet56"}, "does not fit resnet56: missing"),
    ],
)
def test_contradictions(tmp_path: Path, options: dict[str, object], message: str) -> None:
    torch.save(fresh("resnet8"), tmp_path / "resnet8.pt")
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "resnet8.pt"), **options)  # type: ignore[arg-type]


def test_missing_file_that_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="for pretrained weights say torchvision:resnet34"):
        load_model("resnet34")
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.pt"):
        load_model(str(tmp_path / "x.pt"))


# What users bring: layouts of four public releases that are not the zoo's.
USER_FILE = """
import torch
from torch import nn
from torch.nn import functional as F


class TwoConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = F.max_pool2d(conv(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        change = i != o or stride != 1
        parts = (nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if change else ()
        self.shortcut = nn.Sequential(*parts)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)


class WideStem(nn.Module):
    def __init__(self, n=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        i = 64
        for k, o in enumerate((16, 32, 64), start=1):
            blocks = [Block(i, o, 1 if k == 1 else 2)] + [Block(o, o, 1) for _ in range(n - 1)]
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
            i = o
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x).relu()
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def two_convolutions():
    return TwoConvolutions()


def wide_stem_8():
    return WideStem()


def strided():
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )


def odd():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 5 * 7, 9))
"""


@pytest.mark.parametrize(
    ("function", "count", "shape"),
    [
        ("two_convolutions", 648_226, (1, 28, 28)),
        ("wide_stem_8", 89_322, (3, 32, 32)),
        ("strided", 166_406, (1, 28, 28)),
        ("odd", 4 * 4 + 9 * 141, None),
    ],
)
def test_architectures_of_the_users_own(
    tmp_path: Path, function: str, count: int, shape: tuple[int, int, int] | None
) -> None:
    from datafree.models.build import run_file

    (tmp_path / "nets.py").write_text(USER_FILE)
    arch = f"{tmp_path}/nets.py:{function}"
    made = run_file(arch)
    assert sum(value.numel() for value in made.parameters()) == count
    torch.save(made.state_dict(), tmp_path / "teacher.pt")
    found = load_model(str(tmp_path / "teacher.pt"), arch=arch)
    assert (found.arch, found.shape) == (arch, shape)
    assert found.classes == (9 if shape is None else 10)
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in found.network.state_dict().items())
    if shape is None:  # no usual size fits; the user says it
        assert load_model(str(tmp_path / "teacher.pt"), arch=arch, shape=(3, 5, 7)).shape == (3, 5, 7)
        with pytest.raises(ValueError, match=r"gives no logits .* for one image of 3x32x32"):
            load_model(str(tmp_path / "teacher.pt"), arch=arch, shape=RGB)


def test_user_file_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(USER_FILE)
    torch.save(fresh("resnet8"), tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match=r"nets.py:strided: missing 0.weight, .*closest: resnet8 \(100 %"):
        load_model(str(tmp_path / "teacher.pt"), arch=f"{tmp_path}/nets.py:strided")
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match="no known network is close"):
        load_model(str(tmp_path / "teacher.pt"), arch=f"{tmp_path}/nets.py:strided")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.Linear(9, 2))\n"
    )
    with pytest.raises(ValueError, match="has 2 classes"):
        load_model(str(tmp_path / "teacher.pt"), arch=f"{tmp_path}/nets.py:f", classes=3, shape=(1, 3, 3))


@pytest.mark.parametrize(
    ("prefix", "given"), [("model.", False), ("backbone.", True), ("net.model.", True), ("module.encoder.", False)]
)
def test_a_prefix_that_all_names_share_is_left_out(tmp_path: Path, prefix: str, given: bool) -> None:
    state = fresh("resnet8")
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "resnet8.pt")
    found = load_model(str(tmp_path / "resnet8.pt"), arch="resnet8" if given else None)
    assert all(torch.equal(value, state[key]) for key, value in found.network.state_dict().items())
    assert f"names of the tensors: without {prefix.removeprefix('module.')!r}, which all begin with" in found.choices


def test_a_prefix_is_the_networks_own_where_that_fits(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def own():\n    return nn.Sequential(bare())\n"
        "def bare():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    torch.save({"0.1.weight": torch.ones(3, 12), "0.1.bias": torch.ones(3)}, tmp_path / "x.pt")
    arch, images = f"{tmp_path}/nets.py", torch.rand(2, 3, 2, 2)
    own, bare = (load_model(str(tmp_path / "x.pt"), arch=f"{arch}:{name}", shape=(3, 2, 2)) for name in ("own", "bare"))
    assert own.choices == (f"classes: 3 (outputs of {arch}:own)",)
    assert bare.choices[1] == "names of the tensors: without '0.', which all begin with"
    assert torch.equal(own.network(images), bare.network(images))


@pytest.mark.parametrize(
    ("prefix", "beside", "given"),
    [
        ("model.", ("criterion.weight",), False),
        ("net.", ("acc.total", "steps"), True),
        ("model.net.", ("criterion.weight",), False),
        ("all.module.", ("all.loss.weight",), False),
        ("1.", ("0.mean", "0.std"), False),
    ],
)
def test_tensors_beside_a_network_that_fits_are_left_out(
    tmp_path: Path, prefix: str, beside: tuple[str, ...], given: bool
) -> None:
    state = fresh("resnet8")
    others = {name: torch.ones(3) for name in beside}
    torch.save({"state_dict": others | {f"{prefix}{key}": state[key] for key in state}}, tmp_path / "resnet8_h.ckpt")
    found = load_model(str(tmp_path / "resnet8_h.ckpt"), arch="resnet8" if given else None)
    assert all(torch.equal(value, state[key]) for key, value in found.network.state_dict().items())
    assert f"tensors left out: {', '.join(beside)} (what remains fits exactly)" in found.choices
    assert f"names of the tensors: without {prefix!r}, which all others begin with" in found.choices


def test_tensors_beside_a_network_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def bare():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = nn.Linear(12, 3)\n"
        "    def forward(self, x):\n        return self.net(x.flatten(1))\n"
    )
    for prefix, arch in (("net.1", "bare"), ("net", "Own")):  # one to be left out, and the network's own
        linear = {f"{prefix}.weight": torch.ones(3, 12), f"{prefix}.bias": torch.ones(3)}
        torch.save(linear | {"acc": torch.ones(1)}, tmp_path / "x.pt")
        found = load_model(str(tmp_path / "x.pt"), arch=f"{tmp_path}/nets.py:{arch}", shape=(3, 2, 2))
        assert "tensors left out: acc (what remains fits exactly)" in found.choices
        assert torch.equal(found.network(torch.ones(1, 3, 2, 2)), torch.full((1, 3), 13.0))


def test_nothing_is_left_out_where_the_rest_does_not_fit(tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in fresh("resnet8").items()}
    del state["model.bn1.bias"]
    torch.save(state | {"criterion.weight": torch.ones(3)}, tmp_path / "resnet8.pt")
    with pytest.raises(ValueError, match=r"does not fit resnet8: missing .*unexpected "):
        load_model(str(tmp_path / "resnet8.pt"))


def test_a_misfit_below_a_prefix_is_told_without_it(tmp_path: Path) -> None:
    wrapped = {f"model.{key}": value for key, value in fresh("resnet8").items()}
    torch.save(wrapped, tmp_path / "resnet20.pt")
    with pytest.raises(ValueError, match=r"missing layer1.1.conv1.weight, .*closest: resnet8 \(100 %"):
        load_model(str(tmp_path / "resnet20.pt"))


def test_a_path_is_a_source_and_a_state_dict_is_none(tmp_path: Path) -> None:
    torch.save(fresh("resnet8"), tmp_path / "resnet8.pt")
    found = load_model(tmp_path / "resnet8.pt")
    assert found.source == str(tmp_path / "resnet8.pt")
    with pytest.raises(ValueError, match=r"^a dict is no checkpoint: give a file, or the torch.nn.Module itself"):
        load_model({})  # type: ignore[arg-type]


def test_a_network_that_returns_more_than_logits(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(12, 3)\n"
        "    def forward(self, x):\n"
        "        return self.last(x.flatten(1)), x\n"
    )
    torch.save({"last.weight": torch.ones(3, 12), "last.bias": torch.ones(3)}, tmp_path / "x.pt")
    arch = f"{tmp_path}/nets.py:Two"
    with pytest.raises(
        ValueError, match=r"it returns tuple, not a tensor: its forward must return the logits"
    ) as caught:
        load_model(str(tmp_path / "x.pt"), arch=arch, shape=(3, 2, 2))
    with pytest.raises(ValueError, match=r"its forward must return the logits") as student:
        build_model(arch, shape=(3, 2, 2), classes=3)
    assert str(caught.value) == str(student.value)


def test_a_folder_says_its_normalisation(tmp_path: Path) -> None:
    save_file(fresh("resnet8"), tmp_path / "model.safetensors")
    config = {"architecture": "resnet8", "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_model(tmp_path)
    assert (found.mean, found.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    said = "normalisation: mean 0.4,0.5,0.6 / std 0.1,0.2,0.3 (from the configuration beside it)"
    assert load_teacher(tmp_path, shape=(3, 32, 32)).choices[-1] == said


@pytest.mark.slow
def test_a_network_of_a_known_name_is_loaded_without_torchs_compiler(tmp_path: Path) -> None:
    """Its 900 modules cost a second of every command that only reads a network."""
    torch.save(build_model("resnet20", shape=(3, 32, 32), classes=10).state_dict(), tmp_path / "resnet20.pt")
    code = (
        "import sys; from datafree.models import load_model; load_model(sys.argv[1], arch='resnet20');"
        "print(*sorted({'torch', 'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "resnet20.pt")], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["torch"]


def test_drafts_have_the_shapes_and_leave_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    for name in ("resnet20", "vgg11", "convnet3", "torchvision:mobilenet_v2"):
        draft = build_empty(name, shape=(3, 64, 64), classes=7)
        assert all(tensor.is_meta for tensor in draft.state_dict().values())
        assert shapes_of(draft.state_dict()) == shapes_of(build_model(name, shape=(3, 64, 64), classes=7).state_dict())
        torch.set_rng_state(before)
        build_empty(name, shape=(3, 64, 64), classes=7)
        assert torch.equal(torch.get_rng_state(), before)
