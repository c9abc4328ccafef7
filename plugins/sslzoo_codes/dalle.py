"""Which code does DALL-E's tokenizer give a patch? Its encoder, with weights from a file that the user has."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Progress, Reading, Signal, Student
from sslzoo.keys import Codes, Positive, Rate, Width
from sslzoo.nn import full_precision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
GROUPS, PAIR = 4, 2  # groups of residual blocks, each but the last halves the map; blocks of a group
SIDE = 2 ** (GROUPS - 1)  # pixels of a code
# The published names of weights, and ours.
NAMES = (
    (r"^blocks\.input", "first"),
    (r"^blocks\.output\.conv", "last"),
    (r"^blocks\.group_(\d)\.block_(\d)", lambda m: f"blocks.{PAIR * (int(m[1]) - 1) + int(m[2]) - 1}"),
    (r"id_path", "skip"),
    (r"res_path\.conv_(\d)", lambda m: f"convs.{int(m[1]) - 1}"),
    (r"w$", "weight"),
    (r"b$", "bias"),
)


class Dalle(nn.Module):
    """The codes that DALL-E's tokenizer gives patches (Ramesh et al. 2021, arXiv 2102.12092): BEiT's and CAE's targets.

    Nothing here learns. The published `encoder.pkl` is a pickled module, for its own package dall_e to open; with that
    installed, `torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), FILE)` writes what is read here.
    The view is scaled to 8 pixels a patch (BEiT and CAE scale the image's own pixels a second time).

    Args:
        weights: file of the encoder's tensors by their published names, as written by torch.save.
        codes: how many codes there are.
        width: channels of the first group of blocks.
        mean: what the views subtract from each channel.
        std: what the views divide each channel by.
    """

    gated = True  # nothing moves, so there is nothing to put back
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        student: Student,
        *,
        weights: Path,
        codes: Codes = 8192,
        width: Width = 256,
        mean: tuple[Rate, Rate, Rate] = MEAN,
        std: tuple[Positive, Positive, Positive] = STD,
    ) -> None:
        super().__init__()
        self.outputs = {"code": Signal("patch", codes, ids=True)}
        self.patch: tuple[int, int] = student.encoder.patch  # type: ignore[attr-defined]
        widths = [width * 2**group for group in range(GROUPS) for _ in range(PAIR)]
        self.first = _conv(3, width, 7)
        given = [width, *widths[:-1]]
        self.blocks = nn.ModuleList(Residual(*pair) for pair in zip(given, widths, strict=True))
        self.last = _conv(widths[-1], codes, 1)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.requires_grad_(False)
        if self.first.weight.device.type != "meta":  # a rehearsal has no numbers
            _load(self, weights)

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> dict[str, Tensor]:
        """{"code": [t]}, the number of each target patch's code, of every group with a mask that a teacher reads."""
        found = []
        for group in batch.groups.values():
            if group.mask is not None and group.role != "context":
                target = group.mask.target
                ids = self.codes(group.pixels.flatten(0, 1))
                found.append(target.flat(target.take(group.mask.rows(ids[..., None])))[:, 0])
        return {"code": torch.cat(found)} if found else {}

    def codes(self, pixels: Tensor) -> Tensor:
        """The code of each patch, row-major: [s 3 H W] -> [s N]."""
        size = [pixels.shape[-2 + axis] // self.patch[axis] * SIDE for axis in (0, 1)]
        with full_precision(pixels.device):
            x = (pixels.float() * self.std + self.mean).clamp(0, 1)
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            x = self.first(0.8 * x + 0.1)  # as the tokenizer was trained: away from 0 and 1
            for number, block in enumerate(self.blocks):
                x = block(x)
                if number % PAIR == PAIR - 1 and number + 1 < len(self.blocks):
                    x = F.max_pool2d(x, 2)
            return self.last(x.relu()).argmax(1).flatten(1)

    def after_step(self, student: Student, at: Progress, finite: Tensor | None = None) -> None:
        """Nothing here learns."""


class Residual(nn.Module):
    """Three convolutions of 3 x 3 and one of 1 x 1 in a quarter of the channels, beside a way past them."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        hidden = width // 4
        self.skip = _conv(given, width, 1) if given != width else nn.Identity()
        three = [_conv(one, hidden, 3) for one in (given, hidden, hidden)]
        self.convs = nn.ModuleList([*three, _conv(hidden, width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        """[s c h w] -> [s c' h w]."""
        y = x
        for conv in self.convs:
            y = conv(y.relu())
        return self.skip(x) + y / (GROUPS * PAIR) ** 2


def _conv(given: int, width: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(given, width, side, padding=side // 2)


def _load(part: Dalle, path: Path) -> None:
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        named = {_ours(name): tensor for name, tensor in published.items()}
        part.load_state_dict(named | {"mean": part.mean, "std": part.std})
    except OSError as error:
        raise ValueError(f"weights: {path} cannot be read: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, AttributeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights: {path} does not hold the tensors of this encoder: {reason}") from error


def _ours(name: str) -> str:
    for published, ours in NAMES:
        name = re.sub(published, ours, name)
    return name
