"""`evaluate` on files of others, which say neither architecture nor normalisation."""

from __future__ import annotations

import torch

import datafree
from datafree.data import load_data
from datafree.models import build_model


def test_the_normalisation_of_a_foreign_file_can_be_given(tmp_path):
    torch.manual_seed(0)
    network = build_model("lenet5", shape=(1, 8, 8), classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    data = load_data("digits")
    assert data.x_test is not None
    # By hand: what the network says of images shifted and scaled as told.
    with torch.no_grad():
        answers = [network((data.x_test / 255 - mean) / std).argmax(1) for mean, std in ((0.1, 0.4), (0.6, 0.2))]
    wanted = [(answer == data.y_test).float().mean().item() for answer in answers]
    assert wanted[0] != wanted[1]
    file = str(tmp_path / "net.pt")
    for (mean, std), accuracy in zip(((0.1, 0.4), (0.6, 0.2)), wanted, strict=True):
        scores = datafree.evaluate(file, "digits", arch="lenet5", mean=(mean,), std=(std,))
        assert abs(scores["accuracy"] - accuracy) < 1e-6
    both = datafree.evaluate(
        file, "digits", arch="lenet5", mean=(0.1,), std=(0.4,),
        teacher=file, teacher_arch="lenet5", teacher_mean=(0.6,), teacher_std=(0.2,),
    )  # fmt: skip
    assert abs(both["teacher_accuracy"] - wanted[1]) < 1e-6
    assert abs(both["agreement"] - (answers[0] == answers[1]).float().mean().item()) < 1e-6
