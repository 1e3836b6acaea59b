"""ConvNet-D-W, the network of the condensation literature (Gidaris and Komodakis 2018, arXiv:1804.09458; Zhao et al.
2021, arXiv:2006.05929, appendix): ``depth`` blocks of ``width`` channels."""

from __future__ import annotations

from torch import Tensor, nn

from datafree.models.parts import check_size


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance norm, ReLU, 2x2 average pooling; then flatten and one linear layer.

    Instance norm is written as group norm with one channel a group: statistics of each image and channel, biased
    variance, eps 1e-5, affine. The first convolution has padding 3 for 1x28x28 images, which makes 32x32 of them;
    otherwise padding is 1.
    """

    def __init__(self, *, shape: tuple[int, int, int], classes: int, depth: int, width: int) -> None:
        super().__init__()
        channels, height, columns = shape
        grey_28 = shape == (1, 28, 28)
        layers: list[nn.Module] = []
        inputs = channels
        for index in range(depth):
            padding = 3 if grey_28 and index == 0 else 1
            layers += [nn.Conv2d(inputs, width, 3, padding=padding), nn.GroupNorm(width, width), nn.ReLU()]
            layers.append(nn.AvgPool2d(2))
            height, columns = (height + 2 * padding - 2) // 2, (columns + 2 * padding - 2) // 2
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * columns, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def convnet(*, shape: tuple[int, int, int], classes: int, depth: int = 3, width: int = 128) -> nn.Module:
    """ConvNet-``depth``-``width``. Images have at least 2**depth pixels a side."""
    check_size(f"convnet{depth}", shape, 2**depth)
    return ConvNet(shape=shape, classes=classes, depth=depth, width=width)


def convnet3(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ConvNet-3-128, usual up to 32 px; at least 8x8. 10 classes: 317,706 parameters at 1x28x28, 320,010 at 3x32x32."""
    return convnet(shape=shape, classes=classes, depth=3)


def convnet4(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ConvNet-4-128, usual at 64 px; at least 16x16 pixels."""
    return convnet(shape=shape, classes=classes, depth=4)


def convnet5(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ConvNet-5-128, usual at 128 px; at least 32x32 pixels."""
    return convnet(shape=shape, classes=classes, depth=5)
