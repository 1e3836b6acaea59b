"""What a plan makes of a teacher without batch norm."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datafree import jobs
from datafree.config import TrainConfig
from datafree.jobs.beginnings import inherit
from datafree.models import build_model
from datafree.synthesis import load_method

NETWORKS = """
from torch import nn

def make(*norms):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *norms, nn.Flatten(), nn.Linear(256, 10))

def group():
    return make(nn.GroupNorm(2, 4))

def instance():
    return make(nn.GroupNorm(4, 4))

def plain():
    return make()
"""


def plan(folder: Path, arch: str, method: str, **options: Any) -> dict[str, Any]:
    file = folder / "networks.py"
    file.write_text(NETWORKS)
    norms = {"group": [nn.GroupNorm(2, 4)], "instance": [nn.GroupNorm(4, 4)], "plain": []}[arch]
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *norms, nn.Flatten(), nn.Linear(256, 10))
    torch.save(network.state_dict(), folder / "teacher.pt")
    config = TrainConfig(
        teacher=str(folder / "teacher.pt"), arch=f"{file}:{arch}", data="digits", student="mlp", method=method, steps=2
    )
    common = {f.name for f in fields(TrainConfig)}
    given = {name: options.pop(name) for name in list(options) if name in common}
    return jobs.dry_run(replace(config, **given), **options)


@pytest.mark.parametrize("options", [{}, {"bn": 2.0}])
@pytest.mark.parametrize("method", ["deepinversion", "zeroq", "dfq"])
def test_layers_that_stand_in_are_named_and_the_term_stays(tmp_path: Path, method: str, options: Any) -> None:
    made = plan(tmp_path, "group", method, **options)
    assert made["warnings"] == [
        "the teacher has no batch norm: the term 'bn' matches the channels of its GroupNorm layers with mean 0 and "
        "variance 1 instead"
    ]
    assert made["method_options"]["bn"] > 0


@pytest.mark.parametrize("arch", ["instance", "plain"])
def test_with_nothing_to_match_the_term_is_dropped_or_refused(tmp_path: Path, arch: str) -> None:
    made = plan(tmp_path, arch, "deepinversion")
    assert made["warnings"] == ["the teacher has no batch norm: the term 'bn' has nothing to match and is dropped"]
    assert made["method_options"]["bn"] == 0
    with pytest.raises(ValueError, match="--bn 2: the teacher has no batch norm, so nothing is matched"):
        plan(tmp_path, arch, "deepinversion", bn=2.0)


def test_patches_without_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--patches 1: the teacher has no attention blocks"):
        plan(tmp_path, "group", "zeroq", patches=1.0)


def test_a_bank_without_a_choice_of_feed_is_counted_too(tmp_path: Path) -> None:
    small, large = (plan(tmp_path, "plain", "zeroq", bank=size)["expected_memory_mb"] for size in (10, 10_000_000))
    assert large - small == pytest.approx(640, abs=2)


def test_a_student_begins_with_what_fits() -> None:
    torch.manual_seed(0)
    teacher, student = (build_model(arch, shape=(3, 16, 16), classes=4) for arch in ("resnet20", "resnet8"))
    said = inherit(student, teacher)
    assert "44 of 44" in said
    theirs = teacher.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.state_dict().items())
    other = build_model("lenet5_half", shape=(1, 28, 28), classes=4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert "nothing of the teacher" in inherit(other, teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_validation_tests_on_training_images_that_distilling_on_real_ones_leaves_out(tmp_path: Path) -> None:
    from datafree.data import load_data
    from datafree.domain import DOMAINS
    from datafree.jobs.beginnings import training_data
    from datafree.jobs.planning import _test_data

    config, domain, device = TrainConfig(data="digits", validation=True), DOMAINS["digits"], torch.device("cpu")
    held, used, whole = (
        _test_data(config, domain, [], device),
        training_data(config, domain, device),
        load_data("digits"),
    )
    assert held is not None
    assert held.x_test is not None
    assert used.x_train is not None
    assert whole.x_train is not None
    assert held.x_train is None
    assert 0.09 < len(held.x_test) / len(whole.x_train) < 0.11
    assert len(held.x_test) + len(used.x_train) == len(whole.x_train)
    # The digits have no two equal images: none of those tested is trained on, and all stand in the training split.
    rows = {bytes(image.flatten().tolist()) for image in used.x_train}
    tested = [bytes(image.flatten().tolist()) for image in held.x_test]
    assert not rows & set(tested)
    assert rows | set(tested) == {bytes(image.flatten().tolist()) for image in whole.x_train}


def test_shapes_stand_in_for_statistics_that_are_not_there(tmp_path: Path) -> None:
    made = plan(tmp_path, "plain", "blend")
    assert (made["method_options"]["bn"], made["method_options"]["shapes"]) == (0.0, 0.5)
    assert made["warnings"][-1] == "in its place: --shapes 0.5, --student-steps 60"
    asked = plan(tmp_path, "plain", "blend", shapes=0.0)
    assert asked["method_options"]["shapes"] == 0.0
    assert asked["warnings"][-1] == "in its place: --student-steps 60"
    assert plan(tmp_path, "group", "blend")["method_options"]["shapes"] == 0.0
    without = plan(tmp_path, "plain", "blend", bn=0.0)
    assert without["method_options"] == made["method_options"]
    assert without["warnings"] == ["the teacher has no batch norm; in its place: --shapes 0.5, --student-steps 60"]


def test_a_student_without_norm_takes_adam_and_small_batches(tmp_path: Path) -> None:
    config = plan(tmp_path, "plain", "blend")["config"]
    assert (config["optimizer"], config["lr"], config["batch_size"]) == ("adam", 3e-3, 64)
    assert (config["weight_decay"], config["temperature"]) == (0.0, 20.0)


def test_grey_images_are_mirrored_only_where_that_is_asked_for_and_labels_allow_it() -> None:
    from datafree.domain import DOMAINS
    from datafree.jobs.planning import _mirrored

    flips = {name: _mirrored(DOMAINS[name], None).flip for name in ("digits", "mnist", "fashion-mnist", "cifar10")}
    assert flips == {"digits": False, "mnist": False, "fashion-mnist": False, "cifar10": True}
    assert _mirrored(DOMAINS["fashion-mnist"], True).flip
    assert not _mirrored(DOMAINS["cifar10"], False).flip
    with pytest.raises(ValueError, match="--flip: mirror images of mnist"):
        _mirrored(DOMAINS["mnist"], True)


def test_a_presets_term_that_has_nothing_to_match_is_dropped_and_nobody_is_blamed(tmp_path: Path) -> None:
    made = plan(tmp_path, "plain", "dfq", preset="zju")
    assert made["method_options"]["bn"] == 0
    assert "has nothing to match and is dropped" in made["warnings"][0]
    with pytest.raises(ValueError, match="--bn 1: the teacher has no batch norm"):
        plan(tmp_path, "plain", "dfq", preset="zju", bn=1.0)


def test_a_presets_rate_comes_with_its_optimiser_or_not_at_all(tmp_path: Path) -> None:
    names = ("optimizer", "lr", "weight_decay", "schedule", "milestones")

    def settled(**options: Any) -> tuple[Any, ...]:
        config = plan(tmp_path, "group", "dafl", **options)["config"]
        return tuple(config[name] for name in names)

    # The student has no norm layers, for which Adam is the default; DAFL's release takes SGD at 0.1 for any.
    assert settled()[:3] == ("adam", 3e-3, 0.0)
    assert settled(preset="official")[:4] == ("sgd", 0.1, 5e-4, "multistep")
    assert settled(preset="official", optimizer="adam")[:2] == ("adam", 1e-3)
    # What is given goes before the preset, even where it is the default.
    assert settled(preset="official", schedule="cosine", milestones=(0.5, 0.75))[3:] == ("cosine", (0.5, 0.75))
    assert settled()[3:] == ("cosine", (0.5, 0.75))


def test_a_method_that_takes_adam_keeps_its_own_rate(tmp_path: Path) -> None:
    config = plan(tmp_path, "group", "zskt", attention=0.0)["config"]
    assert (config["optimizer"], config["lr"]) == ("adam", 2e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dfad", {}),
        ("zskt", {}),
        ("blackbox", {}),
        ("zeroq", {}),
        ("noise", {}),
        ("dfq", {"balance": 0.0}),
        ("ssd", {"balance": 0.0}),
        ("deepinversion", {"onehot": 0.0}),
    ],
)
def test_a_prior_that_a_method_cannot_keep_is_refused(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    prior = (1.0, *[0.0] * 9)
    said = " ".join([method, *(f"without --{weight}" for weight in options)])
    with pytest.raises(ValueError, match=f"^--prior: {said} makes images of no class in particular; leave it out"):
        plan(tmp_path, "group", method, prior=prior, **options)


@pytest.mark.parametrize(("mixed", "said"), [("", "condensed"), ("+dfq", r"condensed\+dfq")])
def test_a_prior_that_a_condensed_set_cannot_keep_is_refused(tmp_path: Path, mixed: str, said: str) -> None:
    jobs.condense(data="digits", method="random", ipc=1, out=tmp_path / "set")
    with pytest.raises(ValueError, match=f"^--prior: {said} makes images of no class in particular; leave it out"):
        plan(tmp_path, "group", "blend", source=f"condensed:{tmp_path / 'set'}{mixed}", prior=(1.0, *[0.0] * 9))


def test_a_method_that_says_nothing_of_the_prior_may_be_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(load_method("dfad"), "FOLLOWS_PRIOR")
    assert plan(tmp_path, "group", "dfad", prior=(1.0, *[0.0] * 9))["config"]["prior"][0] == 1.0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dfq", {}),
        ("blend", {}),
        ("cmi", {}),
        ("noise", {"distribution": "shapes"}),
        ("ssd", {}),
        ("deepinversion", {}),
    ],
)
def test_a_prior_is_taken_where_images_are_made_for_classes(
    tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    assert plan(tmp_path, "group", method, prior=(1.0, *[0.0] * 9), **options)["config"]["prior"][0] == 1.0


@pytest.mark.parametrize(
    ("method", "preset", "options"),
    [
        ("fast", "official", {"feed": "fresh"}),
        ("cmi", "scratch", {"feed": "fresh"}),
        ("dfad", "zju", {"feed": "bank"}),
        ("dfad", "official", {"schedule": "cosine"}),
        ("blackbox", "official", {"schedule": "cosine"}),
        ("dafl", "zju", {"criterion": "l1"}),
    ],
)
def test_nobody_is_blamed_for_what_a_preset_says(
    tmp_path: Path, method: str, preset: str, options: dict[str, Any]
) -> None:
    made = plan(tmp_path, "group", method, preset=preset, **options)
    assert {**made["config"], **made["method_options"]}.items() >= options.items()
    saved = {name: value for name, value in made["config"].items() if value is not None}
    again = jobs.dry_run(TrainConfig(**saved), **made["method_options"])  # as --config does it
    assert (again["config"], again["method_options"]) == (made["config"], made["method_options"])


@pytest.mark.parametrize(
    ("method", "preset", "options", "text"),
    [
        ("fast", "official", {"feed": "fresh", "bank": 99}, "--bank with --feed fresh"),
        ("dfad", "zju", {"bank": 99}, "--bank with --feed fresh"),  # the preset's feed
        ("dfad", "official", {"schedule": "cosine", "milestones": (0.3,)}, "--milestones with --schedule cosine"),
        ("dafl", "zju", {"criterion": "l1", "temperature": 3.0}, "--temperature with --criterion l1"),
    ],
)
def test_what_a_person_gives_beside_a_preset_is_still_read_or_refused(
    tmp_path: Path, method: str, preset: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=f"^nothing reads {text}"):
        plan(tmp_path, "group", method, preset=preset, **options)


def test_the_nearest_of_both_configurations_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown option 'stepz' with method blend; did you mean 'steps'"):
        jobs.dry_run(stepz=3)
    with pytest.raises(ValueError, match="unknown option 'bnk' with method dfq; did you mean 'bank'"):
        jobs.dry_run(method="dfq", bnk=3)
    with pytest.raises(ValueError, match="unknown option 'ipcs' with method dm; did you mean 'ipc'"):
        jobs.dry_run_condense(method="dm", ipcs=3)


def test_real_images_need_named_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--source real needs --data NAME"):
        plan(tmp_path, "plain", "blend", data=None, shape="1x8x8", source="real")


@pytest.mark.parametrize("method", ["blend", "dafl", "zskt"])
def test_on_real_images_the_student_is_trained_as_the_method_would_train_it(tmp_path: Path, method: str) -> None:
    # The student here has no maps to compare.
    own, real = (plan(tmp_path, "group", method, source=source, attention=0.0)["config"] for source in (None, "real"))
    assert {**own, "source": "real"} == real


def test_on_real_images_a_preset_says_how_the_student_is_trained(tmp_path: Path) -> None:
    own, real = (plan(tmp_path, "group", "dafl", source=source, preset="zju") for source in (None, "real"))
    assert {**own["config"], "source": "real"} == real["config"]
    with pytest.raises(ValueError, match="--preset zhu: unknown to --method dafl; take official or zju"):
        plan(tmp_path, "group", "dafl", source="real", preset="zhu")


@pytest.mark.parametrize(("apart", "text"), [(True, None), (False, "also from those that it is tested on")])
def test_a_set_that_holds_what_is_tested_is_warned_of(tmp_path: Path, apart: bool, text: str | None) -> None:
    jobs.condense(data="digits", method="random", ipc=1, validation=apart, out=tmp_path / "set")
    source = f"condensed:{tmp_path / 'set'}"
    warnings = plan(tmp_path, "plain", "blend", source=source, validation=True)["warnings"]
    assert [text in line for line in warnings] == ([] if text is None else [True])
    assert not plan(tmp_path, "plain", "blend", source=source)["warnings"]


def test_one_given_constant_is_not_taken_for_both(tmp_path: Path) -> None:
    said = plan(tmp_path, "plain", "noise", mean=(0.5,))["choices"]
    assert "normalisation: mean 0.5 (as given) / std 0.376 (digits's)" in said


def test_a_method_that_makes_no_image_is_refused(tmp_path: Path) -> None:
    jobs.condense(data="digits", method="random", ipc=1, out=tmp_path / "set")
    with pytest.raises(ValueError, match=r"^--method dafl makes no image with --source condensed:.*set\+dafl$"):
        plan(tmp_path, "plain", "dafl", source=f"condensed:{tmp_path / 'set'}")


def test_a_student_of_another_family_is_no_next_smaller_network(plain_teacher: str) -> None:
    made = jobs.dry_run(teacher=plain_teacher, method="noise", steps=1)
    share = 100 * made["student"]["parameters"] / made["teacher"]["parameters"]
    said = f"a small network of ours, with {share:.2g}% of the teacher's parameters; --student names another"
    assert f"student: lenet5_half ({said})" in made["choices"]


def test_a_teacher_smaller_than_any_of_ours_needs_a_named_student(tmp_path: Path) -> None:
    # 4 x 9 + 4 + 10 x 256 + 10 parameters
    with pytest.raises(ValueError, match=r"fewer parameters than the teacher \(2,610\): name a student with --student"):
        plan(tmp_path, "plain", "blend", student=None)


@pytest.mark.parametrize(
    ("method", "loop", "steps", "options", "said"),
    [
        ("dfq", "generator", 3, {"generator_steps": 4}, True),
        ("dfq", "generator", 4, {"generator_steps": 4}, False),
        ("pre", "memory", 3, {}, True),
        ("pre", "memory", 3, {"replay": 0.0}, False),
    ],
)
def test_an_inner_loop_that_a_short_run_cuts_is_told(
    tmp_path: Path, method: str, loop: str, steps: int, options: dict[str, Any], said: bool
) -> None:
    made = plan(tmp_path, "group", method, steps=steps, **options)
    line = f"{loop} steps: 3 of 4 a round, no more than the run has student steps"
    assert (line in made["choices"]) is said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data": "fashion-mnist"}, "--data fashion-mnist needs --teacher: .*pretrain --data fashion-mnist"),
        ({"arch": "resnet8"}, r"--arch goes with --teacher: .* \(--student names the student\); leave it out"),
        ({"shape": "1x16x16"}, "--shape goes with --teacher"),
        ({"mean": (0.5,)}, "--mean goes with --teacher"),
    ],
)
def test_what_is_said_of_a_teacher_that_is_not_named_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        jobs.dry_run(steps=2, **options)
    assert jobs.dry_run(steps=2, data="digits")["config"]["data"] == "digits"
