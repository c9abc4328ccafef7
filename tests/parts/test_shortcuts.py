"""Is what is left out of a step known or never read? Against every token doing everything, in fp64, gradients too."""

import pytest
import torch
from sslzoo_ijepa.predictors import Joint
from sslzoo_mae import Decoder
from sslzoo_vit import ViT
from timm.models.vision_transformer import Block as TimmBlock
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sslzoo import Patches, Progress, Tokens
from sslzoo.nn import Block, attention, joint_mask

AT = Progress(0, 10)
GRID, S, M, K, Q, WIDTH = (4, 5), 3, 4, 7, 3, 16


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def places(*shape, seed=0):
    rows = torch.rand(*shape[:-1], 20, generator=torch.Generator().manual_seed(seed))
    return rows.argsort(-1)[..., : shape[-1]]


def roused(module):
    """Weights far from their small start, so that nothing hides in rounding."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def assert_same(one, other, leaves):
    """Values and gradients of a sum with uneven weights."""
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    weigh = drawn(*one.shape, seed=9).detach()
    found, wanted = (torch.autograd.grad((x * weigh).sum(), leaves) for x in (one, other))
    for mine, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_that_are_not_read_need_not_ask(ragged, layer_scale):
    block, x = roused(Block(WIDTH, 4, layer_scale=layer_scale)), drawn(S, K, WIDTH)
    mask = (torch.arange(K) < torch.tensor([7, 4, 5])[:, None])[:, None, None] if ragged else None
    leaves = [x, *block.parameters()]
    assert_same(block(x[:, -Q:], mask, source=x), block(x, mask)[:, -Q:], leaves)


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_a_plain_block_is_timms(layer_scale):
    block, x = roused(Block(WIDTH, 4, layer_scale=layer_scale)), drawn(S, K, WIDTH)
    mask = (torch.arange(K) < torch.tensor([7, 4, 5])[:, None])[:, None, None]
    assert_same(block(x, mask), TimmBlock.forward(block, x, mask), [x, *block.parameters()])


def test_tokens_that_begin_alike_are_prepared_once():
    block, shared, x = roused(Block(WIDTH, 4)), drawn(S, K, WIDTH), drawn(S * M, Q, WIDTH, seed=1)
    plain = block(torch.cat([shared.repeat_interleave(M, 0), x], 1))
    assert_same(block(x, shared=shared), plain, [shared, x, *block.parameters()])


def context(ragged):
    patches = drawn(S, K, 24)
    length = torch.tensor([7, 4, 5]) if ragged else None
    return Tokens(patches, places(S, K), patches.mean(1), GRID, None, (), length)


def target(ragged):
    lengths = torch.randint(1, Q + 1, (S, M), generator=torch.Generator().manual_seed(0)) if ragged else None
    return Patches(places(S, M, Q, seed=2), lengths)


def encoder():
    return ViT(width=24, depth=1, heads=2, patch=4)


def joint_plainly(predictor, tokens, asked):
    """I-JEPA's predictor as it is written down: all tokens through all blocks, then those of the targets."""
    place = predictor.positions(tokens.grid, tokens.patches.device)
    seen = predictor.predictor_embed(tokens.patches) + place[tokens.index]
    x = torch.cat([seen.repeat_interleave(M, 0), predictor.mask_token + place[asked.index.flatten(0, 1)]], 1)
    for block in predictor.blocks:
        x = block(x, joint_mask(tokens, asked))
    return asked.flat(predictor.predictor_proj(predictor.predictor_norm(x[:, -Q:])).unflatten(0, (S, M)))


def decoder_plainly(predictor, tokens, asked):
    """MAE's decoder: all places through all blocks."""
    seen = predictor.decoder_embed(tokens.patches)
    x = predictor._everywhere(seen, tokens) + predictor.positions(tokens.grid, seen.device)
    for block in predictor.blocks:
        x = block(x)
    return asked.flat(asked.take(predictor.decoder_pred(predictor.decoder_norm(x))))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("kind", "plainly"), [(Joint, joint_plainly), (Decoder, decoder_plainly)])
def test_predictors_say_what_they_say_written_plainly(kind, plainly, depth, ragged):
    predictor = roused(kind(encoder(), width=WIDTH, depth=depth, heads=4))
    tokens, asked = context(ragged), target(ragged)
    leaves = [tokens.patches, *predictor.parameters()]
    assert_same(predictor(tokens, asked, AT)["patch"], plainly(predictor, tokens, asked), leaves)


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_work_of_the_predictor_is_what_was_predicted():
    """Each matrix product of [n w] with [w p] is 2 n w p operations."""
    predictor = roused(Joint(encoder(), width=WIDTH, depth=3, heads=4))
    tokens, asked = context(False), target(False)
    square = 2 * WIDTH * WIDTH
    seen, all_ = S * K, S * M * (K + Q)
    spared_first = 3 * square * (S * M * K - seen)  # queries, keys and values of the context, M times instead of once
    spared_last = (1 + 1 + 8) * square * (all_ - S * M * Q)  # queries, projection and MLP of what is not asked
    spared_attention = 2 * 2 * S * M * K * (K + Q) * WIDTH  # what is not asked, with all keys and then all values
    found = counted(lambda: joint_plainly(predictor, tokens, asked)) - counted(lambda: predictor(tokens, asked, AT))
    assert found == spared_first + spared_last + spared_attention


@pytest.mark.parametrize("kind", ["none", "bool", "scores"])
def test_attention_in_bf16_on_a_cpu_is_attention_and_never_the_slow_fused_backward(kind):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, dtype=torch.bfloat16) for n in (7, 9, 9))
    mask = {"none": None, "bool": torch.rand(3, 1, 1, 9) > 0.3, "scores": torch.randn(2, 7, 9)}[kind]
    out = torch.randn(3, 2, 7, 16)

    def found(ask, *tensors):
        held = [x.clone().requires_grad_() for x in tensors]
        read = ask(*held)
        return [read, *torch.autograd.grad((read * out.to(read.dtype)).sum(), held)]

    exact = found(
        lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask.double() if kind == "scores" else mask),
        *(x.double() for x in (q, k, v)),
    )
    with Kernels() as kernels:
        ours = found(lambda *x: attention(*x, mask.bfloat16() if kind == "scores" else mask), q, k, v)
    assert not any("flash" in name for name in kernels.names)
    for mine, its in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - its).norm() / its.norm() < 1.5e-2


def test_attention_is_torchs_own_elsewhere():
    q, k, v = (torch.randn(3, 2, 9, 16) for _ in range(3))
    assert attention(q, k, v).equal(F.scaled_dot_product_attention(q, k, v))
    with Kernels() as kernels, torch.no_grad():
        attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert any("flash" in name for name in kernels.names), "a teacher has no gradient, and keeps the fused kernel"


class Kernels(TorchDispatchMode):
    """The names of all that is computed."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
