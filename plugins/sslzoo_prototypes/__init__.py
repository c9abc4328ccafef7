"""How wrong was the guess, as shares of prototypes? Cross-entropy of two distributions, scores given or made here."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Pairing, Progress, Schedule, Signal, all_mean, hookimpl
from sslzoo.keys import Codes, Count, NotNegative
from sslzoo.nn import mean_of_pairs, sinkhorn

Result = tuple[Tensor, dict[str, Tensor]]
Sharpness = Annotated[Schedule, Field(gt=0)]
CONSTANT = {name: Schedule.parse(value) for name, value in (("student", 0.1), ("teacher", 0.04), ("sharpen", 0.25))}


class Distill(nn.Module):
    """Cross-entropy from the teacher's softmax to the student's, over scores of prototypes.

    DINO (Caron et al. 2021, section 3.1) of images: the mean over pairs of different views. iBOT (Zhou et al. 2022,
    section 3.1) of patches, average: images. What keeps all from one prototype is the center of the teacher
    (`ema`), or `balance` here (Oquab et al. 2023, DINOv2, section 4: Sinkhorn over the targets of the batch).

    Args:
        temperature: of the student's softmax.
        teacher_temperature: of the teacher's; lower is sharper.
        balance: Sinkhorn's iterations over the targets of the batch (DINOv2: 3); 0 for none.
        average: of patches: over all rows; or over the rows of each masked view, then over all views, masked or not.
    """

    needs_target = True

    def __init__(
        self,
        signal: Signal,
        *,
        temperature: Sharpness = CONSTANT["student"],
        teacher_temperature: Sharpness = CONSTANT["teacher"],
        balance: Literal[0] | Count = 0,
        average: Literal["rows", "images"] = "rows",
    ) -> None:
        super().__init__()
        if average == "images" and signal.kind == "image":
            raise ValueError("average: images is of patches, but this signal is of whole images")
        self.average, self.own_mean = average, average == "images"
        self.balance, self.whole_batch = balance, balance > 0
        self.temperature, self.teacher_temperature = Schedule.parse(temperature), Schedule.parse(teacher_temperature)

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """Scores [v b p] against [u b p], or [t p] against [t p]."""
        wanted = self.shares(target, at)
        said = (prediction / self.temperature(at)).log_softmax(-1)
        figures = {"target_entropy": _entropy(wanted).sum() / max(1, wanted[..., 0].numel())}
        if prediction.ndim == 3:
            pairs = -torch.einsum("vbp,ubp->vu", said, wanted) / prediction.shape[1]
            return mean_of_pairs(pairs, pairing), figures
        rows = -(wanted * said).sum(-1)
        return (self._weight(pairing) * rows).sum(), figures

    @torch.no_grad()
    def shares(self, target: Tensor, at: Progress) -> Tensor:
        """Shares of prototypes that the targets [u b p] or [t p] call for; all views are balanced together."""
        return sinkhorn((target / self.teacher_temperature(at)).flatten(0, -2), self.balance).view_as(target)

    def _weight(self, pairing: Pairing) -> Tensor:
        if self.average == "rows":
            return pairing.weight
        own = pairing.weight.new_zeros(pairing.sequences)
        own = own.index_add(0, pairing.sequence, torch.ones_like(pairing.weight))
        return 1.0 / (own[pairing.sequence] * pairing.sequences)


class Assign(nn.Module):
    """Both sides are assigned to prototypes that learn; the guess is the teacher's sharpened, balanced assignment.

    MSN (Assran et al. 2022, section 3): cosine to each prototype, cross-entropy, and a term that wants all prototypes
    used: log p less the entropy of the mean guess. The target is balanced by Sinkhorn over the batch.

    Args:
        prototypes: how many directions.
        temperature: of both softmaxes.
        sharpen: exponent is its inverse, on the target's shares.
        balance: Sinkhorn's iterations over the targets of the batch; 0 for none.
        mean_entropy: weight of the term for using all prototypes.
        entropy: weight of the guesses' own mean entropy.
    """

    needs_target = True
    whole_batch = True

    def __init__(
        self,
        signal: Signal,
        *,
        prototypes: Codes = 1024,
        temperature: Sharpness = CONSTANT["student"],
        sharpen: Sharpness = CONSTANT["sharpen"],
        balance: Literal[0] | Count = 3,
        mean_entropy: NotNegative = 1.0,
        entropy: NotNegative = 0.0,
    ) -> None:
        super().__init__()
        if signal.kind != "image":
            raise ValueError("this loss is of whole images, but the signal is of patches")
        self.temperature, self.balance, self.sharpen = Schedule.parse(temperature), balance, Schedule.parse(sharpen)
        self.weights = mean_entropy, entropy
        bound = 1 / math.sqrt(signal.width)
        self.prototypes = nn.Parameter(torch.empty(prototypes, signal.width).uniform_(-bound, bound))

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """Projections [v b e] against [u b e]."""
        said = self._scores(prediction, at).log_softmax(-1)
        wanted = self.assignments(target, at)
        pairs = -torch.einsum("vbp,ubp->vu", said, wanted) / prediction.shape[1]
        cross = mean_of_pairs(pairs, pairing)
        shares = said.exp()
        mean = all_mean(shares.mean((0, 1)))
        unused = math.log(len(mean)) - _entropy(mean)
        doubt = -(shares * said).sum(-1).mean()
        figures = {"cross_entropy": cross, "mean_entropy": unused, "entropy": doubt}
        return cross + self.weights[0] * unused + self.weights[1] * doubt, figures

    @torch.no_grad()
    def assignments(self, target: Tensor, at: Progress) -> Tensor:
        """Shares of prototypes that the targets [u b e] call for: [u b p]."""
        return sinkhorn((self._scores(target, at) / self.sharpen(at)).log_softmax(-1), self.balance)

    def _scores(self, x: Tensor, at: Progress) -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).T / self.temperature(at)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares).sum(-1)


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """The losses `distill` and `assign`."""
    return {"distill": Distill, "assign": Assign}
