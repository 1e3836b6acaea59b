"""Parts of the methods that invert the teacher one batch at a time: latents that learn, and the best step of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from datafree.parallel import average_gradients, mean_over_processes, world_size
from datafree.synthesis.imaging import Imaging


class Latents:
    """This process's latents of one call, and the steps that they and the generator take on one loss.

    They live for one call, so nothing of them is checkpointed.

    Args:
        imaging: the generator, with its own Adam.
        lr: Adam's rate for the latents (betas 0.5, 0.999, as the generator's); 0: they stay as they were drawn, and a
            step is a plain step of the generator.
    """

    def __init__(self, imaging: Imaging, lr: float) -> None:
        self.imaging = imaging
        self.values = imaging.latents(imaging.batch_size)
        self.optimizer: torch.optim.Adam | None = None
        if lr:
            self.optimizer = torch.optim.Adam([self.values.requires_grad_()], lr=lr, betas=(0.5, 0.999))

    def images(self) -> Tensor:
        """The latents' images (N, C, H, W) with gradients, generator in training mode."""
        self.imaging.generator.train()
        images: Tensor = self.imaging.generator(self.values)
        return images

    def backward(self, terms: Mapping[str, Tensor], others: Iterable[nn.Parameter] = ()) -> Tensor:
        """Gradients of the sum of the (weighted) terms for generator, latents and `others`; returns the sum, ()."""
        loss = torch.stack(list(terms.values())).sum()
        shared = [*self.imaging.generator.parameters(), *others]
        torch.autograd.backward(loss, inputs=[*shared, self.values] if self.optimizer else shared)
        average_gradients(shared)
        if self.values.grad is not None:
            self.values.grad /= world_size()  # of the mean over processes, as the shared ones
        return loss.detach()

    def step(self) -> None:
        """Generator and latents each follow their gradients, which are then gone."""
        for optimizer in (self.imaging.optimizer, self.optimizer):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()


class Best:
    """The tensors of the step with the least loss; nothing waits for the device."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.held: tuple[Tensor, ...] = ()

    def offer(self, loss: Tensor, *tensors: Tensor) -> None:
        """This step's loss () and what to keep of it. All processes take the same step: that of the least mean loss."""
        loss = mean_over_processes(loss.detach())
        found = tuple(tensor.detach() for tensor in tensors)
        if self.loss is None:
            self.loss, self.held = loss, found
            return
        better = loss < self.loss
        self.held = tuple(torch.where(better, new, old) for new, old in zip(found, self.held, strict=True))
        self.loss = torch.where(better, loss, self.loss)
