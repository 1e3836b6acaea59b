"""VGG-11, Simonyan and Zisserman 2015 (arXiv:1409.1556), table 1, A; with batch norm and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from datafree.models.parts import he_init

# Channels of the 3x3 convolutions, stage by stage; 2x2 max pooling after each stage.
STAGES: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Convolution, batch norm, ReLU as often as ``STAGES`` says; global average; one linear layer.

    Poolings round up, so that every size down to 1x1 is taken (32x32 ends at 1x1 either way).
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage in STAGES:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def vgg11(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-11 with batch norm: 9,231,114 parameters for 3 channels and 10 classes. Any image size."""
    return VGG(channels=shape[0], classes=classes)
