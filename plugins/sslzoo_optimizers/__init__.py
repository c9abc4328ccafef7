"""How do weights move? Torch's and timm's optimizers by name, and LARS as its users wrote it.

Each is made with torch's parameter groups; the engine writes `lr` and `weight_decay` into them before every step.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.lamb import Lamb as TimmLamb
from timm.optim.muon import Muon as TimmMuon
from torch import Tensor
from torch.distributed.tensor import DTensor

from sslzoo import hookimpl
from sslzoo.keys import BelowOne, Epsilon, Positive

Groups = list[dict[str, Any]]


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017); torch's, fused.

    Args:
        betas: shares of the running means of the gradient and of its square kept at a step.
        eps: added to the root of the second.
    """

    shards = True

    def __init__(self, groups: Groups, *, betas: tuple[BelowOne, BelowOne] = (0.9, 0.999), eps: Epsilon = 1e-8) -> None:
        super().__init__(groups, lr=0.0, betas=betas, eps=eps, fused=True)


class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013); torch's, fused.

    Args:
        momentum: share of the running sum of gradients kept at a step.
        nesterov: look ahead along the momentum.
    """

    shards = True

    def __init__(self, groups: Groups, *, momentum: BelowOne = 0.9, nesterov: bool = False) -> None:
        if nesterov and not momentum:
            raise ValueError("nesterov looks ahead along the momentum: give momentum above 0")
        split = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
        fused = not split  # torch's fused kernel takes no pieces of weights
        super().__init__(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=fused)
        for group in self.param_groups if momentum else ():
            for parameter in group["params"]:  # torch makes it in the first step, unfilled if that step is skipped
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class LARS(torch.optim.Optimizer):
    """Momentum whose steps are as long as their weights are large (You et al. 2017), as in BYOL and VICReg.

    g <- g + decay w;  g <- trust |w| / |g| g;  m <- momentum m + g;  w <- w - lr m. The second for tensors of two or
    more dimensions only: biases and norms are not adapted (`optim.decay_vectors: false` takes their decay away too).

    Args:
        momentum: share of the running sum of steps kept.
        trust: length of a step over the length of its weights, at learning rate 1.
    """

    shards = True
    # As torch's fused optimizers: the engine tells in `found_inf` (0-d, 1 or 0), on the device, whether to skip a step.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, groups: Groups, *, momentum: BelowOne = 0.9, trust: Positive = 0.001) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum, self.trust = momentum, trust

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], group["weight_decay"])

    def _move(self, weight: Tensor, grad: Tensor, lr: float, decay: float) -> None:
        step = grad.add(weight, alpha=decay) if decay else grad.clone()
        if weight.ndim > 1:
            own, of_step = _norm(weight), _norm(step)
            step = step.mul_(torch.where((own > 0) & (of_step > 0), self.trust * own / of_step, 1.0))
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"]
        moved = buffer.mul(self.momentum).add_(step)
        if self.found_inf is None:
            buffer.copy_(moved)
            weight.add_(moved, alpha=-lr)
        else:
            skipped = self.found_inf > 0
            buffer.copy_(torch.where(skipped, buffer, moved))
            weight.sub_(torch.where(skipped, 0.0, moved), alpha=lr)


class Lamb(TimmLamb):
    """AdamW whose steps are as long as their weights are large (You et al. 2019); timm's, without its own clipping.

    Args:
        betas: shares of the running means of the gradient and of its square kept at a step.
        eps: added to the root of the second.
    """

    shards = False

    def __init__(self, groups: Groups, *, betas: tuple[BelowOne, BelowOne] = (0.9, 0.999), eps: Epsilon = 1e-6) -> None:
        super().__init__(groups, lr=0.0, betas=betas, eps=eps, max_grad_norm=None)


class Muon(TimmMuon):
    """Momentum with orthogonal steps for matrices (Jordan et al. 2024), AdamW for the rest; timm's.

    Steps are scaled so that AdamW's learning rate and decay suit both (Liu et al. 2025).

    Args:
        momentum: share of the running mean of gradients kept, for matrices.
        nesterov: look ahead along the momentum.
        betas: AdamW's, for what is no matrix.
    """

    shards = False

    def __init__(
        self,
        groups: Groups,
        *,
        momentum: BelowOne = 0.95,
        nesterov: bool = True,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.95),
    ) -> None:
        super().__init__(groups, lr=0.0, momentum=momentum, nesterov=nesterov, betas=betas)


def _norm(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@hookimpl
def sslzoo_optimizers() -> dict[str, type]:
    """The optimizers `adamw`, `sgd`, `lars`, `lamb` and `muon`."""
    return {"adamw": AdamW, "sgd": SGD, "lars": LARS, "lamb": Lamb, "muon": Muon}
