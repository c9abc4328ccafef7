"""Who guesses, in I-JEPA? A narrow transformer over context and mask tokens; and a cheaper one that only reads."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, Deviation, Width
from sslzoo.nn import (
    Block,
    LayerNorm,
    Positions,
    ahead,
    attention,
    joint_mask,
    key_mask,
    said_width,
    splits,
    start_normal,
)

# Depth and heads for each encoder width (Assran et al. 2023, appendix A.1, and the released settings); the heads are
# the encoder's. The two smallest were never published with a depth: they take that of the next.
PUBLISHED = {192: (6, 3), 384: (6, 6), 768: (6, 12), 1024: (12, 16), 1280: (12, 16), 1408: (16, 16)}


class Joint(nn.Module):
    """I-JEPA's predictor: context and mask tokens attend to each other, each target block apart from the others.

    Assran et al. 2023, section 3 and appendix A.1.

    Args:
        width: channels inside.
        depth: blocks; the published number for the encoder's width if left out.
        heads: attention heads; as depth.
        to: guess tokens (as wide as the encoder), pixels of a patch, or scores of so many codes.
        init: deviation of the starting weights.
    """

    projector = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: Width = 384,
        depth: Count | None = None,
        heads: Count | None = None,
        to: Literal["tokens", "pixels"] | Codes = "tokens",
        init: Deviation = 0.02,
    ) -> None:
        super().__init__()
        depth, heads = _published(encoder.width, depth, heads)
        splits(width, heads)
        said = said_width(encoder, to)
        self.outputs = {"patch": Signal("patch", said)}
        self.predictor_embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Positions(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.predictor_norm = LayerNorm(width)
        self.predictor_proj = nn.Linear(width, said)
        self.apply(partial(start_normal, std=init))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Guesses of target patches, [s k d] -> {"patch": [t e]}."""
        if target is None:
            return {}
        s, m, q = target.index.shape
        table = self.positions(tokens.grid, tokens.patches.device)
        seen = self.predictor_embed(tokens.patches) + table[tokens.index]
        asked = self.mask_token + table[target.index.flatten(0, 1)]
        mask = joint_mask(tokens, target)
        # Context tokens are the same in all blocks of targets until they have attended, and are not read in the end.
        *blocks, last = self.blocks
        x = blocks[0](asked, mask, shared=seen) if blocks else ahead(seen, asked)  # (s m) (k q) w
        for block in blocks[1:]:
            x = block(x, mask)
        x = last(x[:, -q:], mask, source=x)
        guess = self.predictor_proj(self.predictor_norm(x))
        return {"patch": target.flat(guess.unflatten(0, (s, m)))}


class Cross(nn.Module):
    """Queries read the context once a layer and never each other: all blocks in one pass, cheaper than `ijepa`.

    As CAPI's and CrossMAE's predictors (Darcet et al. 2025; Fu et al. 2024).

    Args:
        width: channels inside.
        depth: layers; the depth published for `ijepa` at the encoder's width if left out.
        heads: attention heads; as depth.
        to: guess tokens (as wide as the encoder), pixels of a patch, or scores of so many codes.
        init: deviation of the starting weights.
    """

    projector = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: Width = 384,
        depth: Count | None = None,
        heads: Count | None = None,
        to: Literal["tokens", "pixels"] | Codes = "tokens",
        init: Deviation = 0.02,
    ) -> None:
        super().__init__()
        depth, heads = _published(encoder.width, depth, heads)
        splits(width, heads)
        said = said_width(encoder, to)
        self.outputs = {"patch": Signal("patch", said)}
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Positions(width)
        self.blocks = nn.ModuleList(Read(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.project = nn.Linear(width, said)
        self.apply(partial(start_normal, std=init))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Guesses of target patches, [s k d] -> {"patch": [t e]}."""
        if target is None:
            return {}
        table = self.positions(tokens.grid, tokens.patches.device)
        seen = self.embed(tokens.patches) + table[tokens.index]
        x = self.mask_token + table[target.index.flatten(1)]  # s (m q) w
        mask = key_mask(tokens.length, tokens.index.shape[1])
        for block in self.blocks:
            x = block(x, seen, mask)
        guess = self.project(self.norm(x))
        return {"patch": target.flat(guess.unflatten(1, target.index.shape[1:]))}


class Read(nn.Module):
    """One layer of `cross`: queries attend to the context, then an MLP; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm_context, self.norm2 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """[s n w] queries, [s k w] context -> [s n w]."""
        q = self.q(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_context(context)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        read = attention(q, k, v, mask)
        x = x + self.proj(read.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _published(width: int, depth: int | None, heads: int | None) -> tuple[int, int]:
    if (depth is None or heads is None) and width not in PUBLISHED:
        known = ", ".join(map(str, PUBLISHED))
        raise ValueError(f"depth, heads: nothing is published for an encoder {width} wide (only {known}); give both")
    named = PUBLISHED.get(width, (0, 0))
    return (named[0] if depth is None else depth), (named[1] if heads is None else heads)
