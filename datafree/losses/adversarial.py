"""What a generator maximises: disagreement of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from datafree.losses.knowledge import js_per_sample, kl_per_sample, l1_per_sample
from datafree.losses.precision import raised

PER_SAMPLE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl_per_sample,
    "l1": l1_per_sample,
    "js": js_per_sample,
}


def decision_mask(student: Tensor, teacher: Tensor) -> Tensor:
    """1 where student and teacher decide alike, 0 elsewhere. (N,), no gradient.

    Source: CMI (Fang et al. 2021), eq. 9.
    """
    return (student.argmax(1) == teacher.argmax(1)).to(raised(student).dtype)


def disagreement(student: Tensor, teacher: Tensor, distance: str = "kl", masked: bool = False) -> Tensor:
    """Distance of student and teacher, to be maximised by a generator. Scalar >= 0.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        distance: "kl" is KL(p_t || p_s) at T = 1, "l1" the mean |s - t| over the classes, "js" the Jensen-Shannon
            divergence (KL(p_t || m) + KL(p_s || m)) / 2, m = (p_t + p_s) / 2, which is at most ln 2.
        masked: count only samples that both decide alike (the mean is still over all N), so that images
            already fought over are left alone.

    Raises:
        ValueError: unknown distance.

    Source: DFAD (Fang et al. 2019), eq. 5; masked: CMI (Fang et al. 2021), eq. 9.
    """
    if distance not in PER_SAMPLE:
        raise ValueError(f"unknown distance {distance!r}: take kl, l1 or js")
    per_sample = PER_SAMPLE[distance](student, teacher)
    if masked:
        per_sample = per_sample * decision_mask(student, teacher)
    return per_sample.mean()
