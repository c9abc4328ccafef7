"""Who sees? A vision transformer on timm's blocks, that embeds only the patches it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Grid, Patches, Tokens, hookimpl
from sslzoo.contracts import true_entries
from sslzoo.keys import BelowOne, Count, Deviation, MlpRatio, NotNegative, Side, Width
from sslzoo.nn import Block, LayerNorm, Positions, key_mask, mean_of, patchify, splits, start_normal, start_xavier
from sslzoo_vit.relative import RelativeBias, resized

# width, depth, heads, MLP hidden over width (Dosovitskiy et al. 2020; Zhai et al. 2021 for giant)
SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}
# What released code calls our weights: BEiT, data2vec and CAE; iBOT; DINOv2.
PUBLISHED = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "masked_embed": "mask_token"}
PUBLISHED |= {"rel_pos_bias.relative_position_bias_table": "relative.table", "register_tokens": "reg_token"}


class ViT(nn.Module):
    """Vision transformer (timm's blocks); hidden patches are dropped, or filled with a token.

    Args:
        size: tiny, small, base, large, huge or giant; or give width, depth and heads.
        width: channels of a token.
        depth: blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden channels of the MLP over width.
        patch: side of a patch in pixels, or [height, width].
        class_token: put a learned class token first; it is then the summary of the image (else the mean of patches).
        registers: learned tokens beside the patches (Darcet et al. 2023).
        positions: sincos (fixed, for any grid); sincos-rows (the same, rows before columns: CAE); learned (interpolated
            to other grids); or relative (none is added; one table for all blocks biases attention: BEiT, data2vec).
        image: side of the images that learned and relative positions are made for, or [height, width]; where positions
            are learned, so is that of the class token.
        resample: how learned positions reach another grid, bicubic all: antialias, plain (MSN), or offset (DINO and
            iBOT: sampled as if the grid were a tenth of a patch larger).
        hidden: drop hidden patches before the first block, or fill their positions with a learned token.
        drop_path: largest rate of dropped residual branches; grows linearly over the blocks.
        attention_drop: rate of dropped attention weights.
        layer_scale: start of a learned factor for each channel of each residual branch; left out: no such factor.
        init: deviation of the starting weights (0.02 as I-JEPA; small widths want more), or xavier (as MAE).
        patch_init: start of the patch embedding: as init; torch's own of a convolution (DINO, iBOT); or kaiming, normal
            (MSN).
        rescale: divide the output weights of block l by sqrt(2 l), as BEiT; I-JEPA's released code undoes this.
    """

    ragged = True
    gives_mlp = True

    def __init__(
        self,
        *,
        size: Literal["tiny", "small", "base", "large", "huge", "giant"] | None = None,
        width: Width | None = None,
        depth: Count | None = None,
        heads: Count | None = None,
        mlp_ratio: MlpRatio | None = None,
        patch: Count | tuple[Count, Count] = 16,
        class_token: bool = False,
        registers: Literal[0] | Count = 0,
        positions: Literal["sincos", "sincos-rows", "learned", "relative"] = "sincos",
        image: Side | tuple[Side, Side] | None = None,
        resample: Literal["antialias", "plain", "offset"] = "antialias",
        hidden: Literal["drop", "fill"] = "drop",
        drop_path: BelowOne = 0.0,
        attention_drop: BelowOne = 0.0,
        layer_scale: NotNegative | None = None,
        init: Deviation | Literal["xavier"] = 0.02,
        patch_init: Literal["init", "torch", "kaiming"] = "init",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        width, depth, heads, mlp_ratio = _shape(size, width, depth, heads, mlp_ratio)
        _check(positions, image)
        self.width, self.depth, self.heads = width, depth, heads
        self.patch = (patch, patch) if isinstance(patch, int) else patch
        self.hidden, self.resample = hidden, resample
        self.patch_embed = PatchEmbed(width, self.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if hidden == "fill" else None
        self.native = None if image is None else self.grid((image, image) if isinstance(image, int) else image)
        rows = _patches(self.native) + class_token  # the class token's first, as in published codes
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width)) if positions == "learned" else None
        self.relative = RelativeBias(heads, self.native) if positions == "relative" and self.native else None
        self.positions = Positions(width, positions == "sincos-rows") if positions.startswith("sincos") else None
        shared = {"mlp_ratio": mlp_ratio, "attention_drop": attention_drop, "layer_scale": layer_scale}
        rates = [drop_path * number / max(1, depth - 1) if drop_path else None for number in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate, **shared) for rate in rates)
        self.norm = LayerNorm(width)
        self._start(init, patch_init, rescale)

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of an image of this size.

        Raises:
            ValueError: the patches do not fit the image.
        """
        if size[0] % self.patch[0] or size[1] % self.patch[1]:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} does not split into patches of {self.patch[0]} x {self.patch[1]}"
            )
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of released code by our names: of timm, I-JEPA, MAE, DINO, iBOT, MSN, BEiT, data2vec, CAE, DINOv2.

        One bias of queries, keys (0 there) and values is made of two. A table of positions that is fixed here is
        compared and left out.

        Raises:
            ValueError: that table is another, or there are tokens or positions that this encoder has not.
        """
        found = dict(weights)
        for name in [name.removesuffix("q_bias") for name in found if name.endswith("q_bias")]:
            q, v = found.pop(f"{name}q_bias"), found.pop(f"{name}v_bias", torch.zeros(0))
            found[f"{name}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        for theirs, ours in PUBLISHED.items():
            found = {name.replace(theirs, ours): value for name, value in found.items()}
        if self.mask_token is not None and "mask_token" in found:
            found["mask_token"] = found["mask_token"].view(1, 1, -1)
        if self.positions is not None and "pos_embed" in found:
            self._compare_positions(found.pop("pos_embed"))
        for name, key in {"cls_token": "class_token", "reg_token": "registers", "pos_embed": "positions"}.items():
            if name in found and getattr(self, name) is None:
                raise ValueError(f"it has {name} {list(found[name].shape)}, which the recipe's encoder lacks ({key})")
        return found

    def _compare_positions(self, table: Tensor) -> None:
        """Sees that a fixed table [1 (1+)N d] is ours for its grid, taken to be square."""
        assert self.positions is not None
        if table.ndim != 3:
            raise ValueError(f"its table of positions is {list(table.shape)}, of which nothing is known")
        side = math.isqrt(table.shape[1])
        ours = self.positions((side, side), table.device)
        theirs = table[0, table.shape[1] - side * side :].float()
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > 1e-3:
            raise ValueError(
                f"its table of positions {list(table.shape)} is not the fixed one of this encoder; the recipe's "
                "encoder wants other positions: learned, sincos-rows or sincos"
            )

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0, mlp: bool = False) -> Tokens:
        """Tokens of an image, [s 3 H W] -> [s k d] after the final norm.

        `layers` are the last blocks' raw outputs; with `mlp`, what their MLPs add.
        """
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        s, count = len(pixels), grid[0] * grid[1]
        if not 0 <= layers <= self.depth:
            raise ValueError(f"layers: found {layers}; the encoder has {self.depth} blocks")
        x = patchify(pixels, self.patch)
        position = self._position(grid, pixels.device)
        index, length = torch.arange(count, device=pixels.device).expand(s, -1), None
        if context is not None and self.hidden == "drop":
            # Embedding and positions act on each patch alone, so only what is seen need be embedded.
            x, index, length = context.take(x), context.index, context.length
            x = self.patch_embed(x) + position[index]
        elif context is not None:
            x = self._fill(self.patch_embed(x), context) + position
        else:
            x = self.patch_embed(x) + position
        x, outs, ahead = self._blocks(x, grid, index, length, layers, mlp)
        prefixes = tuple(out[:, :ahead] for out in outs) if ahead else ()
        outs = tuple(out[:, ahead:] for out in outs)
        x = self.norm(x)
        prefix, patches = (x[:, :ahead], x[:, ahead:]) if ahead else (None, x)
        summary = x[:, 0] if self.cls_token is not None else mean_of(patches, length)
        return Tokens(patches, index, summary, grid, prefix, outs, length, prefixes)

    def _blocks(
        self, x: Tensor, grid: Grid, index: Tensor, length: Tensor | None, layers: int, mlp: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        first = self.cls_token
        if first is not None and self.pos_embed is not None:
            first = first + self.pos_embed[:, :1]
        prefix = [token.expand(len(x), -1, -1) for token in (first, self.reg_token) if token is not None]
        seen = x.shape[1]
        x = torch.cat([*prefix, x], 1) if prefix else x
        ahead = x.shape[1] - seen
        mask, outs = key_mask(length, seen, ahead), []
        if self.relative is not None:
            bias = self.relative(grid, index if self.hidden == "drop" else index[:1], ahead)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        how = ({} if mask is None else {"attn_mask": mask}) | ({"apart": True} if mlp else {})
        for number, block in enumerate(self.blocks):
            out = block(x, **how)
            x, said = out if mlp else (out, out)
            if number >= self.depth - layers:
                outs.append(said)
        return x, tuple(outs), ahead

    def _fill(self, x: Tensor, context: Patches) -> Tensor:
        assert self.mask_token is not None
        true = torch.ones_like(context.index)
        if context.length is not None:  # padding repeats a legal index: only true entries count
            true = true_entries(context.length, true.shape[1]).to(true.dtype)
        seen = torch.zeros(x.shape[:2], dtype=true.dtype, device=x.device).scatter_add(1, context.index, true)
        return torch.where(seen[..., None] > 0, x, self.mask_token.to(x.dtype))

    def _position(self, grid: Grid, device: torch.device) -> Tensor:
        """What is added to the patches of a grid: [N d]; with relative positions nothing, [N 1]."""
        if self.positions is not None:
            return self.positions(grid, device)
        if self.pos_embed is None or self.native is None:
            return torch.zeros(grid[0] * grid[1], 1, device=device)
        return resized(self.pos_embed[0, -_patches(self.native) :], self.native, grid, self.resample)

    def _start(self, init: float | str, patch_init: str, rescale: bool) -> None:
        self.apply(start_xavier if isinstance(init, str) else partial(start_normal, std=init))
        with torch.no_grad():
            tokens = (self.cls_token, self.reg_token, self.mask_token, self.pos_embed)
            for token in (token for token in tokens if token is not None):
                token.normal_(std=0.02)
            self.patch_embed.start(init if patch_init == "init" else patch_init)
            if rescale:
                for number, block in enumerate(self.blocks, 1):
                    for name in ("attn.proj", "mlp.fc2"):
                        block.get_parameter(f"{name}.weight").div_((2 * number) ** 0.5)


class PatchEmbed(nn.Module):
    """Linear embedding of patches; its weight has the layout of the usual convolution, [d 3 ph pw]."""

    def __init__(self, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Patches as (row, column, channel), [s k ph*pw*3] -> [s k d]."""
        return F.linear(x, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)

    def start(self, init: float | str) -> None:
        """Starting weights: normal of a deviation, or xavier, as of a linear layer; kaiming; or torch's own."""
        if init == "torch":
            self.proj.reset_parameters()
            return
        if init == "kaiming":
            nn.init.kaiming_normal_(self.proj.weight, nonlinearity="relu")
        elif isinstance(init, str):
            nn.init.xavier_uniform_(self.proj.weight.view(len(self.proj.weight), -1))
        else:
            nn.init.normal_(self.proj.weight, std=init)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)


def _check(positions: str, image: object) -> None:
    if positions.startswith("sincos") and image is not None:
        raise ValueError(
            f"image: found {image}, but only learned and relative positions have a size of image; leave it out"
        )
    if not positions.startswith("sincos") and image is None:
        raise ValueError(f"image: {positions} positions need the size of image they are made for, such as 224")


def _patches(grid: Grid | None) -> int:
    return 0 if grid is None else grid[0] * grid[1]


def _shape(
    size: str | None, width: int | None, depth: int | None, heads: int | None, mlp_ratio: float | None
) -> tuple[int, int, int, float]:
    if size is None and (width is None or depth is None or heads is None):
        raise ValueError(f"give a size ({', '.join(SIZES)}), or width, depth and heads")
    named = SIZES[size] if size is not None else (0, 0, 0, 4.0)
    given = (width, depth, heads, mlp_ratio)
    w, d, h, ratio = (theirs if mine is None else mine for mine, theirs in zip(given, named, strict=True))
    splits(int(w), int(h))
    return int(w), int(d), int(h), float(ratio)


@hookimpl
def sslzoo_encoders() -> dict[str, type]:
    """The encoder `vit`."""
    return {"vit": ViT}
