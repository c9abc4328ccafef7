"""Block masks whose share is drawn for each image, and that some images do not get (iBOT)."""

import pytest
import torch

from sslzoo import Rng, catalogue


def blocks(**keys):
    return catalogue().find("masks", "blocks").make(**keys)


def test_half_of_the_images_are_masked_by_a_share_within_its_range():
    rows = 400
    mask = blocks(hide=(0.1, 0.5), rate=0.5, smallest=4)(rows, (14, 14), Rng(0, 0, range(rows)))
    length = mask.target.length[:, 0]
    assert (length == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)  # four deviations
    assert length.max() <= 0.5 * 196
    assert length[length > 0].float().mean() / 196 == pytest.approx(0.28, abs=0.04)  # mean quota 0.3, a little missed
    assert torch.equal(mask.context.length, 196 - length)
    alone = blocks(hide=(0.1, 0.5), rate=0.5, smallest=4)(1, (14, 14), Rng(0, 0, [7]))
    count = 0 if alone.target.length is not None else alone.target.index.numel()  # nothing hidden: a row of length 0
    assert set(alone.target.index.flatten()[:count].tolist()) == set(mask.target.index[7, 0, : length[7]].tolist())


def test_a_batch_of_which_no_image_is_masked_is_a_mask_like_others():
    seeds = [Rng(0, step, [0]) for step in range(20)]
    masks = [blocks(hide=(0.1, 0.5), rate=0.5, smallest=4)(1, (14, 14), rng) for rng in seeds]
    bare = [mask for mask in masks if mask.target.length is not None]
    assert 0 < len(bare) < 20
    assert {mask.target.index.shape for mask in bare} == {(1, 1, 1)}


def test_a_share_that_is_exact_is_one_share():
    for keys in ({"hide": (0.1, 0.5)}, {"rate": 0.5}):
        with pytest.raises(ValueError, match="exact"):
            blocks(exact=True, **keys)
