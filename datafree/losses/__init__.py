"""Published terms as pure functions of tensors, one a function, unweighted."""

from datafree.losses.adversarial import decision_mask, disagreement
from datafree.losses.knowledge import CRITERIA, kl, kl_per_sample, l1, mse
from datafree.losses.priors import activation, class_balance, onehot
from datafree.losses.statistics import Statistics, batch_norm_statistics, mix_statistics, update_average

__all__ = [
    "CRITERIA",
    "Statistics",
    "activation",
    "batch_norm_statistics",
    "class_balance",
    "decision_mask",
    "disagreement",
    "kl",
    "kl_per_sample",
    "l1",
    "mix_statistics",
    "mse",
    "onehot",
    "update_average",
]
