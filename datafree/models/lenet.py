"""LeNet-5 (LeCun et al. 1998) as today's releases write it: ReLU and max pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from datafree.models.parts import check_size


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, then three linear layers.

    ``widths`` are the channels of the two convolutions and the units of the first two linear layers. The original takes
    32x32 pixels. Smaller images get a padding of 2 in the first convolution, so 28x28 gives the original's 5x5 map;
    below 16 pixels the second convolution is padded by 2 as well (8x8 gives 2x2). Larger or oblong images only change
    the first linear layer's inputs.
    """

    def __init__(self, *, shape: tuple[int, int, int], classes: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        pad1 = 2 if min(height, width) < 32 else 0
        pad2 = 2 if min(height, width) < 16 else 0
        rows, columns = (((side + 2 * pad1 - 4) // 2 + 2 * pad2 - 4) // 2 for side in (height, width))
        self.conv1 = nn.Conv2d(channels, widths[0], 5, padding=pad1)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5, padding=pad2)
        self.fc1 = nn.Linear(widths[1] * rows * columns, widths[2])
        self.fc2 = nn.Linear(widths[2], widths[3])
        self.fc3 = nn.Linear(widths[3], classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        hidden = F.relu(self.fc1(maps.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(hidden)))
        return logits


def lenet5(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5, 6-16-120-84: 61,706 parameters for 1x28x28 and 10 classes. Sizes: see ``LeNet5``."""
    check_size("lenet5", shape, 4)
    return LeNet5(shape=shape, classes=classes, widths=(6, 16, 120, 84))


def lenet5_half(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 with half of every width, 3-8-60-42, the usual student of LeNet-5. At least 4x4 pixels."""
    check_size("lenet5_half", shape, 4)
    return LeNet5(shape=shape, classes=classes, widths=(3, 8, 60, 42))
