"""Who guesses, where the encoder must not? A regressor of hidden latents, and a decoder that reads codes from them."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, Deviation, MlpRatio, NotNegative, Width
from sslzoo.nn import Block, LayerNorm, Positions, attention, joint_mask, key_mask, splits, start_normal, start_xavier


class Regressor(nn.Module):
    """Queries read the visible latents and each other, and become latents of hidden patches; a decoder reads these.

    CAE (Chen et al. 2022, section 3): signals latent [t d], guessed in the encoder's own space, and code [t p], scores
    of the codes that a tokenizer gives each patch. Target blocks are guessed apart from each other.

    Args:
        codes: how many codes there are; 0 for latents alone.
        depth: layers of the regressor.
        decoder_depth: self-attention blocks of the decoder.
        heads: attention heads of both.
        width: channels of both; the encoder's if left out. If they are others, the encoder's tokens pass a layer and a
            norm first, and latents are guessed behind these: then the teacher wants project and project_patches.
        mlp_ratio: hidden channels of an MLP over width.
        layer_scale: start of the learned factors of each branch.
        positions: sincos (columns first) or sincos-rows (CAE's own; as the encoder's).
        init: xavier, or the deviation of normal starting weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        codes: Literal[0] | Codes = 8192,
        depth: Count = 4,
        decoder_depth: Literal[0] | Count = 4,
        heads: Count = 12,
        width: Width | None = None,
        mlp_ratio: MlpRatio = 4.0,
        layer_scale: NotNegative = 0.1,
        positions: Literal["sincos", "sincos-rows"] = "sincos-rows",
        init: Deviation | Literal["xavier"] = "xavier",
    ) -> None:
        super().__init__()
        width = width or encoder.width
        splits(width, heads)
        self.projector = None if width == encoder.width else Projection(encoder.width, width)
        self.outputs = {"latent": Signal("patch", width)} | ({"code": Signal("patch", codes)} if codes else {})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Positions(width, positions == "sincos-rows")
        self.blocks = nn.ModuleList(Read(width, heads, mlp_ratio, layer_scale) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.decoder = Decoder(width, codes, decoder_depth, heads, mlp_ratio, layer_scale) if codes else None
        self.apply(start_xavier if isinstance(init, str) else partial(start_normal, std=init))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Latents and scores of codes at target patches, [s k d] -> {"latent": [t d], "code": [t p]}."""
        if target is None:
            return {}
        s, m, q = target.index.shape
        table = self.positions(tokens.grid, tokens.patches.device)
        asked = table[target.index.flatten(0, 1)]  # (s m) q d
        patches = tokens.patches if self.projector is None else self.projector(tokens.patches)
        seen = patches.repeat_interleave(m, 0)
        where = torch.cat([table[tokens.index].repeat_interleave(m, 0), asked], 1)
        mask, x = joint_mask(tokens, target), self.mask_token.expand(s * m, q, -1)
        for block in self.blocks:
            x = block(x, torch.cat([seen, x], 1), asked, where, mask)
        latent = self.norm(x)
        said = {"latent": target.flat(latent.unflatten(0, (s, m)))}
        if self.decoder is not None:
            among = key_mask(None if target.length is None else target.length.flatten(), q)
            said["code"] = self.decoder(latent + asked, among, target)
        return said


class Projection(nn.Module):
    """From the encoder's channels to the regressor's: a layer and a norm."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(width, out), LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """[.. d] -> [.. e]."""
        return self.norm(self.embed(x))


class Decoder(nn.Module):
    """Blocks among the patches of a target block, then scores of codes."""

    def __init__(self, width: int, codes: int, depth: int, heads: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        shape = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        self.blocks = nn.ModuleList(Block(width, heads, **shape) for _ in range(depth))
        self.norm, self.head = LayerNorm(width), nn.Linear(width, codes)

    def forward(self, x: Tensor, mask: Tensor | None, target: Patches) -> Tensor:
        """[(s m) q d] -> [t p]."""
        for block in self.blocks:
            x = block(x) if mask is None else block(x, attn_mask=mask)
        return self.head(self.norm(target.flat(x.unflatten(0, target.index.shape[:2]))))


class Read(nn.Module):
    """Queries read keys that know their positions and values that do not; then an MLP on what the second norm says.

    The residual stream goes on behind the second norm, as in CAE's released code.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1_q, self.norm1_k, self.norm1_v = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm2 = LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, context: Tensor, asked: Tensor, where: Tensor, mask: Tensor | None) -> Tensor:
        """[s q d] queries at positions `asked`, [s k d] context at positions `where` -> [s q d]."""
        q = self.q(self.norm1_q(x + asked))
        k, v = self.k(self.norm1_k(context + where)), self.v(self.norm1_v(context))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        read = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.norm2(x + self.gamma_1 * self.proj(read))
        return x + self.gamma_2 * self.mlp(x)


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `regressor`."""
    return {"regressor": Regressor}
