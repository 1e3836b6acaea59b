"""Pretrained networks: only from the caches, unless a download is allowed. Nothing here touches the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision import models

from datafree.models import load_model
from datafree.models import pretrained as room


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "checkpoints"


def test_weights_that_are_not_there(cache: Path) -> None:
    expected = cache / "resnet18-f37072fd.pth"
    with pytest.raises(ValueError, match="no weights of torchvision:resnet18") as caught:
        load_model("torchvision:resnet18")
    assert str(expected) in str(caught.value)
    assert "--download" in str(caught.value)


def test_weights_in_the_cache(cache: Path) -> None:
    cache.mkdir()
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, cache / "resnet18-f37072fd.pth")
    found = load_model("torchvision:resnet18")
    assert (found.arch, found.shape, found.classes) == ("torchvision:resnet18", (3, 224, 224), 1000)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(found.network.get_parameter("fc.bias"), state["fc.bias"])
    assert found.choices == ("weights: ResNet18_Weights.IMAGENET1K_V1 (torchvision's default)",)
    assert load_model("torchvision:resnet18", shape=(3, 96, 64)).shape == (3, 96, 64)
    for options, message in (
        ({"classes": 10}, "has 1000 classes"),
        ({"shape": (1, 28, 28)}, "takes 3 channels, not 1: give data"),
        ({"arch": "resnet18"}, "has its own architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model("torchvision:resnet18", **options)
    torch.save({"fc.bias": state["fc.bias"]}, cache / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="is not what torchvision has under that name"):
        load_model("torchvision:resnet18")


def test_download_only_when_allowed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def serve(url: str, file: str, prefix: str | None, *, progress: bool) -> None:
        asked.append((url, file, prefix))
        torch.save(models.squeezenet1_1(weights=None).state_dict(), file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", serve)
    found = load_model("torchvision:squeezenet1_1", download=True)
    assert found.classes == 1000
    with pytest.raises(ValueError, match=r"^torchvision:squeezenet1_1 cannot take images of 3x8x8: "):
        load_model("torchvision:squeezenet1_1", shape=(3, 8, 8))
    file = cache / "squeezenet1_1-b8a52dc0.pth"
    assert asked == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", str(file), "b8a52dc0")]


def test_download_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"could not be downloaded from https://.*: no route to host"):
        load_model("torchvision:resnet18", download=True)


def test_unknown_torchvision_name() -> None:
    with pytest.raises(ValueError, match="unknown network 'torchvision:resnet19'; closest: "):
        load_model("torchvision:resnet19")


def test_googlenet_gets_the_weights_own_normalisation(cache: Path) -> None:
    cache.mkdir()
    state = models.googlenet(weights=None, init_weights=False).state_dict()
    assert any(key.startswith("aux1.") for key in state)
    torch.save(state, cache / "googlenet-1378be20.pth")
    network = load_model("torchvision:googlenet").network
    assert isinstance(network, models.GoogLeNet)
    assert network.transform_input
    assert not network.training


def test_timm_cache_names(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    plain = SimpleNamespace(hf_hub_id=None, url="https://host/a/net-12345678.pth")
    assert room.timm_file(plain) == cache / "net-12345678.pth"
    hub = SimpleNamespace(hf_hub_id="timm/absent.tag", hf_hub_filename=None)
    assert room.timm_file(hub).parts[-4:] == ("models--timm--absent.tag", "snapshots", "main", "model.safetensors")


@pytest.mark.slow
def test_timm_weights_that_are_not_there_and_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no weights of timm:resnet10t on this machine"):
        load_model("timm:resnet10t")
    file = tmp_path / "model.safetensors"
    from safetensors.torch import save_file

    state = timm.create_model("resnet10t").state_dict()
    save_file(state, file)
    monkeypatch.setattr(room, "timm_file", lambda cfg: file)
    found = load_model("timm:resnet10t")
    assert (found.arch, found.classes, found.shape) == ("timm:resnet10t", 1000, (3, 176, 176))
    assert torch.equal(found.network.get_parameter("fc.bias"), state["fc.bias"])
