"""A black box's answers as logits, and the divergence of a memory's codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from datafree import losses


def test_logits_and_their_probabilities_come_to_the_same() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64) * 3
    wanted = np.log(np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True))
    wanted -= wanted.mean(1, keepdims=True)
    for answers, probabilities in ((logits, False), (logits + 7, False), (logits.softmax(1), True)):
        np.testing.assert_allclose(losses.centred_logits(answers, probabilities).numpy(), wanted, atol=1e-12)


def test_centred_logits_are_the_logits_less_their_mean() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(losses.centred_logits(logits), torch.tensor([[-2.0, -1.0, 3.0]]))


def test_a_probability_that_was_rounded_away_stays_finite() -> None:
    found = losses.centred_logits(torch.tensor([[1.0, 0.0, 0.0]]), probabilities=True)
    low = math.log(1e-12)
    torch.testing.assert_close(found, torch.tensor([[-2 / 3 * low, low / 3, low / 3]]))


def test_half_types_are_raised() -> None:
    assert losses.centred_logits(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert losses.normal_divergence(*torch.randn(2, 2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_divergence_from_the_standard_normal_is_torchs() -> None:
    mean, log_variance = torch.randn(2, 4, 3, dtype=torch.float64)
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    normal = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = torch.distributions.kl_divergence(ours, normal).sum(1).mean().item()
    assert losses.normal_divergence(mean, log_variance).item() == pytest.approx(wanted, rel=1e-12)
    assert losses.normal_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_gradients() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses.centred_logits, (x,))
    assert torch.autograd.gradcheck(losses.normal_divergence, (x, y))
