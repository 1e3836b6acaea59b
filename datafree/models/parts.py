"""What several networks of the zoo share: He initialisation and the check of the image size."""

from __future__ import annotations

from torch import nn


def he_init(network: nn.Module) -> None:
    """Initialise all convolutions after He et al. 2015 (arXiv:1502.01852), eq. 14 (normal, fan out), biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_size(name: str, shape: tuple[int, int, int], smallest: int) -> None:
    """Raise ValueError where an image side is below ``smallest`` pixels."""
    _, height, width = shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{name} needs images of at least {smallest}x{smallest} pixels, not {height}x{width}: take another network"
        )
