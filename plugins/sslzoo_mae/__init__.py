"""Who guesses, in MAE? A decoder over all positions, hidden ones filled with a token (He et al. 2021, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, Width
from sslzoo.nn import Block, LayerNorm, Positions, laid_out, said_width, splits, start_xavier


class Decoder(nn.Module):
    """MAE's decoder: predicts target patches, their pixels or another target, from visible tokens and mask tokens.

    Args:
        width: channels inside.
        depth: blocks.
        heads: attention heads.
        to: guess pixels of a patch (MAE), tokens (as wide as the encoder), or scores of so many codes.
    """

    projector = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: Width = 512,
        depth: Count = 8,
        heads: Count = 16,
        to: Literal["tokens", "pixels"] | Codes = "pixels",
    ) -> None:
        super().__init__()
        splits(width, heads)
        said = said_width(encoder, to)
        self.outputs = {"patch": Signal("patch", said)}
        self.decoder_embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Positions(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, said)
        self.apply(start_xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Guesses of target patches, [s k d] -> {"patch": [t e]}."""
        if target is None:
            return {}
        table = self.positions(tokens.grid, tokens.patches.device)
        seen = self.decoder_embed(tokens.patches)
        # Class token and registers have no position: their row of the position table is zero.
        x = self._everywhere(seen, tokens) + table
        ahead = 0
        if tokens.prefix is not None:
            x = torch.cat([self.decoder_embed(tokens.prefix), x], 1)
            ahead = tokens.prefix.shape[1]
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        # Only the targets are read in the end, so only they ask in the last block.
        asked = last(target.take(x[:, ahead:]).flatten(1, 2), source=x)  # s (m q) w
        guess = target.flat(asked.unflatten(1, target.index.shape[1:]))
        return {"patch": self.decoder_pred(self.decoder_norm(guess))}

    def _everywhere(self, seen: Tensor, tokens: Tokens) -> Tensor:
        """What was seen where it was, the mask token elsewhere: [s k w] -> [s N w]."""
        count = tokens.grid[0] * tokens.grid[1]
        return laid_out(seen, tokens, self.mask_token.to(seen.dtype).expand(len(seen), count + 1, -1))


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `mae`."""
    return {"mae": Decoder}
