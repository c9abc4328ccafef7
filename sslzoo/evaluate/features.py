"""What does a frozen encoder say of every image of a data set?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sslzoo.contracts import Dataset, Features, Tokens, View
from sslzoo.errors import ImageError, RunError
from sslzoo.rng import derive_seed, generator
from sslzoo.run.compiling import eager
from sslzoo.run.data import look, read, ready
from sslzoo.run.identity import misfit
from sslzoo.run.loader import deaf, passed
from sslzoo.run.networks import evaluating

Labels = dict[str, Tensor]
OWN = "x"  # the recipe's own pooling
POOLS = ("mean", "mean4", "class", "class4")
HASHED = 4096  # pixels of an image that tell it from others


class _Pages(TorchDataset[tuple[Tensor, Labels] | RunError]):
    """Views of images with their labels, some at a time; an unreadable image is an error here."""

    def __init__(self, data: Dataset, view: View, seed: int | None = None) -> None:
        self.data, self.view = data, view
        self.words: tuple[int | str, ...] = ("evaluate",) if seed is None else (seed, "augment")

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Labels] | RunError:
        pixels: list[Tensor] = []
        for i in numbers:
            try:
                pixels.append(look(self.view, read(self.data, i), derive_seed(*self.words, i))[0])
            except ImageError as error:  # returned, not raised: from a worker it would come with the worker's traceback
                return RunError(f"image {i} to evaluate on cannot be read: {error}")
        numbered = [self.data.label(i) for i in numbers]
        if wrong := next(filter(None, (misfit(self.data, *one) for one in zip(numbers, numbered, strict=True))), ""):
            return RunError(wrong)
        labels = {task: torch.tensor([int(one[task]) for one in numbered]) for task in self.data.tasks}
        return torch.stack(pixels), labels


def pages(
    data: Dataset, view: View, batches: Sequence[Sequence[int]], workers: int, seed: int | None = None
) -> Iterator[tuple[Tensor, Labels]]:
    """Views of images and their labels, batch after batch; a view with randomness draws by seed and image.

    Raises:
        RunError: an image cannot be read, or has a label outside its classes.
    """
    loader = DataLoader(
        _Pages(data, view, seed),
        batch_size=None,
        sampler=batches,  # pyright: ignore[reportArgumentType] - what torch itself does with one
        num_workers=workers,
        worker_init_fn=deaf if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    for page in loader:
        yield passed(page)


@torch.no_grad()
def extract(
    encoder: nn.Module,
    data: Dataset,
    view: View,
    *,
    device: torch.device,
    layers: int = 0,
    batch: int = 256,
    workers: int = 0,
    bf16: bool = False,
    pools: Sequence[str] = (),
    seed: int | None = None,
) -> Features:
    """Features of every image of a data set, in order, from an encoder in eval mode: x [n d], fp32 on the CPU.

    With `layers` 0 the encoder's own summary; else the means over patches of its last blocks, side by side
    [n layers*d]. `pools` are asked for beside it (`contracts.Probe`). A view with randomness draws by `seed` and image.
    Memory: 4 n d bytes for each, and a batch.

    Raises:
        RunError: an image cannot be read, or the data set has no labels, or one outside its classes; or the encoder has
            no such pool, or gives an image features that are no finite numbers.
    """
    if not data.tasks:
        raise RunError("the data set has no labels to probe: it names no tasks")
    count = len(data)
    batches = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    kept: dict[str, Tensor] = {}
    done, deep = 0, max([layers, *(4 for name in pools if name.endswith("4"))])
    labels = {task: torch.zeros(count, dtype=torch.long) for task in data.tasks}
    prints = torch.zeros(count, dtype=torch.long)
    with evaluating(encoder), eager():
        for pixels, classes in pages(data, view, batches, workers, seed):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                tokens = encoder(ready(view, pixels.to(device)), None, deep)
                found = {name: pooled(encoder, tokens, name) for name in pools}
            last = tokens.layers[len(tokens.layers) - layers :]
            found[OWN] = torch.cat([layer.mean(1) for layer in last], 1) if layers else tokens.summary
            here = slice(done, done + len(pixels))
            for name, rows in found.items():
                _refuse_broken(rows, done)
                if not done:
                    kept[name] = torch.empty(count, rows.shape[1])  # once: put together at the end, it would take twice
                kept[name][here] = rows.float().cpu()
            prints[here] = hashed(pixels)
            for task in labels:
                labels[task][here] = classes[task]
            done = here.stop
    x = kept.pop(OWN, torch.zeros(0, 0))
    return Features(x, labels, dict(data.tasks), device, kept, prints=prints)


def hashed(pixels: Tensor) -> Tensor:
    """A number for each image [n 3 H W], equal for equal ones: of its pixels, or of some from all over it: [n]."""
    rows = pixels.flatten(1)
    some = rows[:, :: max(1, rows.shape[1] // HASHED)].contiguous().cpu().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in some]
    return torch.tensor([int.from_bytes(one, "big", signed=True) for one in digests], dtype=torch.long)


@torch.no_grad()
def summary_told(encoder: nn.Module, size: tuple[int, int], device: torch.device) -> str:
    """What an encoder's own word for an image is: its class token, the mean of its patches, or another."""
    with evaluating(encoder), eager():
        tokens = encoder(torch.rand(1, 3, *size, generator=generator(0, "summary")).to(device), None)
    if by_class_token(tokens):
        return "class token"
    return "mean of patches" if torch.allclose(tokens.summary, tokens.patches.mean(1)) else "the encoder's own"


def by_class_token(tokens: Tokens) -> bool:
    """Whether an encoder's own word for an image is its class token, the first of its prefix."""
    return tokens.prefix is not None and torch.equal(tokens.summary, tokens.prefix[:, 0])


def _refuse_broken(rows: Tensor, first: int) -> None:
    """A probe would make a plausible figure of them: nan is nobody's neighbor, and some class is always told."""
    broken = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        more = f", and of {len(broken) - 1} more of the {len(rows)} beside it" if len(broken) > 1 else ""
        raise RunError(f"its features of image {first + broken[0]}{more} are not finite (nan or inf)")


def pooled(encoder: nn.Module, tokens: Tokens, name: str) -> Tensor:
    """One word for each image, [s d] or [s 4*d]: mean or class token of the last block, or of the last four.

    Each of the four passes through the encoder's final norm, where it has one as `norm` (VISSL's linear protocol).

    Raises:
        RunError: the encoder has no class token, or fewer than four blocks.
    """
    blocks = 4 if name.endswith("4") else 1
    norm: Any = getattr(encoder, "norm", nn.Identity())
    if name.startswith("class") and tokens.prefix is None:
        raise RunError(f"the features {name!r} need a class token, and the encoder has none; there is: mean, mean4")
    if blocks > 1 and len(tokens.layers) < blocks:
        raise RunError(f"the features {name!r} need 4 blocks; the encoder has {len(tokens.layers)}")
    if name in ("mean", "mean4"):
        some = [tokens.patches] if blocks == 1 else [norm(layer) for layer in tokens.layers[-blocks:]]
        return torch.cat([one.mean(1) for one in some], 1)
    if name in ("class", "class4"):
        ahead = [tokens.prefix] if blocks == 1 else [norm(layer) for layer in tokens.prefixes[-blocks:]]
        return torch.cat([one[:, 0] for one in ahead if one is not None], 1)
    raise RunError(f"no features are called {name!r}; there is: {', '.join(POOLS)}")
