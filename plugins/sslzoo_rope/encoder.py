"""Who sees? A vision transformer without biases whose attention knows positions by rotation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sslzoo import Grid, Patches, Tokens
from sslzoo.keys import BelowOne, Count, Deviation, MlpRatio, Width
from sslzoo.nn import key_mask, mean_of, patchify, start_normal
from sslzoo_rope.layers import RopeBlock, angles, positions_around, positions_of, rms_norm

# width, depth, heads (Dosovitskiy et al. 2020); CAPI is published at large
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# What the released code calls our weights.
PUBLISHED = {"encoder.blocks.": "blocks.", "residual1.norm": "norm1", "residual2.norm": "norm2", "residual1.fn.": ""}
PUBLISHED |= {"residual2.fn.": "", "_proj.": "."}


class RopeViT(nn.Module):
    """CAPI's encoder (Darcet et al. 2025, section 3): registers, RMS norms, no biases, rotary positions.

    Hidden patches are dropped. Registers stand around the box of the patches that are seen. The summary is the mean of
    the patches.

    Args:
        size: tiny, small, base or large; or give width, depth and heads.
        width: channels of a token.
        depth: blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden channels of the MLP over width.
        patch: side of a patch in pixels.
        registers: learned tokens beside the patches.
        drop_path: rate of dropped residual branches, the same in all blocks.
        init: deviation of the starting weights.
    """

    ragged = True
    hidden = "drop"
    gives_mlp = True

    def __init__(
        self,
        *,
        size: Literal["tiny", "small", "base", "large"] | None = None,
        width: Width | None = None,
        depth: Count | None = None,
        heads: Count | None = None,
        mlp_ratio: MlpRatio = 4.0,
        patch: Count = 14,
        registers: Literal[0] | Count = 16,
        drop_path: BelowOne = 0.0,
        init: Deviation = 0.02,
    ) -> None:
        super().__init__()
        named = SIZES[size] if size is not None else (width, depth, heads)
        if None in named:
            raise ValueError(f"give a size ({', '.join(SIZES)}), or width, depth and heads")
        given = zip((width, depth, heads), named, strict=True)
        self.width, self.depth, self.heads = (int(theirs if mine is None else mine) for mine, theirs in given)  # type: ignore[arg-type]
        self.patch = (patch, patch)
        self.patch_embed = nn.Linear(3 * patch * patch, self.width)
        self.registers = nn.Parameter(torch.randn(1, registers, self.width) * init)
        block = partial(RopeBlock, self.width, self.heads, mlp_ratio=mlp_ratio, drop_path=drop_path)
        self.blocks = nn.ModuleList(block() for _ in range(self.depth))
        self.apply(partial(start_normal, std=init))

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of an image of this size.

        Raises:
            ValueError: the patches do not fit the image.
        """
        side = self.patch[0]
        if size[0] % side or size[1] % side:
            raise ValueError(f"an image of {size[0]} x {size[1]} does not split into patches of {side} x {side}")
        return size[0] // side, size[1] // side

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of CAPI's released code by our names; its patches are embedded by a convolution.

        Raises:
            ValueError: its positions turn at other rates, which are fixed here.
        """
        ours = angles(torch.ones(1, 1, 2), self.width // self.heads).flatten()  # at (1, 1): both axes' rates
        for rates in (value for name, value in weights.items() if name.endswith("rope.freqs")):
            if rates.shape != (2, len(ours)) or not torch.allclose(rates.sum(0), ours, rtol=1e-3):
                raise ValueError(
                    f"its positions turn at other rates than those of this encoder: {rates.sum(0).tolist()}"
                )
        found = {name: value for name, value in weights.items() if not name.endswith("rope.freqs")}
        for theirs, ours in PUBLISHED.items():
            found = {name.replace(theirs, ours): value for name, value in found.items()}
        embed = found.get("patch_embed.weight")
        if embed is not None and embed.ndim == 4:
            found["patch_embed.weight"] = embed.permute(0, 2, 3, 1).flatten(1)
        return found

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0, mlp: bool = False) -> Tokens:
        """Tokens of an image, [s 3 H W] -> [s k d] after the final norm; registers come as the prefix.

        `layers` are the last blocks' raw outputs; with `mlp`, what their MLPs add.
        """
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        if not 0 <= layers <= self.depth:
            raise ValueError(f"layers: found {layers}; the encoder has {self.depth} blocks")
        x = patchify(pixels, self.patch)
        index, length = torch.arange(x.shape[1], device=x.device).expand(len(x), -1), None
        if context is not None:
            x, index, length = context.take(x), context.index, context.length
        ahead, seen = self.registers.shape[1], positions_of(grid, index)
        positions = torch.cat([positions_around(seen, length, ahead), seen], 1)
        angle, mask = angles(positions, self.width // self.heads), key_mask(length, index.shape[1], ahead)
        x = torch.cat([self.registers.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        outs = []
        for number, block in enumerate(self.blocks):
            out = block(x, angle, mask=mask, apart=mlp)
            x, said = out if mlp else (out, out)
            if number >= self.depth - layers:
                outs.append(said)
        prefixes = tuple(out[:, :ahead] for out in outs) if ahead else ()
        x = rms_norm(x)
        patches, prefix = x[:, ahead:], x[:, :ahead] if ahead else None
        layers_ = tuple(out[:, ahead:] for out in outs)
        return Tokens(patches, index, mean_of(patches, length), grid, prefix, layers_, length, prefixes)
