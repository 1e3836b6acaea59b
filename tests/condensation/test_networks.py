"""The networks that objectives look through: on a checkpoint's return, and with more processes than classes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from datafree import parallel
from datafree.condensation.datadam import DataDAM, DataDAMConfig
from datafree.condensation.dm import DM, DMConfig
from datafree.condensation.ncfm import NCFM, NCFMConfig
from datafree.condensation.networks import Networks
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.data.augmentation import parse_augmentation
from datafree.domain import make_domain
from datafree.models.convnet import ConvNet
from datafree.teacher import Normalised
from datafree.training import Clock

DOMAIN = make_domain(shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.3,))


def make_setting(device: str = "cpu", **changes: Any) -> Setting:
    """Three classes of six grey 8x8 images, ConvNet-2-4."""
    rng = torch.Generator().manual_seed(1)

    def new_network() -> nn.Module:
        return Normalised(ConvNet(shape=DOMAIN.shape, classes=3, depth=2, width=4), DOMAIN.mean, DOMAIN.std).to(device)

    values: dict[str, Any] = {
        "real": Real(torch.randint(256, (18, 1, 8, 8), generator=rng).byte(), torch.arange(3).repeat_interleave(6), 3),
        "domain": DOMAIN,
        "new_network": new_network,
        "arch": "convnet2",
        "augmentation": parse_augmentation("color_crop", mean=DOMAIN.mean, std=DOMAIN.std),
        "rng": torch.Generator().manual_seed(3),
        "device": torch.device(device),
        "clock": Clock(steps=4),
    }
    return Setting(**{**values, **changes})


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_first_weights_are_read_to_the_device_of_the_run() -> None:
    """Checkpoints are read to the CPU. The meta device, which every machine has, stands for a GPU."""
    networks = Networks(make_setting(nets="trained", net_pool=2, net_steps=1), batch_size=4, keep_initial=True)
    networks.take()
    buffer = io.BytesIO()
    torch.save(networks.state_dict(), buffer)
    buffer.seek(0)
    elsewhere = Networks(make_setting("meta", nets="trained", net_pool=2, net_steps=1), keep_initial=True)
    elsewhere.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    first = elsewhere.initial[elsewhere.current]
    assert {t.device.type for t in first.values()} == {"meta"}
    assert set(first) == set(networks.pool[0].state_dict())
    mixed = elsewhere.between(0.5)  # refuses tensors of two devices
    assert {p.device.type for p in mixed.parameters()} == {"meta"}


METHODS: dict[str, Callable[[Setting], Any]] = {
    "dm": lambda s: DM(s, DMConfig(real_batch=4, cross_entropy=0.1)),
    "datadam": lambda s: DataDAM(s, DataDAMConfig(real_batch=4)),
    "ncfm": lambda s: NCFM(s, NCFMConfig(real_batch=4, frequencies=20)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_process_without_a_class_has_nothing_to_add(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five processes for three classes: terms and gradients add up to those of one, and all draw alike."""
    judge = make_setting().new_network().requires_grad_(False)
    monkeypatch.setattr("datafree.condensation.ncfm.trained_network", lambda setting: judge)
    rng = torch.Generator().manual_seed(2)
    images = torch.rand(6, 1, 8, 8, generator=rng)

    def terms(size: int, rank: int) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        setting, synthetic = make_setting(), Synthetic(images, torch.tensor([0, 0, 1, 2, 2, 2]))
        monkeypatch.setattr(parallel, "world_size", lambda: size)
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        found = METHODS[name](setting).terms(synthetic)
        (gradient,) = torch.autograd.grad(torch.stack(list(found.values())).sum(), synthetic.images)
        return {key: float(term.detach()) for key, term in found.items()}, gradient, setting.rng.get_state()

    whole, gradient, drawn = terms(1, 0)
    parts = [terms(5, rank) for rank in range(5)]
    for key, value in whole.items():
        assert sum(part[0][key] for part in parts) == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(sum(part[1] for part in parts), gradient, rtol=1e-4, atol=1e-6)
    for part in parts[3:]:
        assert set(part[0].values()) == {0.0}
        assert not part[1].any()
    assert all(torch.equal(part[2], drawn) for part in parts)
