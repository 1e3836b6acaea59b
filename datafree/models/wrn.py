"""Wide residual networks, Zagoruyko and Komodakis 2016 (arXiv:1605.07146): WRN-depth-width. Any image size.

Names are the common ones (``conv1, block1.layer.0.bn1, ..., block2.layer.0.convShortcut, ..., bn1, fc``).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from datafree.models.parts import he_init


class Block(nn.Module):
    """Pre-activation block. Where the channels change, a 1x1 convolution of the activated input is the shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.bn1(maps))
        shortcut = maps if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out


class Stage(nn.Module):
    """``count`` blocks; the first has the stride. A module of its own only for the name ``layer`` in checkpoints."""

    def __init__(self, inputs: int, outputs: int, *, count: int, stride: int) -> None:
        super().__init__()
        blocks = [Block(inputs, outputs, stride=stride)]
        blocks += [Block(outputs, outputs, stride=1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.layer(maps)
        return out


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of 16, 32, 64 times ``width``, global average, one linear layer."""

    def __init__(self, *, channels: int, classes: int, depth: int, width: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, count=count, stride=1)
        self.block2 = Stage(16 * width, 32 * width, count=count, stride=2)
        self.block3 = Stage(32 * width, 64 * width, count=count, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        he_init(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(F.relu(self.bn1(maps)).mean((2, 3)))
        return logits


def wrn10_1(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-10-1: 77,850 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=10, width=1)


def wrn10_2(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-10-2: 303,706 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=10, width=2)


def wrn16_1(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-16-1: 175,066 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=16, width=1)


def wrn16_2(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-16-2: 691,674 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=16, width=2)


def wrn28_1(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-28-1: 369,498 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=28, width=1)


def wrn28_2(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-28-2: 1,467,610 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=28, width=2)


def wrn40_1(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-40-1: 563,930 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=40, width=1)


def wrn40_2(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """WRN-40-2: 2,243,546 parameters for 3 channels and 10 classes."""
    return WideResNet(channels=shape[0], classes=classes, depth=40, width=2)
