"""ZCA whitening: a change of coordinates in which the pixels of the training images are nearly uncorrelated."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from datafree.losses.precision import raised

EPS = 0.1  # that of every run's whitening
_CHUNK = 4096  # images at a time in float64: 100 MB of 3 x 32 x 32


class Whitening(NamedTuple):
    """x -> (x - mean) matrix and back, for images with D = C H W values.

    mean: (D,) mean of the training images, in [0, 1].
    matrix: (D, D), U (S + eps)^(-1/2) U^T of the covariance U S U^T; symmetric.
    inverse: (D, D), U (S + eps)^(1/2) U^T.

    Source: trajectory matching (Cazenavette et al. 2022), release: fitted on images in [0, 1] that are not standardised
    before, for colour images only.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, images: Tensor, eps: float = EPS) -> Whitening:
        """The whitening of training images (N, C, H, W) in [0, 1], computed in float64, given back in their type.

        The covariance is divided by N - 1; `eps` > 0 is added to its eigenvalues. Half types are raised to float32. For
        50,000 images of 3 x 32 x 32 it takes about half a minute on one core, and grows with D^3.

        Raises:
            ValueError: fewer than two images, or eps not greater than 0.
        """
        if len(images) < 2:
            raise ValueError(f"whitening of {len(images)} images: give two or more to fit it to")
        if not eps > 0:
            raise ValueError(f"whitening with eps {eps:g}: give a number greater than 0")
        flat = raised(images.detach()).flatten(1)
        mean = torch.stack([part.double().sum(0) for part in torch.split(flat, _CHUNK)]).sum(0) / len(flat)
        covariance = mean.new_zeros(len(mean), len(mean))
        for part in torch.split(flat, _CHUNK):
            centred = part.double() - mean
            covariance.addmm_(centred.T, centred)
        variance, basis = torch.linalg.eigh(covariance / (len(flat) - 1))
        # A covariance has no negative eigenvalues; rounding gives some of about -1e-16.
        scale = (variance.clamp_min(0) + eps).sqrt()
        matrix, inverse = (basis / scale) @ basis.T, (basis * scale) @ basis.T
        return cls(*(result.to(flat.dtype) for result in (mean, matrix, inverse)))

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1], whitened: same shape, mean about 0, no bounds. Half types come back float32.

        Raises:
            ValueError: images of another size than it was fitted to.
        """
        self._check(images)
        x = raised(images)
        mean, matrix = self.mean.to(x), self.matrix.to(x)
        with torch.autocast(x.device.type, enabled=False):
            return ((x.flatten(1) - mean) @ matrix).reshape(x.shape)

    def invert(self, white: Tensor) -> Tensor:
        """Whitened images (N, C, H, W) as images again, for showing and storing; what leaves [0, 1] is not clipped.

        Raises:
            ValueError: images of another size than it was fitted to.
        """
        self._check(white)
        x = raised(white)
        mean, inverse = self.mean.to(x), self.inverse.to(x)
        with torch.autocast(x.device.type, enabled=False):
            return (x.flatten(1) @ inverse + mean).reshape(x.shape)

    def _check(self, images: Tensor) -> None:
        size = images[0].numel() if len(images) else len(self.mean)
        if size != len(self.mean):
            raise ValueError(f"images of {size} values, whitening of {len(self.mean)}: fit it to images of this size")
