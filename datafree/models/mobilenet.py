"""MobileNetV2, Sandler et al. 2018 (arXiv:1801.04381), table 2. Names are torchvision's."""

from __future__ import annotations

from torch import Tensor, nn

from datafree.models.parts import he_init

# Table 2: expansion, channels, blocks, stride of the first block.
STAGES: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, 3x3 depthwise, linear 1x1 projection; identity added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [_conv_bn(inputs, hidden, kernel=1)] if expansion > 1 else []
        layers.append(_conv_bn(hidden, hidden, kernel=3, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.conv(maps)
        return maps + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, the stages of table 2, a 1x1 convolution to 1280 channels, global average, one linear layer.

    With ``small`` the stem and the stage of 24 channels have stride 1 (8 in all instead of 32), as is usual on CIFAR.
    """

    def __init__(self, *, channels: int, classes: int, small: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn(channels, 32, kernel=3, stride=1 if small else 2)]
        inputs = 32
        for expansion, outputs, count, first_stride in STAGES:
            for index in range(count):
                stride = first_stride if index == 0 and not (small and outputs == 24) else 1
                layers.append(Block(inputs, outputs, expansion=expansion, stride=stride))
                inputs = outputs
        layers.append(_conv_bn(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        # The identity stands where torchvision has its dropout, for the name ``classifier.1``. Dropout is left out: a
        # student's loss would depend on draws that differ between one process and several.
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, classes))
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def mobilenetv2(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """MobileNetV2: 2,236,682 parameters for 3 channels and 10 classes. Any image size.

    Images with a side below 96 pixels get the strides usual on CIFAR, larger ones those of the paper.
    """
    channels, height, width = shape
    return MobileNetV2(channels=channels, classes=classes, small=min(height, width) < 96)
