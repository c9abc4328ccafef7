"""What do representations of patches say of their pixels? A small network that draws them, for the page of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import hookimpl
from sslzoo.rng import generator

STEPS, ROWS, HIDDEN, RATE = 300, 512, 256, 2e-3


class Decoder(nn.Module):
    """Two layers from the representation of one patch to its pixels, both standardized: [t e] -> [t p]."""

    def __init__(self, x: Tensor, y: Tensor, seed: int) -> None:
        super().__init__()
        self.x, self.y = _moments(x), _moments(y)
        widths = (x.shape[1], HIDDEN, y.shape[1])
        self.layers = nn.Sequential(nn.Linear(widths[0], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, widths[2]))
        rng = generator(seed, "decoder")
        for name, parameter in self.layers.named_parameters():
            bound = (widths[0] if name.startswith("0") else HIDDEN) ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Representations [t e] as pixels [t p]."""
        return self.layers((x - self.x[0]) / self.x[1]) * self.y[1] + self.y[0]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.std(0).clamp(min=1e-4)


@hookimpl
def sslzoo_decode(targets: Tensor, pixels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Least squares by Adam with a cosine, on rows of frozen targets [t e] and the pixels of their patches [t p]."""
    decoder, rng = Decoder(targets, pixels, seed).to(targets.device), generator(seed, "decode")
    solver = torch.optim.Adam(decoder.layers.parameters(), RATE, fused=True)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(solver, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(targets), (ROWS,), generator=rng).to(targets.device)
            loss = F.mse_loss(decoder(targets[rows]) / decoder.y[1], pixels[rows] / decoder.y[1])
            solver.zero_grad()
            loss.backward()
            solver.step()
            falls.step()
    return torch.no_grad()(decoder.forward)
