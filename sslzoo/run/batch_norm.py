"""How does batch norm take its statistics over the images of all ranks? Authors find it in `sslzoo.nn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.run.parallel import all_sum, gather, world_size


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of all ranks, on any device: [n d], [n d L] or [n d H W] -> the same shape.

    A recipe's batch is global, so its statistics are too: forward, backward and running statistics are those of one
    process with the whole batch (Ioffe & Szegedy 2015). Torch's SyncBatchNorm does it on GPUs only.
    """

    whole_batch = True  # statistics of micro-batches would be others

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm wants [n d], [n d L] or [n d H W], found {list(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - torch's is `input`
        """Each channel with mean 0 and variance 1, scaled and shifted."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        share = self._share()
        if x.device.type == "cuda":
            own = self.weight, self.bias, self.running_mean, self.running_var, self.eps, share
            return _FusedBatchNorm.apply(x, *own)  # type: ignore[return-value]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(exact, [0, *range(2, x.ndim)], correction=0)
        count = torch.full_like(mean, x.numel() / x.shape[1])
        means, variances, counts = gather(torch.stack([mean, var, count])[None]).unbind(1)  # ranks d
        total = counts.sum(0)
        means, variances = (torch.where(counts > 0, one, 0.0) for one in (means, variances))  # of ranks with rows
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.mul_(1 - share).add_(mean.detach(), alpha=share)
            self.running_var.mul_(1 - share).add_((var * total / (total - 1)).detach(), alpha=share)
        rows = (-1, *[1] * (x.ndim - 2))
        y = (exact - mean.view(rows)) * (var + self.eps).rsqrt().view(rows)
        if self.affine:
            y = y * self.weight.view(rows) + (0 if self.bias is None else self.bias.view(rows))
        return y.to(x.dtype)

    def _share(self) -> float:
        """What a step counts for in the running statistics; counts the step."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum


class _FusedBatchNorm(torch.autograd.Function):
    """The kernels of torch's SyncBatchNorm, which keep a third of the memory that plain operations would.

    Torch's own function asks the device which ranks have rows at all, and the host waits for the answer in every
    forward. Here ranks without rows (of whose images no patch is asked) come last: the kernel adds a count of 0 to what
    it has, but cannot begin with one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, eps: float, share: float) -> Tensor:
        x, channels = _dense(x), x.shape[1]
        rows = x.numel() // channels
        own_mean, own_scale = torch.batch_norm_stats(x, eps) if rows else _nothing(x, 2)
        own = torch.cat([own_mean, own_scale, own_mean.new_full((1,), rows)])
        ranks = gather(own[None])
        ranks = ranks[ranks[:, -1].argsort(descending=True, stable=True)]
        means, scales, counts = ranks.split([channels, channels, 1], 1)  # ranks d; ranks d; ranks 1
        scales = torch.where(counts > 0, scales, 1.0)  # its inverse is taken before it is multiplied by a count of 0
        means, scales, counts = means.contiguous(), scales.contiguous(), counts.flatten()
        mean, scale = torch.batch_norm_gather_stats_with_counts(x, means, scales, mean, var, share, eps, counts)
        ctx.save_for_backward(x, weight, mean, scale, counts.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps) if rows else torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, mean, scale, counts), grad, wanted = ctx.saved_tensors, _dense(grads[0]), ctx.needs_input_grad
        reduced: Any = _nothing(x, 4)
        if x.numel():
            reduced = torch.batch_norm_backward_reduce(grad, x, mean, scale, weight, *wanted[:3])
        of_x = None
        if wanted[0]:  # on all ranks, or on none
            sums = all_sum(torch.cat(reduced[:2]))
            weight = None if weight is None else weight.to(mean.dtype)
            of_channels: Any = (mean, scale, weight, *sums.chunk(2), counts)
            of_x = torch.batch_norm_backward_elemt(grad, x, *of_channels) if x.numel() else torch.empty_like(x)
        # Those of weight and bias are of this rank's rows; data parallel adds them up.
        return of_x, *(one if want else None for one, want in zip(reduced[2:], wanted[1:3], strict=True)), *[None] * 4


def _nothing(x: Tensor, many: int) -> Sequence[Tensor]:
    """Statistics of no rows: `many` zeros for each channel, of the precision that the kernels compute in."""
    return x.new_zeros(many, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)).unbind()


def _dense(x: Tensor) -> Tensor:
    """As torch's kernels for batch norm take it: channels last, or contiguous."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


class _BatchNormAct(BatchNorm):
    """What timm calls BatchNormAct2d, over all ranks: children `drop` and `act` follow the norm."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]


def batch_norm_over_ranks(module: nn.Module) -> nn.Module:
    """`module`, every batch norm in it (torch's or timm's) replaced by `BatchNorm`; parameters and names stay.

    For networks of libraries, such as timm's ResNets.
    """
    made = module
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchNorm):
        make = _BatchNormAct if hasattr(module, "act") else BatchNorm
        made = make(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        made._parameters, made._buffers, made.training = module._parameters, module._buffers, module.training
    for name, child in module.named_children():
        made.add_module(name, batch_norm_over_ranks(child))
    return made
