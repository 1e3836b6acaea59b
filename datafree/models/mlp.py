"""A multilayer perceptron with two hidden layers of 128 units (the one of the condensation literature)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Flatten (channel, row, column order), then three linear layers with ReLU between them."""

    def __init__(self, *, inputs: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(inputs, width)
        self.fc_2 = nn.Linear(width, width)
        self.fc_3 = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.fc_1(images.flatten(1)))
        logits: Tensor = self.fc_3(F.relu(self.fc_2(hidden)))
        return logits


def mlp(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """MLP of 128-128 hidden units: 118,282 parameters for 1x28x28 and 10 classes. Any image size."""
    channels, height, width = shape
    return MLP(inputs=channels * height * width, classes=classes)
