"""Heads, centers, balance and the networks under them, against closed forms and torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Patches, Progress, Signal, Tokens, catalogue
from sslzoo.nn import Center, WeightNorm, mlp, sinkhorn

AT = Progress(0, 1)


class Wide(nn.Module):
    """Stands for an encoder."""

    width, blocks = 8, nn.ModuleList()


def head(**keys):
    torch.manual_seed(0)
    return catalogue().find("predictors", "head").make(Wide(), **{"width": 6, "hidden": 10} | keys)


def seen(rows=4):
    x = torch.randn(rows, 9, 8, generator=torch.Generator().manual_seed(1))
    return Tokens(x, torch.arange(9).expand(rows, -1), x.mean(1), (3, 3))


def test_weight_norm_is_torchs():
    ours, theirs = WeightNorm(5, 7, gain=True), nn.utils.parametrizations.weight_norm(nn.Linear(5, 7, bias=False))
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2)
    theirs.load_state_dict({f"parametrizations.weight.original{i}": x for i, x in enumerate(ours.parameters())})
    x = torch.randn(3, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert not WeightNorm(5, 7).weight_g.requires_grad


def test_layers_of_published_heads():
    def kinds(*args, **keys):
        return [type(one).__name__ for one in mlp(*args, **keys)]

    assert kinds([1, 2, 3, 4]) == ["Linear", "GELU", "Linear", "GELU", "Linear"]  # DINO
    assert kinds([1, 2, 3], norm=nn.BatchNorm1d, act=nn.ReLU) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]  # BYOL
    assert kinds([1, 2], norm=nn.BatchNorm1d, last_norm=True) == ["Linear", "BatchNorm1d"]  # SimCLR v2's last
    assert [one.bias is None for one in mlp([1, 2, 3], bias=False)[::2]] == [True, False]


def test_prototypes_score_cosines_of_images_and_of_patches_alike():
    part, tokens, target = head(prototypes=12, patches=True), seen(), Patches(torch.tensor([[[0, 4]]] * 4))
    said = part(tokens, target, AT)
    directions = F.normalize(part.projector.last_layer.weight_v, dim=1)
    wanted = F.normalize(part.projector.mlp(tokens.summary), dim=1) @ directions.T
    assert torch.allclose(said["image"], wanted, atol=1e-6)
    assert torch.equal(said["patch"], part.projector(target.flat(tokens.at(target))))
    assert set(part(tokens, None, AT)) == {"image"}
    assert part.outputs["patch"].width == 12


def test_batch_norms_of_a_head_read_tokens_of_images_as_rows():
    projector, tokens = head(width=6, norm="batch", prototypes=12).projector.train(), torch.randn(4, 9, 8)
    assert torch.equal(projector(tokens), projector(tokens.flatten(0, 1)).unflatten(0, (4, 9)))


def test_a_guess_is_the_students_alone():
    part, tokens = head(layers=2, norm="batch", act="relu", guess=5), seen()
    assert torch.equal(part(tokens, None, AT)["image"], part.guess(part.projector(tokens.summary)))
    with pytest.raises(ValueError, match="guess, prototypes"):
        head(guess=5, prototypes=4)


def test_a_center_follows_the_mean_of_all_that_was_said_since_the_last_step():
    center, first, second = Center(3, 0.9).train(), torch.randn(4, 3), torch.randn(2, 2, 3)
    assert torch.equal(center(first), first)
    center(second)
    center.follow()
    wanted = 0.1 * torch.cat([first, second.flatten(0, 1)]).mean(0)
    assert torch.allclose(center.mean, wanted, atol=1e-7)
    center(torch.full((1, 3), float("nan")))
    center.follow()
    assert torch.allclose(center.mean, wanted, atol=1e-7)
    center.eval()(first)
    center.follow()
    assert torch.allclose(center.mean, wanted, atol=1e-7)


def test_sinkhorn_balances_prototypes_over_rows():
    share = torch.rand(2, 40, 5, dtype=torch.float64).log()
    found = sinkhorn(share, 50)
    assert torch.allclose(found.sum(-1), torch.ones(2, 40, dtype=torch.float64))
    assert torch.allclose(found.sum(-2), torch.full((2, 5), 8.0, dtype=torch.float64))
    assert torch.allclose(found[1], sinkhorn(share[1], 50))
    assert torch.allclose(sinkhorn(share, 0), share.exp() / share.exp().sum(-1, keepdim=True))


def test_shares_too_small_for_float32_are_balanced_as_in_float64_without_logarithms():
    logits = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 40
    logits[:, :2] -= 150.0  # prototypes no row is near
    wanted = logits.double().softmax(-1)
    for _ in range(3):
        wanted = wanted / wanted.sum(0)
        wanted = wanted / wanted.sum(1, keepdim=True)
    assert (logits.softmax(-1).sum(0) == 0).any()
    assert torch.allclose(sinkhorn(logits.log_softmax(-1)), wanted.float(), atol=1e-5)


def test_sharp_assignments_are_numbers():
    """MSN with as many prototypes as a small run has, each shared out to the power of 20."""
    torch.manual_seed(0)
    loss = catalogue().find("losses", "assign").make(Signal("image", 16), prototypes=64, temperature=0.1, sharpen=0.05)
    shares = loss.assignments(torch.randn(1, 32, 16), Progress(0, 10))
    assert torch.allclose(shares.sum(-1), torch.ones(1, 32), atol=1e-5)
    assert shares.sum(1).min() > 0


@pytest.mark.parametrize(("kind", "shape"), [("image", (2, 6, 9)), ("patch", (12, 9))])
def test_targets_are_balanced_over_all_views_as_dinov2_does(kind, shape):
    loss = catalogue().find("losses", "distill").make(Signal(kind, 9), teacher_temperature=0.5, balance=3)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = (scores.reshape(12, 9).double() / 0.5).exp()
    wanted /= wanted.sum()
    for _ in range(3):  # Caron et al. 2020, SwAV: each prototype gets as much, then each row
        wanted /= wanted.sum(0) * 9
        wanted /= wanted.sum(1, keepdim=True) * 12
    assert torch.allclose(loss.shares(scores, AT).reshape(12, 9).double(), wanted * 12, atol=1e-6)
    assert loss.whole_batch
    assert not catalogue().find("losses", "distill").make(Signal(kind, 9)).whole_batch


def test_a_residual_network_is_timms_and_counts_as_published():
    make = catalogue().find("encoders", "resnet").make
    with torch.device("meta"):
        nets = [make(model="resnet50", widen=widen, selective=sk) for sk in (False, True) for widen in (1, 2)]
        nets.append(make(model="resnet101", widen=2))
    counts = [round(sum(p.numel() for p in net.parameters()) / 1e6) for net in nets]
    assert counts == [24, 94, 35, 140, 170]  # SimCLR v2, table 1
    assert [net.net.bn1.num_features for net in nets] == [64, 128, 64, 128, 128]  # the stem is widened too
    encoder, pixels = make(model="resnet10t", stem="small").eval(), torch.randn(2, 3, 32, 32)
    tokens = encoder(pixels, None, 1)
    assert torch.allclose(tokens.patches, encoder.net.forward_features(pixels).flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.allclose(tokens.summary, encoder.net(pixels), atol=1e-5)
    assert tokens.grid == encoder.grid((32, 32)) == (4, 4)
    wide = make(model="resnet18", stem="small", widen=2).eval()
    assert wide(pixels).summary.shape == (2, wide.width) == (2, 1024)
    with pytest.raises(ValueError, match="whole images"):
        encoder(pixels, Patches(torch.zeros(2, 1, dtype=torch.long)))
    with pytest.raises(ValueError, match="timm has no 'resnet51'"):
        make(model="resnet51")
