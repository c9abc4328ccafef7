"""A plugin of three families: target generator `color-words`, predictor `words` and loss `word-entropy`.

Which of K colors is nearest to the mean of each hidden patch: class ids, guessed as logits. A small stand-in for the
visual tokens of BEiT (Bao et al. 2022, arXiv 2106.08254).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Pairing, Patches, Progress, Reading, Signal, Student, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.nn import Positions, patchify


class ColorWords(nn.Module):
    """The nearest of some colors, for each hidden patch: class ids.

    Args:
        words: colors, drawn once from a normal distribution with a seed of their own.
    """

    def __init__(self, student: Student, *, words: int = 16) -> None:
        super().__init__()
        self.patch = student.encoder.patch  # type: ignore[attr-defined] - encoders with square patches have it
        self.outputs = {"word": Signal("patch", words, ids=True)}
        colors = torch.randn(words, 3, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.register_buffer("colors", colors.to(torch.get_default_device()))

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> Mapping[str, Tensor]:
        """{"word": [t] of 0 .. words-1}."""
        found = []
        for group in batch.groups.values():
            if group.mask is not None:
                patches = patchify(group.pixels.flatten(0, 1), self.patch).unflatten(-1, (-1, 3)).mean(-2)  # s N 3
                target = group.mask.target
                found.append(target.flat(target.take(group.mask.rows(patches))))
        return {"word": (torch.cat(found)[:, None] - self.colors).square().sum(-1).argmin(-1)}

    def after_step(self, student: Student, at: Progress) -> None:
        """Nothing follows."""


class Words(nn.Module):
    """Logits of each hidden patch, from its place and the mean of what is seen.

    Args:
        words: how many words there are to choose from.
    """

    blocks_apart = True
    projector = None

    def __init__(self, encoder: Encoder, *, words: int = 16) -> None:
        super().__init__()
        self.outputs = {"word": Signal("patch", words)}
        self.positions, self.blocks = Positions(encoder.width), nn.ModuleList()
        self.leave = nn.Linear(encoder.width, words)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"word": [t e]}."""
        if target is None:
            return {}
        seen, length = tokens.patches, tokens.length
        if length is not None:
            true = torch.arange(seen.shape[1], device=seen.device) < length[:, None]
            seen = seen * true[..., None] * (seen.shape[1] / length[:, None, None])
        place = self.positions(tokens.grid, seen.device)[target.index]  # s m q d
        return {"word": target.flat(self.leave(F.gelu(seen.mean(1)[:, None, None] + place)))}


class WordEntropy(nn.Module):
    """Cross-entropy of class ids, weighted mean over patches; logs how often the likeliest word is right."""

    needs_target = True
    class_ids = True

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        if signal.kind != "patch":
            raise ValueError(f"this loss reads patches, but was given {signal.kind} signals")

    def forward(
        self, prediction: Tensor, target: Tensor, pairing: Pairing, at: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[t e] against [t]."""
        rows = F.cross_entropy(prediction, target, reduction="none")
        right = (prediction.argmax(-1) == target).float()
        return (rows * pairing.weight).sum(), {"right": (right * pairing.weight).sum()}


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"color-words": ColorWords}


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"words": Words}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"word-entropy": WordEntropy}
