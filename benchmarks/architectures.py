"""Third-party teachers' networks that the package's own do not fit, for `--arch benchmarks/architectures.py:NAME`.

Layer by layer after the parameter names and shapes in the checkpoints, so that those load as they are.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet5_advertorch() -> nn.Module:
    """BorealisAI/advertorch's LeNet-5 for 1×28×28: two convolutions of 3×3, max pooling, two linear layers."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 32, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("linear1", nn.Linear(7 * 7 * 64, 200)),
        ("relu3", nn.ReLU()),
        ("linear2", nn.Linear(200, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def cnn_chyun() -> nn.Module:
    """ch-yun-01's CNN for 1×28×28: two strided convolutions of 4×4, two linear layers, no batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
