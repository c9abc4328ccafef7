"""Who guesses? Queries that only read what the encoder says, all of them in one pass; with prototypes at will."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Patches, Progress, Signal, Tokens
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, Deviation
from sslzoo.nn import WeightNorm, key_mask, start_normal
from sslzoo_rope.layers import RopeBlock, angles, positions_around, positions_of, rms_norm


class RopeCross(nn.Module):
    """CAPI's predictor (Darcet et al. 2025, section 3): queries read patches and registers, and never each other.

    Args:
        depth: layers.
        heads: attention heads.
        prototypes: score each normalized guess against this many directions, each with a gain; 0 for the guess itself.
        init: deviation of the starting weights.
    """

    projector = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        depth: Count = 12,
        heads: Count = 16,
        prototypes: Literal[0] | Codes = 0,
        init: Deviation = 0.02,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.outputs = {"patch": Signal("patch", prototypes or encoder.width)}
        self.mask_token = nn.Parameter(torch.randn(1, 1, encoder.width) * init)
        self.blocks = nn.ModuleList(RopeBlock(encoder.width, heads) for _ in range(depth))
        self.apply(partial(start_normal, std=init))
        self.prototypes = WeightNorm(encoder.width, prototypes, gain=True) if prototypes else None

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Guesses or scores at target patches, [s k d] -> {"patch": [t e]}."""
        if target is None:
            return {}
        seen, context, ahead = positions_of(tokens.grid, tokens.index), tokens.patches, 0
        if tokens.prefix is not None:
            ahead = tokens.prefix.shape[1]
            seen = torch.cat([positions_around(seen, tokens.length, ahead), seen], 1)
            context = torch.cat([tokens.prefix, context], 1)
        channels = context.shape[-1] // self.heads
        mask = key_mask(tokens.length, tokens.index.shape[1], ahead)
        asked = target.index.flatten(1)
        angle, context_angle = angles(positions_of(tokens.grid, asked), channels), angles(seen, channels)
        x = self.mask_token.expand(*asked.shape, -1)
        for block in self.blocks:
            x = block(x, angle, context, context_angle, mask)
        guess = target.flat(rms_norm(x).unflatten(1, target.index.shape[1:]))
        return {"patch": guess if self.prototypes is None else self.prototypes(F.normalize(guess, dim=-1))}
