"""Codes of patches, and guesses among codes."""

import math

import pytest
import torch
from torch import nn

from sslzoo import Batch, Group, Mask, Pairing, Patches, Progress, Signal, Student, catalogue
from sslzoo.run.data import pair

AT = Progress(0, 1)


def part(family, name, *given, **keys):
    return catalogue().find(family, name).make(*given, **keys)


class Seer(nn.Module):
    patch = (2, 2)


def batch_of(pixels, target):
    groups = {
        "image": Group(pixels[None], torch.zeros(1, len(pixels), 4), Mask(Patches(target[:, 0]), Patches(target)))
    }
    return Batch(groups, pair(groups))


def codebook(**keys):
    return part("targets", "codebook", Student(Seer(), nn.Identity()), **keys)


def test_a_code_is_the_nearest_direction_counted_one_by_one():
    pixels, target = torch.randn(2, 3, 8, 8), torch.tensor([[[0, 5, 15]], [[3, 2, 9]]])
    book = codebook(codes=12, width=4)
    ids = book(batch_of(pixels, target), None, AT)["code"]
    assert ids.dtype == torch.int64
    wanted = []
    for image, row in zip(pixels, target[:, 0].tolist(), strict=True):
        for place in row:
            top, left = place // 4 * 2, place % 4 * 2
            x = image[:, top : top + 2, left : left + 2].permute(1, 2, 0).flatten()
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() @ book.projection
            wanted.append(max(range(12), key=lambda code: torch.cosine_similarity(x, book.codes[code], 0).item()))
    assert ids.tolist() == wanted


def test_codes_do_not_depend_on_brightness_and_contrast_and_are_the_seeds():
    pixels, target = torch.randn(1, 3, 8, 8), torch.arange(16)[None, None]
    once = codebook(codes=64)(batch_of(pixels, target), None, AT)["code"]
    assert torch.equal(once, codebook(codes=64)(batch_of(3 * pixels + 1, target), None, AT)["code"])
    assert not torch.equal(once, codebook(codes=64, seed=1)(batch_of(pixels, target), None, AT)["code"])
    assert len(set(once.tolist())) > 4
    assert not list(codebook().parameters())


def pairing(rows):
    return Pairing(
        torch.full((rows,), 1 / rows), torch.ones(1, 1, dtype=torch.bool), torch.zeros(rows, dtype=torch.long)
    )


def test_hard_and_soft_cross_entropy_agree_where_shares_are_one_code():
    scores, ids = torch.randn(6, 5), torch.randint(5, (6,))
    hard, figures = part("losses", "cross_entropy", Signal("patch", 5), temperature=0.5)(scores, ids, pairing(6), AT)
    shares = torch.nn.functional.one_hot(ids, 5).float()
    soft, others = part("losses", "soft_cross_entropy", Signal("patch", 5), temperature=0.5)(
        scores, shares, pairing(6), AT
    )
    assert hard.item() == pytest.approx(soft.item(), rel=1e-6)
    assert figures["accuracy"].item() == pytest.approx((scores.argmax(1) == ids).float().mean().item())
    assert others["target_entropy"].item() == 0
    even = part("losses", "soft_cross_entropy", Signal("patch", 5))(scores, torch.full((6, 5), 0.2), pairing(6), AT)
    assert even[1]["target_entropy"].item() == pytest.approx(math.log(5), rel=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy"])
def test_a_temperature_of_none_and_images_are_refused(name):
    with pytest.raises(ValueError, match="temperature"):
        part("losses", name, Signal("patch", 5), temperature=0)
    with pytest.raises(ValueError, match="kind image"):
        part("losses", name, Signal("image", 5))
