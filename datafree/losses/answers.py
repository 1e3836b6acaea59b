"""What a teacher that only answers questions says, as logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised

LEAST = 1e-12  # a probability that an answer rounds to 0


def centred_logits(answers: Tensor, probabilities: bool = False) -> Tensor:
    """Logits with mean 0 over the classes, (N, C), whose softmax is the answer: log p minus its mean.

    Probabilities tell logits up to a constant a sample, which is chosen here; logits lose theirs, so that both kinds of
    answer come to the same.

    Args:
        answers: (N, C).
        probabilities: the answers are probabilities (in [0, 1], sums 1), not logits. Those below 1e-12 count as that.

    Source: DFME (Truong et al. 2021), sec. 4, "mean" correction.
    """
    logits = raised(answers).clamp_min(LEAST).log() if probabilities else F.log_softmax(raised(answers), dim=1)
    return logits - logits.mean(1, keepdim=True)
