"""Layers that know positions by rotation (Su et al. 2021, RoPE), as CAPI arranges them (Darcet et al. 2025)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Grid
from sslzoo.contracts import true_entries
from sslzoo.nn import DropPath, attention, splits

EPS = 1e-5
HIGHEST, LOWEST = 7.0, 7e-4  # turns over the image, of the first and the last pair of channels


def rms_norm(x: Tensor) -> Tensor:
    """Each token divided by its root mean square, nothing learned."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def angles(positions: Tensor, channels: int) -> Tensor:
    """How far each channel of a head is turned at positions [s k 2], (down, across) from 0 to 1: [s 1 k channels].

    The first half of the channels turns with the row, the second with the column.
    """
    power = torch.linspace(0, -1, channels // 4, dtype=torch.float64, device=positions.device)
    rates = (HIGHEST * (HIGHEST / LOWEST) ** power).float()
    turned = 2 * math.pi * positions[..., None] * rates.repeat(2)  # s k 2 channels/2
    return turned.flatten(2)[:, None]


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """[s heads k c] turned by [s 1 k c]. As published, a channel's partner is half a head away: on the other axis."""
    one, other = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-other, one], -1) * angle.sin()


def positions_of(grid: Grid, index: Tensor) -> Tensor:
    """Where patches lie, the outermost at 0 and 1: [s k] -> [s k 2]."""
    down, across = (max(1, side - 1) for side in grid)
    return torch.stack([index // grid[1] / down, index % grid[1] / across], -1)


def positions_around(positions: Tensor, length: Tensor | None, count: int) -> Tensor:
    """Positions of registers, in equal steps around the box of what is seen: [s k 2] -> [s count 2]."""
    low, high = positions, positions
    if length is not None:
        padding = ~true_entries(length, positions.shape[1])[..., None]
        low, high = positions.masked_fill(padding, math.inf), positions.masked_fill(padding, -math.inf)
    low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
    walk = 4 * torch.arange(count, device=positions.device) / max(1, count)
    down = walk.clamp(0, 1) - (walk - 2).clamp(0, 1)
    across = (walk - 1).clamp(0, 1) - (walk - 3).clamp(0, 1)
    return low + torch.stack([down, across], -1) * (high - low)


class RopeBlock(nn.Module):
    """Attention and MLP, both behind an RMS norm, no biases; queries may read another sequence than their own.

    Args:
        width: channels.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP over width.
        drop_path: rate of dropped residual branches.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        splits(width, heads)
        if width // heads % 4:
            raise ValueError(f"width, heads: rotation wants a multiple of 4 channels a head, found {width // heads}")
        self.heads, hidden = heads, int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        # One for each branch: a module drops the same samples all through a step.
        self.drop1, self.drop2 = (DropPath(drop_path) if drop_path else nn.Identity() for _ in range(2))

    def forward(
        self,
        x: Tensor,
        angle: Tensor,
        context: Tensor | None = None,
        context_angle: Tensor | None = None,
        mask: Tensor | None = None,
        apart: bool = False,
    ) -> Any:
        """[s q d] at [s 1 q c], reading itself or [s k d] at [s 1 k c] -> [s q d]; `apart`: also what its MLP adds."""
        y = self.norm1(x)
        source, source_angle = (y, angle) if context is None or context_angle is None else (context, context_angle)
        q, k, v = (
            part(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, z in ((self.q, y), (self.k, source), (self.v, source))
        )
        q, k = turn(q, angle).to(v.dtype), turn(k, source_angle).to(v.dtype)
        read = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + self.drop1(self.proj(read))
        said = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = x + self.drop2(said)
        return (x, said) if apart else x
