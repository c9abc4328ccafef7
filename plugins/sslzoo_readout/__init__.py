"""Who guesses, where the encoder did the work? A linear layer on the tokens at target patches; or convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, NotNegative
from sslzoo.nn import laid_out, said_width


class Linear(nn.Module):
    """A linear read-out of target tokens (SimMIM, data2vec); the encoder keeps hidden patches (hidden: fill).

    Args:
        to: tokens (as wide as the encoder), pixels of a patch, or scores of so many codes (BEiT).
    """

    projector = None

    def __init__(self, encoder: Encoder, *, to: Literal["tokens", "pixels"] | Codes = "tokens") -> None:
        super().__init__()
        width = said_width(encoder, to)
        self.outputs = {"patch": Signal("patch", width)}
        self.blocks = nn.ModuleList()
        self.out = nn.Linear(encoder.width, width)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t e]}."""
        return {} if target is None else {"patch": self.out(target.flat(tokens.at(target)))}


class Convolutions(nn.Module):
    """Convolutions over the grid, noise where nothing was seen; the encoder drops what is hidden.

    The decoder of data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525, section 3). The noise of a step is one for all
    sequences, so that neither ranks nor micro-batches change it (nor does the run's seed, which a part is not told);
    outside training there is none.

    Args:
        depth: layers: convolution, norm over channels, GELU, and what came in.
        kernel: side of a convolution, in patches; odd.
        groups: groups of channels.
        noise: deviation of the noise at hidden patches.
        to: as `linear`.
    """

    projector = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        depth: Count = 6,
        kernel: Count = 3,
        groups: Count = 16,
        noise: NotNegative = 0.01,
        to: Literal["tokens", "pixels"] | Codes = "tokens",
    ) -> None:
        super().__init__()
        if encoder.width % groups or kernel % 2 == 0:
            raise ValueError(
                f"kernel, groups: found {kernel}, {groups}; kernel odd, groups a divisor of {encoder.width}"
            )
        width = said_width(encoder, to)
        self.outputs = {"patch": Signal("patch", width)}
        layers = (
            nn.Conv2d(encoder.width, encoder.width, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )
        self.blocks = nn.ModuleList(layers)
        self.out, self.noise = nn.Linear(encoder.width, width), noise

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t e]}."""
        if target is None:
            return {}
        x = self._everywhere(tokens, at).transpose(1, 2).unflatten(2, tokens.grid)  # s d h w
        for block in self.blocks:
            y = block(x).movedim(1, -1)
            x = x + F.gelu(F.layer_norm(y, y.shape[-1:])).movedim(-1, 1)
        return {"patch": self.out(target.flat(target.take(x.flatten(2).transpose(1, 2))))}

    def _everywhere(self, tokens: Tokens, at: Progress) -> Tensor:
        """Tokens at their positions, noise elsewhere: [s k d] -> [s N d]."""
        seen, count = tokens.patches, tokens.grid[0] * tokens.grid[1]
        return laid_out(seen, tokens, self._noise(count + 1, at, seen).expand(len(seen), -1, -1))

    def _noise(self, count: int, at: Progress, like: Tensor) -> Tensor:
        """[N d], the same for this step wherever it is drawn."""
        noise = like.new_zeros(count, like.shape[-1])
        if not self.training or noise.device.type == "meta":
            return noise
        return noise.normal_(std=self.noise, generator=torch.Generator(noise.device).manual_seed(at.step))


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictors `linear` and `convolutions`."""
    return {"linear": Linear, "convolutions": Convolutions}
