"""How wrong was the guess, beside other images? Views of one image attract each other, all other images repel."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Pairing, Progress, Schedule, Signal, gather, hookimpl, world_size

Result = tuple[Tensor, dict[str, Tensor]]
SIMCLR = Schedule.parse(0.1)


class NtXent(nn.Module):
    """SimCLR's contrast: each view must find the other of its image among all views of all images on all ranks.

    Chen et al. 2020, section 2.1: softmax of cosines over `temperature`, the view itself left out, mean over views.

    Args:
        temperature: what cosines are divided by.
    """

    needs_target = False
    whole_batch = True

    def __init__(self, signal: Signal, *, temperature: Annotated[Schedule, Field(gt=0)] = SIMCLR) -> None:
        super().__init__()
        if signal.kind != "image":
            raise ValueError("this loss is of whole images, but the signal is of patches")
        self.temperature = Schedule.parse(temperature)

    def forward(self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress) -> Result:
        """Projections [2 b e]. Raises ValueError for another number of views, and for a batch of one image."""
        views, b, _ = prediction.shape
        if views != 2:
            raise ValueError(f"contrasts 2 views of each image, found {views}")
        if b * world_size() < 2:
            raise ValueError("contrasts each image with others, but the batch has one: 2 images or more")
        mine = F.normalize(prediction, dim=-1)
        everyone = torch.cat([gather(mine[0]), gather(mine[1])])  # (2 images) e
        images = len(everyone) // 2
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        own = rank * b + torch.arange(b, device=mine.device)
        own, other = torch.cat([own, own + images]), torch.cat([own + images, own])
        scores = mine.flatten(0, 1) @ everyone.T / self.temperature(at)
        scores = scores.scatter(1, own[:, None], float("-inf"))
        found = (scores.detach().argmax(1) == other).float().mean()
        return F.cross_entropy(scores, other), {"found": found}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """The loss `nt_xent`."""
    return {"nt_xent": NtXent}
