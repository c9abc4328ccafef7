"""Which of many codes is right? A frozen codebook of pixels, or DALL-E's; and the cross-entropy of guesses."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Pairing, Progress, Reading, Schedule, Signal, Student, hookimpl
from sslzoo.keys import Codes, Width
from sslzoo.nn import full_precision, pixels_of, target_pixels
from sslzoo_codes.dalle import Dalle

Result = tuple[Tensor, dict[str, Tensor]]
Temperature = Annotated[Schedule, Field(gt=0)]
ONE = Schedule.parse(1.0)


class Codebook(nn.Module):
    """The code of a patch is the nearest of random directions to its pixels, projected at random: nothing learns.

    The random-projection quantizer of BEST-RQ (Chiu et al. 2022, arXiv 2202.01855), on pixels: each patch is
    normalized, projected to a few numbers by a fixed random matrix (Xavier-uniform), and compared by cosine with fixed
    normal vectors. It needs no download, and stands where BEiT and CAE use a trained tokenizer.

    Args:
        codes: how many codes.
        width: numbers that a patch is projected to.
        seed: of the projection and the codes, which are part of the run's state.
    """

    projection: Tensor
    codes: Tensor

    def __init__(self, student: Student, *, codes: Codes = 8192, width: Width = 16, seed: int = 0) -> None:
        super().__init__()
        self.outputs = {"code": Signal("patch", codes, ids=True)}
        self.patch: tuple[int, int] = student.encoder.patch  # type: ignore[attr-defined]
        rng, pixels = torch.Generator().manual_seed(seed), pixels_of(student.encoder)
        bound = (6 / (pixels + width)) ** 0.5
        projection = (torch.rand(pixels, width, generator=rng, device="cpu") * 2 - 1) * bound
        directions = F.normalize(torch.randn(codes, width, generator=rng, device="cpu"), dim=-1)
        self.register_buffer("projection", torch.empty(pixels, width).copy_(projection))  # a rehearsal has no numbers
        self.register_buffer("codes", torch.empty(codes, width).copy_(directions))

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> dict[str, Tensor]:
        """{"code": [t]}, the number of each target patch's code, of every group with a mask that a teacher reads."""
        pixels = target_pixels(batch, self.patch)
        if pixels is None:
            return {}
        with full_precision(pixels.device):  # the nearest of many wants all digits
            x = F.layer_norm(pixels, pixels.shape[-1:]) @ self.projection
            return {"code": (F.normalize(x, dim=-1) @ self.codes.T).argmax(-1)}

    def after_step(self, student: Student, at: Progress) -> None:
        """Nothing here learns."""


class CrossEntropy(nn.Module):
    """Cross-entropy of scores with the right codes, mean over rows; the figure `accuracy` is the share guessed right.

    Args:
        temperature: what the scores are divided by.
    """

    needs_target = True
    class_ids = True

    def __init__(self, signal: Signal, *, temperature: Temperature = ONE) -> None:
        super().__init__()
        _check(signal)
        self.temperature = Schedule.parse(temperature)

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """Scores [t p] against codes [t]."""
        rows = F.cross_entropy(prediction / self.temperature(at), target, reduction="none")
        right = prediction.argmax(-1) == target
        return (pairing.weight * rows).sum(), {"accuracy": right.float().mean()}


class SoftCrossEntropy(nn.Module):
    """Cross-entropy of scores with shares of codes, mean over rows (CAPI, of a teacher's assignments).

    Args:
        temperature: what the scores are divided by.
    """

    needs_target = True

    def __init__(self, signal: Signal, *, temperature: Temperature = ONE) -> None:
        super().__init__()
        _check(signal)
        self.temperature = Schedule.parse(temperature)

    def forward(self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress) -> Result:
        """Scores [t p] against shares [t p]."""
        rows = -(target * (prediction / self.temperature(at)).log_softmax(-1)).sum(-1)
        doubt = -torch.xlogy(target, target.clamp(min=0)).sum(-1)
        return (pairing.weight * rows).sum(), {"target_entropy": doubt.mean()}


def _check(signal: Signal) -> None:
    if signal.kind != "patch":
        raise ValueError(f"this loss is of target patches, but the signal is of kind {signal.kind}")


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """The target generators `codebook` and `dalle`."""
    return {"codebook": Codebook, "dalle": Dalle}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """The losses `cross_entropy` and `soft_cross_entropy`."""
    return {"cross_entropy": CrossEntropy, "soft_cross_entropy": SoftCrossEntropy}
