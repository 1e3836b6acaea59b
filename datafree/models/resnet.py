"""Residual networks for small images: He et al. 2016 (arXiv:1512.03385), section 4.2, and ResNet-18/34 with a 3x3 stem.

Names are the common ones (``conv1, bn1, layer1.0.conv1, ..., linear``), so third-party weights load. Any image size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from datafree.models.parts import he_init


class Block(nn.Module):
    """Basic block: two 3x3 convolutions with batch norm, a shortcut, ReLU after the addition.

    Where the shape changes, the shortcut is a 1x1 convolution with batch norm (``project``), else option A of the
    paper: every second pixel, new channels zero, without parameters.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        self.stride = stride
        self.new_channels = 0 if project else outputs - inputs
        if project and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        if self.new_channels:
            before = self.new_channels // 2
            # A pooling window of one pixel thins as slices do, but its gradient stays channels last (10 % of a step).
            thinned = F.avg_pool2d(maps, 1, self.stride)
            return F.relu(out + F.pad(thinned, (0, 0, 0, 0, before, self.new_channels - before)))
        return F.relu(out + self.shortcut(maps))


class ResNet(nn.Module):
    """A 3x3 stem, three or four stages of basic blocks (stride 1, then 2 each), global average, one linear layer."""

    def __init__(
        self, *, channels: int, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...], project: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        stages = []
        for index, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = [Block(inputs, outputs, stride=1 if index == 0 else 2, project=project)]
            stage += [Block(outputs, outputs, stride=1, project=project) for _ in range(count - 1)]
            stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages[:3]
        self.layer4 = stages[3] if len(stages) == 4 else nn.Sequential()  # an empty one passes its input on
        self.linear = nn.Linear(widths[-1], classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


def _section_4_2(depth: int, shape: tuple[int, int, int], classes: int) -> nn.Module:
    count = (depth - 2) // 6
    return ResNet(channels=shape[0], classes=classes, widths=(16, 32, 64), blocks=(count, count, count), project=False)


def resnet8(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-8 of section 4.2 (one block a stage): 75,290 parameters for 3 channels and 10 classes."""
    return _section_4_2(8, shape, classes)


def resnet20(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-20 of section 4.2: 269,722 parameters for 3 channels and 10 classes."""
    return _section_4_2(20, shape, classes)


def resnet32(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-32 of section 4.2: 464,154 parameters for 3 channels and 10 classes."""
    return _section_4_2(32, shape, classes)


def resnet56(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-56 of section 4.2: 853,018 parameters for 3 channels and 10 classes."""
    return _section_4_2(56, shape, classes)


def resnet18(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-18 (table 1) with a 3x3 stem, no max pooling: 11,173,962 parameters for 3 channels and 10 classes."""
    return ResNet(channels=shape[0], classes=classes, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), project=True)


def resnet34(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-34 (table 1) with a 3x3 stem, no max pooling: 21,282,122 parameters for 3 channels and 10 classes."""
    return ResNet(channels=shape[0], classes=classes, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3), project=True)
