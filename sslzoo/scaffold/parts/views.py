"""View `example`: a random square of the image, resized; sometimes mirrored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812

from sslzoo import hookimpl
from sslzoo.keys import Share, Side

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Example:
    """A random square.

    Args:
        size: side of the view in pixels.
        least: smallest side of the square, as a share of the image's shorter side.
    """

    def __init__(self, *, size: Side = 64, least: Share = 0.5) -> None:
        self.size, self.least = (size, size), least

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """Pixels [3 H W], and the box they were cut from: top, left, height, width as fractions of the image."""
        x = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        height, width = x.shape[-2:]
        share, down, right, turn = torch.rand(4).tolist()  # the engine seeds torch for each view of each image
        side = max(1, round((self.least + (1 - self.least) * share) * min(height, width)))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        view = F.resized_crop(x, top, left, side, side, list(self.size), antialias=True)
        view = F.horizontal_flip(view) if turn < 0.5 else view
        box = torch.tensor([top / height, left / width, side / height, side / width])
        return F.normalize(F.to_dtype(view, torch.float32, scale=True), list(MEAN), list(STD)), box


@hookimpl
def sslzoo_views() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
