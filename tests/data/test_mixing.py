"""CutMix, shuffled patches and random crops: what they move, and what they leave."""

from __future__ import annotations

import pytest
import torch

from datafree.data.mixing import cutmix, mix_labels, random_resized_crop, shuffle_patches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cutmix_takes_a_box_and_says_how_large_it_is() -> None:
    # Image i is i everywhere: each pixel tells whose it is.
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 2, 8, 10)
    for seed in range(50):
        mixed, order, share = cutmix(images, generator(seed))
        foreign = mixed != images
        for i in range(5):
            if order[i] == i:
                assert not foreign[i].any()
                continue
            assert foreign[i].float().mean().item() == pytest.approx(1 - share, abs=1e-6)
            assert bool((mixed[i][foreign[i]] == order[i]).all())
            rows, columns = foreign[i, 0].any(1), foreign[i, 0].any(0)
            assert torch.equal(foreign[i, 0], rows[:, None] & columns)  # a box
    assert torch.equal(images, torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 2, 8, 10))


def test_cutmix_boxes_are_as_large_as_the_paper_says() -> None:
    # The side s = sqrt(u) with u uniform; cut off at the edges a side has s - s^2/4 on average over its centre. The
    # share of own pixels is 1 - E (s - s^2/4)^2 = 1 - E (u - u^1.5 / 2 + u^2 / 16) = 1 - (1/2 - 1/5 + 1/48).
    images, rng = torch.zeros(2, 1, 100, 100), generator()
    shares = torch.tensor([cutmix(images, rng).share for _ in range(1000)])
    assert shares.mean() == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.025)
    assert shares.min() < 0.2
    assert shares.max() > 0.99


def test_labels_are_mixed_by_area() -> None:
    labels = torch.eye(3)
    mixed = mix_labels(labels, torch.tensor([1, 2, 0]), 0.75)
    assert torch.equal(mixed, torch.tensor([[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]))


def test_patches_are_whole_strips_in_another_order() -> None:
    # Strips of 2, 2 and (with what is left over) 3 columns; of 2, 2, 2 rows.
    image = torch.arange(42.0).reshape(1, 1, 6, 7).expand(100, 2, 6, 7)
    moved = shuffle_patches(image, 3, generator())
    rows, columns = moved[:, 0, :, 0] // 7, moved[:, 0, 0, :] % 7
    seen = set()
    for i in range(100):
        assert torch.equal(moved[i], (7 * rows[i, :, None] + columns[i]).expand(2, 6, 7))
        pieces = "".join(str(int(c)) for c in columns[i])
        assert all(strip in pieces for strip in ("01", "23", "456"))
        assert sorted(pieces) == list("0123456")
        seen.add(pieces)
    assert len(seen) == 6
    assert shuffle_patches(image, 1, generator()) is image
    with pytest.raises(ValueError, match="give 1 or more"):
        shuffle_patches(image, 0, generator())


def test_a_crop_shows_a_part_as_large_as_asked() -> None:
    # A ramp from -1 to 1: its slope after the crop is the crop's width.
    ramp = ((2 * torch.arange(32.0) + 1) / 32 - 1).expand(400, 1, 32, 32)
    across = random_resized_crop(ramp, 0.25, generator())
    down = random_resized_crop(ramp.mT.contiguous(), 0.25, generator()).mT
    wide, tall = ((x[:, 0, 16, 17] - x[:, 0, 16, 15]) * 8 for x in (across, down))
    area = wide * tall
    # Narrower where the sides would be longer than the image, for areas near 1.
    assert area.min() == pytest.approx(0.25, abs=0.01)
    assert bool((area < 1.001).all())
    assert area.mean() == pytest.approx(0.6, abs=0.04)
    ratio = (wide / tall)[area < 0.7]
    assert ratio.min() == pytest.approx(3 / 4, abs=0.02)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.02)
    assert bool((across.abs() <= 1).all())
    with pytest.raises(ValueError, match="above 0, up to 1"):
        random_resized_crop(ramp, 0.0, generator())


def test_crops_lie_anywhere_and_are_cut_off_at_the_images_edges() -> None:
    ramp = ((2 * torch.arange(32.0) + 1) / 32 - 1).expand(400, 1, 32, 32)
    across = random_resized_crop(ramp, 0.25, generator())[:, 0, 16]
    down = random_resized_crop(ramp.mT.contiguous(), 0.25, generator())[:, 0, :, 16]
    for x in (across, down):
        # The middle is (2 u - 1) (1 - side), with a side of 0.8 or so: its standard deviation is 0.58 * 0.23 or less.
        middle = (x[:, 15] + x[:, 16]) / 2
        assert abs(middle.mean()) < 5 * 0.13 / 20
        assert middle.min() < -0.25
        assert middle.max() > 0.25
    # Of the whole area the longer side is the image's own, and nothing moves along it.
    across = random_resized_crop(ramp, 1.0, generator())[:, 0, 16]
    down = random_resized_crop(ramp.mT.contiguous(), 1.0, generator())[:, 0, :, 16]
    still = torch.stack([(x - ramp[0, 0, 0]).abs().amax(1) < 1e-5 for x in (across, down)])
    assert bool(still.any(0).all())
