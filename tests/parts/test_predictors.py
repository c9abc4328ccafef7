"""Do predictors guess from the context alone, in the promised order?"""

from types import SimpleNamespace

import pytest
import torch
from sslzoo_ijepa.predictors import Cross, Joint
from sslzoo_mae import Decoder
from sslzoo_readout import Convolutions, Linear
from sslzoo_regressor import Regressor
from sslzoo_vit import ViT

from sslzoo import Patches, Progress, Tokens

AT = Progress(0, 10)
GRID = (4, 5)
SMALL = {"width": 16, "depth": 2, "heads": 2}


def encoder(**keys):
    return ViT(**{"width": 24, "depth": 1, "heads": 2, "patch": 4, **keys}).eval()


def made(kind, **keys):
    torch.manual_seed(0)
    module = kind(encoder(), **{**SMALL, **keys}).eval()
    with torch.no_grad():  # starting weights are so small that influences would hide in rounding
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def rows(s, k, seed):
    return torch.rand(s, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :k]


def tokens(s=2, k=6, length=None, prefix=None):
    patches = torch.randn(s, k, 24, generator=torch.Generator().manual_seed(1))
    return Tokens(patches, rows(s, k, 2), patches.mean(1), GRID, prefix, (), length)


def target(s=2, m=3, q=4):
    return Patches(torch.stack([rows(s, q, 3 + block) for block in range(m)], 1))


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_without_a_target_nothing_is_said(kind):
    assert made(kind)(tokens(), None, AT) == {}


@pytest.mark.parametrize("kind", [Joint, Cross])
def test_blocks_are_guessed_apart_and_stand_sequence_by_sequence(kind):
    predictor, seen, asked = made(kind), tokens(), target()
    found = predictor(seen, asked, AT)["patch"].unflatten(0, (2, 3, 4))
    for s in range(2):
        one = Tokens(seen.patches[s : s + 1], seen.index[s : s + 1], seen.summary[s : s + 1], GRID)
        for m in range(3):
            alone = predictor(one, Patches(asked.index[s : s + 1, m : m + 1]), AT)["patch"]
            assert torch.allclose(found[s, m], alone, atol=1e-5)


def test_patches_of_one_block_talk_in_ijepa_and_not_in_cross():
    asked, seen = target(m=1), tokens()
    other = asked.index.clone()
    other[..., -1] = (other[..., -1] + 1) % 20
    for kind, talk in ((Joint, True), (Cross, False)):
        predictor = made(kind)
        one, two = (predictor(seen, Patches(index), AT)["patch"].unflatten(0, (2, 4)) for index in (asked.index, other))
        assert torch.allclose(one[:, :3], two[:, :3], atol=1e-6) is not talk


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_the_place_of_context_and_target_matters(kind):
    predictor, seen, asked = made(kind), tokens(), target(m=1)
    wanted = predictor(seen, asked, AT)["patch"]
    moved = Tokens(seen.patches, seen.index.flip(1), seen.summary, GRID)
    assert not torch.allclose(predictor(moved, asked, AT)["patch"], wanted, atol=1e-3)
    elsewhere = Patches((asked.index + 1) % 20)
    assert not torch.allclose(predictor(seen, elsewhere, AT)["patch"], wanted, atol=1e-3)


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_padding_of_contexts_has_no_influence(kind):
    predictor, asked = made(kind), target()
    seen = tokens(length=torch.tensor([6, 3]))
    spoilt = seen.patches.clone()
    spoilt[1, 3:] = 50.0
    index = seen.index.clone()
    index[1, 3:] = asked.index[1, 0, 0]  # legal, but not among what was seen
    found = predictor(Tokens(spoilt, index, seen.summary, GRID, None, (), seen.length), asked, AT)["patch"]
    alone = Tokens(seen.patches[1:, :3], seen.index[1:, :3], seen.summary[1:], GRID)
    wanted = predictor(alone, Patches(asked.index[1:]), AT)["patch"]
    assert torch.allclose(found.unflatten(0, (2, -1))[1], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_ragged_targets_agree_with_targets_alone(kind):
    predictor, seen, asked = made(kind), tokens(), target()
    length = torch.tensor([[4, 2, 3], [1, 4, 4]])
    found = predictor(seen, Patches(asked.index, length), AT)["patch"]
    assert len(found) == length.sum()
    start = 0
    for s in range(2):
        one = Tokens(seen.patches[s : s + 1], seen.index[s : s + 1], seen.summary[s : s + 1], GRID)
        for m in range(3):
            q = int(length[s, m])
            alone = predictor(one, Patches(asked.index[s : s + 1, m : m + 1, :q]), AT)["patch"]
            assert torch.allclose(found[start : start + q], alone, atol=1e-5)
            start += q


def test_published_depth_and_heads_follow_the_encoder():
    with torch.device("meta"):
        for size, (depth, heads), count in (
            ("base", (6, 12), 11_238_912),
            ("large", (12, 16), 22_082_560),
            ("giant", (16, 16), 29_475_712),
        ):
            predictor = Joint(ViT(size=size))
            assert (len(predictor.blocks), predictor.blocks[0].attn.num_heads) == (depth, heads)
            assert sum(p.numel() for p in predictor.parameters()) == count
    with pytest.raises(ValueError, match="24 wide"):
        Joint(encoder())
    with pytest.raises(ValueError, match="16 channels do not split over 3 heads"):
        Joint(encoder(), **(SMALL | {"heads": 3}))


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
@pytest.mark.parametrize(("to", "width"), [("pixels", 48), ("tokens", 24), (7, 7)])
def test_guesses_may_be_pixels_tokens_or_codes(kind, to, width):
    predictor = made(kind, to=to)
    assert predictor.outputs["patch"].width == width
    assert predictor(tokens(), target(), AT)["patch"].shape == (24, width)


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_pixels_want_an_encoder_that_knows_its_patches(kind):
    with pytest.raises(ValueError, match="no attribute patch"):
        kind(SimpleNamespace(width=24), **SMALL, to="pixels")


def test_mae_decoder_reads_all_tokens_and_gives_pixels():
    torch.manual_seed(0)
    eye = encoder(class_token=True, patch=(2, 4))
    decoder = Decoder(eye, **SMALL).eval()
    assert decoder.outputs["patch"].width == 3 * 2 * 4
    pixels, seen, asked = torch.randn(2, 3, 8, 20), Patches(rows(2, 6, 2)), target(m=1)
    read = eye(pixels, seen)
    found = decoder(read, asked, AT)["patch"]
    assert found.shape == (8, 24)
    changed = Tokens(read.patches, read.index, read.summary, GRID, read.prefix + 1.0)
    assert not torch.allclose(decoder(changed, asked, AT)["patch"], found, atol=1e-4)


def test_linear_read_out_is_one_matrix():
    eye = encoder(hidden="fill")
    for to, width in (("tokens", 24), ("pixels", 48)):
        head, asked = Linear(eye, to=to), target(m=1)
        read = eye(torch.randn(2, 3, 16, 20), Patches(rows(2, 6, 2)))
        found = head(read, asked, AT)["patch"]
        wanted = torch.stack([head.out(read.patches[s, n]) for s in range(2) for n in asked.index[s, 0]])
        assert found.shape == (8, width)
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [Joint, Cross])
def test_gradients_reach_every_weight(kind):
    predictor = made(kind)
    predictor(tokens(), target(), AT)["patch"].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in predictor.parameters())


@pytest.mark.parametrize("kind", [Joint, Cross, Decoder])
def test_predictors_in_bfloat16_stay_close(kind):
    predictor = made(kind)
    wanted = predictor(tokens(), target(), AT)["patch"]
    with torch.autocast("cpu", torch.bfloat16):
        found = predictor(tokens(), target(), AT)["patch"]
    assert (found.float() - wanted).abs().mean() < 0.03 * wanted.abs().mean()


def test_convolutions_see_tokens_at_their_places_and_nothing_elsewhere():
    torch.manual_seed(0)
    predictor = Convolutions(encoder(), depth=2, kernel=3, groups=4).eval()
    seen, asked = tokens(), target(m=1)
    found = predictor(seen, asked, AT)["patch"].unflatten(0, (2, 4))
    for s in range(2):
        x = torch.zeros(24, *GRID)
        for patch, place in zip(seen.patches[s], seen.index[s].tolist(), strict=True):
            x[:, place // GRID[1], place % GRID[1]] = patch
        for conv in predictor.blocks:
            y = conv(x[None])[0].permute(1, 2, 0)
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = x + torch.nn.functional.gelu(y).permute(2, 0, 1)
        for q, place in enumerate(asked.index[s, 0].tolist()):
            wanted = predictor.out(x[:, place // GRID[1], place % GRID[1]])
            assert torch.allclose(found[s, q], wanted, atol=1e-4)


def test_the_noise_of_convolutions_is_that_of_the_step_for_any_share_of_the_batch():
    torch.manual_seed(0)
    predictor = Convolutions(encoder(), depth=1, groups=4, noise=1.0)
    seen, asked = tokens(), target(m=1)
    said = predictor(seen, asked, AT)["patch"]
    one = Tokens(seen.patches[1:], seen.index[1:], seen.summary[1:], GRID)
    assert torch.allclose(predictor(one, Patches(asked.index[1:]), AT)["patch"], said[4:], atol=1e-5)
    assert not torch.allclose(predictor(seen, asked, Progress(1, 10))["patch"], said, atol=1e-2)
    quiet = predictor.eval()(seen, asked, AT)["patch"]
    assert torch.equal(quiet, predictor(seen, asked, Progress(1, 10))["patch"])


def test_the_regressor_guesses_blocks_apart_and_reads_codes_from_its_latents():
    torch.manual_seed(0)
    predictor = Regressor(encoder(), codes=11, depth=2, decoder_depth=1, heads=2, layer_scale=1.0).eval()
    seen, asked = tokens(), target()
    found = predictor(seen, asked, AT)
    assert found["latent"].shape == (2 * 3 * 4, 24)
    assert found["code"].shape == (2 * 3 * 4, 11)
    for name in ("latent", "code"):
        blocks = found[name].unflatten(0, (2, 3, 4))
        for m in range(3):
            alone = predictor(seen, Patches(asked.index[:, m : m + 1]), AT)[name].unflatten(0, (2, 4))
            assert torch.allclose(blocks[:, m], alone, atol=1e-5), name
    assert set(Regressor(encoder(), codes=0, heads=2)(seen, asked, AT)) == {"latent"}
    other = Tokens(seen.patches.flip(-1), seen.index, seen.summary, GRID)
    assert not torch.allclose(predictor(other, asked, AT)["latent"], found["latent"], atol=1e-3)
