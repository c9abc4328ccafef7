"""How wrong was the guess? Distances between a guess and what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Pairing, Progress, Signal, hookimpl
from sslzoo.keys import Positive
from sslzoo.nn import mean_of_pairs

Result = tuple[Tensor, dict[str, Tensor]]


def over_rows(
    distance: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor, pairing: Pairing
) -> Tensor:
    """Mean of a distance [.. e] x [.. e] -> [..]: over rows of patches [t e], or over image pairs that may meet.

    Images [v b e] meet [u b e] where `pairing.match` holds.
    """
    if prediction.ndim == 2:
        return (pairing.weight * distance(prediction, target)).sum()
    each = distance(prediction[:, None], target[None]).mean(-1)  # v u
    return mean_of_pairs(each, pairing)


class SmoothL1(nn.Module):
    """Smooth L1 distance, mean over channels and rows (I-JEPA's released code).

    Args:
        beta: where the square turns into a line; data2vec uses 2, SimMIM 0, which is the absolute difference.
    """

    needs_target = True

    def __init__(self, signal: Signal, *, beta: Annotated[float, Field(ge=0, le=1000)] = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """[t e] against [t e], or [v b e] against [u b e]."""
        return over_rows(self._distance, prediction, target, pairing), {}

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        return F.smooth_l1_loss(a, b, reduction="none", beta=self.beta).mean(-1)


class Mse(nn.Module):
    """Squared distance: the mean, or the sum of the I-JEPA paper's equation 1.

    Args:
        reduce: mean over channels and rows; or sum over the channels and patches of a block, then mean over blocks.
    """

    needs_target = True

    def __init__(self, signal: Signal, *, reduce: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if reduce == "sum" and signal.kind == "image":
            raise ValueError("reduce: sum is over the patches of a block, but this signal is of whole images")
        self.reduce, self.own_mean = reduce, reduce == "sum"

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """[t e] against [t e], or [v b e] against [u b e]."""
        if self.reduce == "sum":
            return (prediction - target).square().sum() / pairing.blocks, {}
        return over_rows(lambda a, b: (a - b).square().mean(-1), prediction, target, pairing), {}


class Cosine(nn.Module):
    """One minus the cosine, times `scale` (2: the squared distance of normalized vectors, as BYOL).

    Args:
        scale: what the distance is multiplied by.
    """

    needs_target = True

    def __init__(self, signal: Signal, *, scale: Positive = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """[t e] against [t e], or [v b e] against [u b e]."""
        value = over_rows(lambda a, b: 1.0 - F.cosine_similarity(a, b, dim=-1), prediction, target, pairing)
        return self.scale * value, {}


class Mean(nn.Module):
    """The mean of a signal that is itself a loss, such as the misfit of `clusters`."""

    needs_target = False

    def __init__(self, signal: Signal) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """[t e] or [v b e]."""
        if prediction.ndim == 2:
            return (pairing.weight * prediction.mean(-1)).sum(), {}
        return prediction.mean(), {}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """The losses `smooth_l1`, `mse`, `cosine` and `mean`."""
    return {"smooth_l1": SmoothL1, "mse": Mse, "cosine": Cosine, "mean": Mean}
