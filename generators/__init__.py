"""Networks from a latent vector to an image in [0, 1]. They know nothing of the rest of the package."""

from __future__ import annotations

from datafree.generators.convolutional import dcgan, large, small

GENERATORS = {"small": small, "large": large, "dcgan": dcgan}

__all__ = ["GENERATORS", "dcgan", "large", "small"]
