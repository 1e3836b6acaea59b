"""A variational autoencoder of images, small enough to stand in for a memory of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAP = 4  # largest side of the map that the code is read off


class Autoencoder(nn.Module):
    """Image (N, C, H, W) -> mean and log-variance of its code (N, latent) -> image of a code.

    The encoder halves the map twice, by 3×3 convolutions with batch norm; the decoder is one of our generators.

    Args:
        decoder: takes (N, latent).
        latent: size of the code.
        shape: (C, H, W).
        width: channels of the encoder's first map; the second has twice as many.

    Source: the memory of PRE (Binici et al. 2022), with strided convolutions for the encoder's shrunk maps.
    """

    def __init__(self, decoder: nn.Module, latent: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
        )
        self.side = (min(MAP, -(-shape[1] // 4)), min(MAP, -(-shape[2] // 4)))
        self.head = nn.Linear(2 * width * self.side[0] * self.side[1], 2 * latent)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of each image's code, (N, latent) twice."""
        features = F.adaptive_avg_pool2d(self.encoder(images), self.side)
        mean, log_variance = self.head(features.flatten(1)).chunk(2, 1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of codes (N, latent)."""
        images: Tensor = self.decoder(codes)
        return images

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images of codes drawn with standard normal noise (N, latent), and the codes' means and log-variances."""
        mean, log_variance = self.encode(images)
        return self.decode(mean + torch.exp(0.5 * log_variance.float()) * noise), mean, log_variance
