"""Codes of patches, and guesses among codes."""

import math

import pytest
import torch
from torch import nn

from sslzoo import Batch, Group, Mask, Pairing, Patches, Progress, Signal, Student, catalogue
from sslzoo.run.data import pair
from sslzoo.testing import examine

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


def dalle_weights(width, codes):
    """Tensors under the published names (openai/DALL-E), small and random."""
    widths = [width * 2**group for group in range(4)]
    shapes = {"blocks.input": (width, 3, 7), "blocks.output.conv": (codes, widths[-1], 1)}
    for group, wide in enumerate(widths):
        for block in (1, 2):
            given = widths[max(0, group - (block == 1))]
            at = f"blocks.group_{group + 1}.block_{block}"
            if given != wide:
                shapes[f"{at}.id_path"] = (wide, given, 1)
            inner = [(given, wide // 4, 3), (wide // 4, wide // 4, 3), (wide // 4, wide // 4, 3), (wide // 4, wide, 1)]
            for number, (came, went, side) in enumerate(inner, 1):
                shapes[f"{at}.res_path.conv_{number}"] = (went, came, side)
    weights = {
        f"{name}.w": torch.randn(out, came, k, k) / (came * k * k) ** 0.5 for name, (out, came, k) in shapes.items()
    }
    return weights | {f"{name}.b": torch.randn(shape[0]) * 0.1 for name, shape in shapes.items()}


def dalle_codes(w, x):
    """The published encoder, written out: x [s 3 h w] in [0, 1] -> codes [s N]."""

    def conv(name, y):
        return nn.functional.conv2d(y, w[f"{name}.w"], w[f"{name}.b"], padding=w[f"{name}.w"].shape[-1] // 2)

    x = conv("blocks.input", 0.8 * x + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            at, y = f"blocks.group_{group}.block_{block}", x
            for number in (1, 2, 3, 4):
                y = conv(f"{at}.res_path.conv_{number}", y.relu())
            x = (conv(f"{at}.id_path", x) if f"{at}.id_path.w" in w else x) + y / 64
        x = nn.functional.max_pool2d(x, 2) if group < 4 else x
    return conv("blocks.output.conv", x.relu()).argmax(1).flatten(1)


def test_dalles_codes_are_those_of_the_published_encoder_read_from_a_file(tmp_path):
    class Eights(nn.Module):
        patch = (8, 8)  # so that nothing is scaled

    torch.manual_seed(0)  # six codes; of other seeds as few as two
    weights = dalle_weights(64, 512)
    torch.save(weights, tmp_path / "encoder.pt")
    student = Student(Eights(), nn.Identity())
    keys = {"codes": 512, "width": 64, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    book = part("targets", "dalle", student, weights=tmp_path / "encoder.pt", **keys)
    pixels, target = torch.rand(2, 3, 32, 32), torch.tensor([[[0, 5, 15]], [[3, 2, 9]]])
    wanted = dalle_codes(weights, pixels)
    assert len(set(wanted.flatten().tolist())) > 2
    assert torch.equal(book.codes(pixels), wanted)
    assert torch.equal(book(batch_of(pixels, target), None, AT)["code"], wanted.gather(1, target[:, 0]).flatten())
    assert not any(p.requires_grad for p in book.parameters())
    report = examine(
        "targets", catalogue().parts["targets"]["dalle"].make, {"weights": tmp_path / "encoder.pt", **keys}
    )
    assert report.ok, report
    with pytest.raises(ValueError, match="cannot be read"):
        part("targets", "dalle", student, weights=tmp_path / "none.pt", **keys)
    with pytest.raises(ValueError, match="does not hold the tensors"):
        part("targets", "dalle", student, weights=tmp_path / "encoder.pt", **(keys | {"codes": 8192}))


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
def test_images_are_refused(name):
    with pytest.raises(ValueError, match="kind image"):
        part("losses", name, Signal("image", 5))
