"""Batch norm over all ranks equals torch's on one process with the whole batch."""

import re
from functools import partial

import pytest
import torch
from ranks import on_ranks
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslzoo import RecipeError
from sslzoo.nn import BatchNorm, batch_norm_over_ranks
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.batch_norm import _FusedBatchNorm

SHAPES = [(8, 5), (8, 5, 3)]


def steps(norm, wrap, rows, ranks=1):
    """Two training steps: outputs, gradients of inputs and of parameters, running statistics."""
    found, wrapped = [], wrap(norm)
    for turn, shape in enumerate(SHAPES):
        random = torch.Generator().manual_seed(turn)
        x = (torch.randn(shape, generator=random) * 3 + 100)[rows].requires_grad_()  # far from 0: no cancellation
        aim = torch.randn(shape, generator=random)[rows]
        out = wrapped(x)
        ((out * aim).square().sum() * ranks / torch.Size(shape).numel()).backward()
        grads = [parameter.grad.clone() for parameter in norm.parameters()]
        found.append([out.detach(), x.grad, *grads, *(buffer.clone() for buffer in norm.buffers())])
        norm.zero_grad()
    return found


SHARES = {"uneven": (slice(5), slice(5, None)), "one without rows": (slice(0), slice(None))}


def in_two(share, rank):
    return steps(BatchNorm(5), DistributedDataParallel, SHARES[share][rank], 2)


# What CUDA's kernels for batch norms over ranks are defined to give, in plain operations.


def batch_norm_stats(x, eps):
    var, mean = torch.var_mean(x, over(x), correction=0)
    return mean, (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(_x, means, scales, running_mean, running_var, share, eps, counts):
    mean, squares, total = torch.zeros_like(means[0]), torch.zeros_like(means[0]), torch.zeros(())
    for one, scale, count in zip(means, scales, counts, strict=True):  # one after another: it cannot begin with 0 rows
        part = count / (total + count)
        squares = squares + (scale**-2 - eps) * count  # nan where a rank without rows gives 0 for its scale
        squares = squares + (mean - one).square() * total * part
        mean, total = mean * (total / (total + count)) + one * part, total + count
    running_mean.lerp_(mean, share)
    running_var.lerp_(squares / (total - 1), share)
    return mean, (squares / total + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, scale, _eps):
    return (x - rows(mean, x)) * rows(scale * weight, x) + rows(bias, x)


def batch_norm_backward_reduce(grad, x, mean, scale, _weight, *_wanted):
    of_bias, of_weight = grad.sum(over(x)), (grad * (x - rows(mean, x))).sum(over(x))
    return of_bias, of_weight, of_weight * scale, of_bias.clone()


def batch_norm_backward_elemt(grad, x, mean, scale, weight, sum_dy, sum_dy_xmu, counts):
    slope = (x - rows(mean, x)) * rows(scale**2 * sum_dy_xmu / counts.sum(), x)
    return (grad - rows(sum_dy / counts.sum(), x) - slope) * rows(scale * weight, x)


def over(x):
    return [0, *range(2, x.ndim)]


def rows(channels, x):
    return channels.view(-1, *[1] * (x.ndim - 2))


class OnCuda(BatchNorm):
    """What it does on a GPU."""

    def forward(self, x):
        own = self.weight, self.bias, self.running_mean, self.running_var, self.eps, self._share()
        return _FusedBatchNorm.apply(x, *own)


def in_two_by_kernels(share, rank):
    for name in [name for name in globals() if re.fullmatch("batch_norm_(stats|gather.*|elemt|backward.*)", name)]:
        setattr(torch, name, globals()[name])  # in this process alone
    return steps(OnCuda(5), DistributedDataParallel, SHARES[share][rank], 2)


@pytest.mark.two_ranks
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("call", [in_two, in_two_by_kernels])
def test_two_ranks_equal_torch_on_one_in_forward_backward_and_running_statistics(call, share):
    parts = on_ranks(partial(call, share), 2)
    whole = steps(nn.BatchNorm1d(5), lambda norm: norm, slice(None))
    for one, first, second in zip(whole, *parts, strict=True):
        out, grad, *rest = one
        torch.testing.assert_close(torch.cat([first[0], second[0]]), out)
        # gradients of data parallel are means over ranks
        torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, grad, atol=1e-6, rtol=1e-4)
        for index, wanted in enumerate(rest, 2):
            torch.testing.assert_close(first[index], wanted, atol=1e-5, rtol=1e-4)
            assert torch.equal(first[index], second[index])


def test_alone_it_is_torchs_own_bit_for_bit():
    ours, torchs = BatchNorm(5), nn.BatchNorm2d(5)
    x = torch.randn(8, 5, 3, 2)
    assert torch.equal(ours(x), torchs(x))
    assert ours.state_dict().keys() == torchs.state_dict().keys()


def test_norms_of_libraries_become_ones_over_all_ranks_and_keep_names_and_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    x = torch.randn(6, 3, 2, 2)
    names = list(net.state_dict())
    made = batch_norm_over_ranks(net)
    assert made is net
    assert list(made.state_dict()) == names
    assert isinstance(made[1], BatchNorm)
    assert isinstance(made[2][0], BatchNorm)
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    other.load_state_dict(made.state_dict())
    assert torch.equal(made(x), other(x))
    assert (made(x) >= 0).all()  # timm's activation came along


def test_a_batch_that_it_relates_is_not_split(toy, monkeypatch):
    read, installed = load(str(toy("jepa")), ("run.micro=4",))
    make = installed.find("predictors", "guess").make
    start = make.__init__

    def with_norm(self, encoder):
        start(self, encoder)
        self.norm = BatchNorm(encoder.width)

    monkeypatch.setattr(make, "__init__", with_norm)
    with pytest.raises(RecipeError, match=r"predictor.norm relates all images of a batch"):
        check(read, installed)
