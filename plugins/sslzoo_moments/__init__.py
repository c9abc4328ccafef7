"""How wrong was the guess, without negatives? Views agree, while the batch keeps its spread: moments, or a Gaussian."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslzoo import Pairing, Progress, Signal, all_mean, all_sum, hookimpl, world_size
from sslzoo.keys import NotNegative, Positive

Result = tuple[Tensor, dict[str, Tensor]]
Directions = Annotated[int, Field(ge=1, le=2**16)]
Knots = Annotated[int, Field(ge=2, le=1024)]


class _OfImages(nn.Module):
    """A term over a signal itself, of images [v b e] unless it says that it reads rows [n e]: it needs no target."""

    needs_target = False
    of: tuple[str, ...] = ("image",)

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        if signal.kind not in self.of:
            raise ValueError("this loss is of whole images, but the signal is of patches")


class Invariance(_OfImages):
    """Squared distance between the views of an image, mean over channels, images and views.

    VICReg (Bardes et al. 2022), against views. LeJEPA (Balestriero & LeCun 2025), against mean.

    Args:
        against: views (every other view of the image); mean (the mean of all its views); or global (the mean of those
            that a teacher would read: groups of the role both).
    """

    def __init__(self, signal: Signal, *, against: Literal["views", "mean", "global"] = "views") -> None:
        super().__init__(signal)
        self.against = against

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """[v b e]. Raises ValueError for a single view, or where none is global."""
        views = len(prediction)
        if views < 2:
            raise ValueError("compares the views of an image, but there is one: set views.NAME.count")
        if self.against == "global":
            if pairing.pairs == pairing.match.numel():
                raise ValueError("against: global, but no view is one that a teacher would read: set a role to both")
            wide = (~pairing.match).any(1)
            center = (prediction * wide[:, None, None]).sum(0) / wide.sum()
        else:
            center = prediction.mean(0)
        value = (prediction - center).square().mean()
        # The mean over pairs of different views is that to the mean view, times 2 v / (v - 1).
        return (2 * views / (views - 1) * value if self.against == "views" else value), {}


class Variance(_OfImages):
    """How far the deviation of each channel over the batch falls short of `least`, mean over channels and views.

    VICReg (Bardes et al. 2022, equation 1; the released code halves the sum over its two views, which is this mean).
    Rows of patches count as one view: over encoder.context, beside I-JEPA, C-JEPA (Mo & Tong 2024, arXiv 2410.19560).

    Args:
        least: the deviation from which on nothing is asked.
        eps: added to the variance.
    """

    whole_batch, of = True, ("image", "patch", "context")

    def __init__(self, signal: Signal, *, least: NotNegative = 1.0, eps: Positive = 1e-4) -> None:
        super().__init__(signal)
        self.least, self.eps = least, eps

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """[v b e]. Raises ValueError for a batch of one image."""
        x, weight = _centered(prediction, pairing)
        deviation = (all_sum((weight * x.square()).sum(1)) + self.eps).sqrt()
        return (self.least - deviation).relu().mean(), {"deviation": deviation.mean()}


class Covariance(_OfImages):
    """Squared covariances of different channels over the batch, summed over pairs and views, divided by channels.

    VICReg (Bardes et al. 2022, equation 4). Rows of patches count as one view, as in `variance`.
    """

    whole_batch, of = True, ("image", "patch", "context")

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """[v b e]. Raises ValueError for a batch of one image."""
        x, weight = _centered(prediction, pairing)
        shared = all_sum((weight * x).transpose(1, 2) @ x)  # v e e
        apart = shared.square().sum((1, 2)) - shared.diagonal(dim1=1, dim2=2).square().sum(1)
        return apart.sum() / x.shape[-1], {}


class SigReg(_OfImages):
    """How far the batch is from a standard Gaussian, seen along random directions drawn anew each step.

    LeJEPA (Balestriero & LeCun 2025): for each view and direction the Epps-Pulley statistic, the squared distance of
    characteristic functions under a Gaussian weight, by the trapezoid rule on [0, reach]; times the images of the
    batch; mean over directions and views. Directions are a function of the step alone, as published.

    Args:
        directions: how many.
        knots: points of the trapezoid rule.
        reach: where it ends.
    """

    whole_batch = True

    def __init__(
        self, signal: Signal, *, directions: Directions = 1024, knots: Knots = 17, reach: Positive = 3.0
    ) -> None:
        super().__init__(signal)
        self.directions, self.knots, self.reach = directions, knots, reach

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """[v b e]."""
        return self.statistic(prediction, self.draw(prediction, at)).mean(), {}

    def draw(self, x: Tensor, at: Progress) -> Tensor:
        """The directions of a step, columns of length 1: [e directions]."""
        generator = torch.Generator().manual_seed(at.step)
        gaussian = torch.randn(x.shape[-1], self.directions, generator=generator, device="cpu")
        drawn = gaussian / gaussian.norm(dim=0)
        drawn = drawn.pin_memory() if x.is_cuda else drawn  # so that the copy waits for nothing
        return drawn.to(x, non_blocking=True)

    def statistic(self, x: Tensor, directions: Tensor) -> Tensor:
        """Of each view and direction: [.. b e] and [e k] -> [.. k]."""
        t = torch.linspace(0, self.reach, self.knots, dtype=x.dtype, device=x.device)
        gauss = (-t.square() / 2).exp()
        weight = torch.full_like(t, 2 * self.reach / (self.knots - 1))  # doubled: the integrand is even in t
        weight[0] /= 2
        weight[-1] /= 2
        angle = (x @ directions)[..., None] * t  # .. b k t
        real, imaginary = all_mean(angle.cos().mean(-3)), all_mean(angle.sin().mean(-3))
        gap = (real - gauss).square() + imaginary.square()
        return gap @ (weight * gauss) * (x.shape[-2] * world_size())


def _centered(x: Tensor, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Less the mean over all ranks, [v b e]; and what each row adds to a moment, [b 1]. Rows [n e] are as one view."""
    if x.ndim == 2:
        weight = pairing.weight[:, None]
        return (x - all_mean((weight * x).sum(0)))[None], weight / world_size()
    images = x.shape[1] * world_size()
    if images < 2:
        raise ValueError("moments over the batch want 2 images or more, found 1")
    return x - all_mean(x.mean(1, keepdim=True)), x.new_full((x.shape[1], 1), 1 / (images - 1))


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """The losses `invariance`, `variance`, `covariance` and `sigreg`."""
    return {"invariance": Invariance, "variance": Variance, "covariance": Covariance, "sigreg": SigReg}
