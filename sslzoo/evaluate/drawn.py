"""With what is a probe tried where there is no image yet? Drawn features, and drawn images behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sslzoo.contracts import Features, Patches, Tokens
from sslzoo.errors import RunError
from sslzoo.evaluate.features import POOLS
from sslzoo.nn import Block, patchify

WIDTH, SIDE, PATCH = 16, 8, 4


def drawn(x: Tensor, labels: Tensor, classes: int, *, augmented: bool = True) -> Features:
    """Features [n 16] of one task, kind; every pool holds the same, and so do the images behind."""
    images = DrawnImages(x, augmented)
    return Features(x, {"kind": labels}, {"kind": classes}, pools=dict.fromkeys(POOLS, x), images=images)


class DrawnEncoder(nn.Module):
    """A small vision transformer with a class token: always the same weights."""

    ragged, width = False, WIDTH

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patch_embed = nn.Linear(3 * PATCH**2, WIDTH)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
            self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))
            self.norm = nn.LayerNorm(WIDTH)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches."""
        return size[0] // PATCH, size[1] // PATCH

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0) -> Tokens:
        """Tokens of whole images."""
        if context is not None:
            raise ValueError("it sees whole images")
        x = self.patch_embed(patchify(pixels, (PATCH, PATCH)))
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        x, outs = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1), []
        for block in self.blocks:
            x = block(x)
            outs.append(x)
        x, outs = self.norm(x), outs[len(outs) - layers :]
        raw = tuple(out[:, 1:] for out in outs), tuple(out[:, :1] for out in outs)
        return Tokens(x[:, 1:], index, x[:, 0], grid, x[:, :1], raw[0], None, raw[1])


@dataclass(frozen=True)
class DrawnImages:
    """`contracts.Images` whose pixels repeat the features; its view with randomness changes nothing."""

    x: Tensor
    augmented: bool = True
    encoder: nn.Module = field(default_factory=DrawnEncoder)
    bf16: bool = False
    saved: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def pages(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[Tensor]:
        """Images batch after batch."""
        del seed
        for batch in batches:
            rows = self.x[torch.tensor(list(batch), dtype=torch.long)]
            yield rows.repeat(1, 3 * SIDE**2 // rows.shape[1]).view(-1, 3, SIDE, SIDE)

    def pools(self, names: Sequence[str], seed: int) -> Mapping[str, Tensor]:
        """The features."""
        del seed
        if not self.augmented:
            raise RunError("evaluate.augment names no view to augment images with")
        return dict.fromkeys(names, self.x)

    def load(self, name: str) -> Mapping[str, Tensor]:
        """What was saved."""
        return self.saved.get(name, {})

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps copies."""
        self.saved[name] = {key: one.clone() for key, one in tensors.items()}
