"""Published terms as pure functions of tensors, one a function, unweighted."""

from datafree.losses.adversarial import PER_SAMPLE, decision_mask, disagreement
from datafree.losses.answers import centred_logits
from datafree.losses.contrast import info_nce
from datafree.losses.embeddings import (
    attention_maps,
    attention_matching,
    characteristic_function_distance,
    class_means,
    discrimination,
    layer_alignment,
    mean_embedding,
)
from datafree.losses.gradients import gradient_distance
from datafree.losses.kernels import kernel_ridge_prediction, kernel_ridge_regression, label_margin
from datafree.losses.knowledge import CRITERIA, attention_transfer, js_per_sample, kl, kl_per_sample, l1, mse
from datafree.losses.moments import squared_moments
from datafree.losses.patches import patch_similarity_entropy
from datafree.losses.priors import activation, class_balance, image_norm, onehot, total_variation
from datafree.losses.statistics import Statistics, batch_norm_statistics, mix_statistics, update_average
from datafree.losses.trajectories import normalised_distance, soft_cross_entropy, tesla_image_gradient_vector
from datafree.losses.variational import normal_divergence

__all__ = [
    "CRITERIA",
    "PER_SAMPLE",
    "Statistics",
    "activation",
    "attention_maps",
    "attention_matching",
    "attention_transfer",
    "batch_norm_statistics",
    "centred_logits",
    "characteristic_function_distance",
    "class_balance",
    "class_means",
    "decision_mask",
    "disagreement",
    "discrimination",
    "gradient_distance",
    "image_norm",
    "info_nce",
    "js_per_sample",
    "kernel_ridge_prediction",
    "kernel_ridge_regression",
    "kl",
    "kl_per_sample",
    "l1",
    "label_margin",
    "layer_alignment",
    "mean_embedding",
    "mix_statistics",
    "mse",
    "normal_divergence",
    "normalised_distance",
    "onehot",
    "patch_similarity_entropy",
    "soft_cross_entropy",
    "squared_moments",
    "tesla_image_gradient_vector",
    "total_variation",
    "update_average",
]
