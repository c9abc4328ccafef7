"""Loss `variance-covariance`: keeps channels alive and apart. Beside I-JEPA's own loss, the idea of C-JEPA."""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo import Pairing, Progress, Signal, all_mean, hookimpl


class VarianceCovariance(nn.Module):
    """The variance and covariance terms of VICReg, over the rows of one signal of all ranks.

    Bardes et al. 2022, arXiv 2105.04906, equations 1 to 3; on the context encoder's own tokens beside I-JEPA: Mo and
    Tong 2024 (C-JEPA), arXiv 2410.19560. It has no target: `predict: encoder.context` is all it reads.

    Args:
        deviation: standard deviation that each channel is to have at the least.
        covariance: weight of the covariance term against the variance term.
        eps: added to variances before their root.
    """

    needs_target = False
    whole_batch = True  # moments relate all rows of a batch, so it cannot be split into micro-batches

    def __init__(self, signal: Signal, *, deviation: float = 1.0, covariance: float = 0.04, eps: float = 1e-4) -> None:
        super().__init__()
        if signal.kind == "image":
            raise ValueError("this loss reads rows of patches: encoder.context, or a signal of target patches")
        self.deviation, self.covariance, self.eps = deviation, covariance, eps

    def forward(
        self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[n e] -> 0-d. Weighted by `pairing.weight`, `all_mean` of sums is the mean over all rows."""
        weight = pairing.weight[:, None]
        centered = prediction - all_mean((weight * prediction).sum(0))
        moments = all_mean((weight * centered).T @ centered)  # [e e], of all ranks
        variances = moments.diagonal()
        spread = (self.deviation - (variances + self.eps).sqrt()).relu().mean()
        crossed = (moments.square().sum() - variances.square().sum()) / len(variances)
        return spread + self.covariance * crossed, {"std": (variances + self.eps).sqrt().mean()}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"variance-covariance": VarianceCovariance}
