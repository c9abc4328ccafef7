"""What do masks look like? Samples over images, where context and targets fall, how much is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sslzoo.contracts import Grid, Mask, MaskSampler
from sslzoo.run.masking import draw_mask

COLORS = ("#e4572e", "#2e86ab", "#f2b134", "#6a4c93", "#3a9b5c", "#d1495b")
STEPS = 64  # batches behind the maps


@dataclass(frozen=True)
class Survey:
    """What many batches of a sampler show."""

    context: Tensor  # share of masks in which each patch is seen: [h w]
    target: Tensor  # share in which some block asks for it: [h w]
    shares: Tensor  # share of the image seen, one for each mask


def survey(sampler: MaskSampler, grid: Grid, batch: int, seed: int, steps: int = STEPS) -> Survey:
    """Draws batches of masks and counts what they cover."""
    patches = grid[0] * grid[1]
    context, target, shares = torch.zeros(patches), torch.zeros(patches), []
    for step in range(steps):
        mask = draw_mask(sampler, grid, seed, step, range(batch))
        seen, asked = covered_by(mask, patches)
        context, target = context + seen.float().mean(0), target + asked.float().mean(0)
        shares.append(seen.float().mean(1))
    return Survey((context / steps).reshape(grid), (target / steps).reshape(grid), torch.cat(shares))


def covered_by(mask: Mask, patches: int) -> tuple[Tensor, Tensor]:
    """Which patches are seen, and which are asked for by some block: bool [s N] each."""
    seen = torch.zeros(len(mask.context.index), patches, dtype=torch.bool).scatter_(1, mask.context.index, True)
    asked = torch.zeros_like(seen).scatter_(1, mask.target.index.flatten(1), True)
    return seen, asked


def shown(pixels: Tensor) -> Tensor:
    """Normalized pixels [n 3 H W] as something to look at, [n H W 3] in [0, 1]: stretched over all of them."""
    low, high = pixels.float().amin((0, 2, 3), keepdim=True), pixels.float().amax((0, 2, 3), keepdim=True)
    return ((pixels - low) / (high - low).clamp(min=1e-6)).permute(0, 2, 3, 1)


def sample(ax: Axes, image: Tensor, mask: Mask, row: int, grid: Grid) -> None:
    """One masked image: what is seen in full, what is hidden pale, each target block outlined in its color."""
    height, width = image.shape[:2]
    tall, wide = height / grid[0], width / grid[1]
    seen, _ = covered_by(mask, grid[0] * grid[1])
    veil = 1 - seen[row].reshape(grid).float()
    veil = veil.repeat_interleave(round(tall), 0).repeat_interleave(round(wide), 1)[:height, :width, None]
    ax.imshow(image * (1 - 0.82 * veil) + 0.82 * veil * 0.93, interpolation="nearest")
    target = mask.target
    for block in range(target.index.shape[1]):
        length = target.index.shape[2] if target.length is None else int(target.length[row, block])
        _outline(ax, set(target.index[row, block, :length].tolist()), grid, (tall, wide), COLORS[block % len(COLORS)])
    _bare(ax)


def _outline(ax: Axes, patches: set[int], grid: Grid, side: tuple[float, float], color: str) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    lines = []
    for index in patches:
        r, c = divmod(index, grid[1])
        top, left, bottom, right = r * side[0], c * side[1], (r + 1) * side[0], (c + 1) * side[1]
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), side[1], side[0], color=color, alpha=0.28, linewidth=0))
        edges = {
            (r - 1, c): [(left, top), (right, top)],
            (r + 1, c): [(left, bottom), (right, bottom)],
            (r, c - 1): [(left, top), (left, bottom)],
            (r, c + 1): [(right, top), (right, bottom)],
        }
        for (y, x), line in edges.items():
            if not (0 <= y < grid[0] and 0 <= x < grid[1] and y * grid[1] + x in patches):
                lines.append([(px - 0.5, py - 0.5) for px, py in line])
    ax.add_collection(LineCollection(lines, colors=color, linewidths=1.4))


def coverage(ax: Axes, share: Tensor, title: str, top: float | None = None) -> Any:
    """A map of how often each patch is covered, from 0 to `top`; to its largest share if left out."""
    drawn = ax.imshow(share, vmin=0, vmax=max(share.max().item() if top is None else top, 1e-6), cmap="viridis")
    ax.set_title(title, fontsize=8)
    _bare(ax)
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.04)
    bar.ax.tick_params(labelsize=6)
    return drawn


def context_shares(ax: Axes, shares: Tensor) -> None:
    """How much of the image is seen, over all masks."""
    ax.hist(shares.numpy(), bins=50, range=(0, 1), color="#4a6fa5")
    ax.axvline(shares.mean().item(), color="#e4572e", linewidth=1)
    ax.set_xlim(0, 1)
    ax.set_title(f"share seen: mean {shares.mean():.2f}", fontsize=8)
    ax.set_yticks([])
    ax.tick_params(labelsize=6)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def compare(
    samplers: Mapping[str, MaskSampler], images: Tensor, grid: Grid, *, batch: int = 64, seed: int = 0
) -> Figure:
    """Samplers side by side, a row each: samples over images [n H W 3], coverage of context and targets, share seen."""
    columns = len(images) + 3
    figure = Figure(figsize=(1.75 * columns, 1.95 * len(samplers) + 0.2), layout="constrained")
    axes = figure.subplots(len(samplers), columns, squeeze=False)
    for row, (name, sampler) in zip(axes, samplers.items(), strict=True):
        mask = draw_mask(sampler, grid, seed, 0, range(batch))
        for number, image in enumerate(images):
            sample(row[number], image, mask, number, grid)
        row[0].set_ylabel(name, fontsize=9, fontweight="bold")
        found = survey(sampler, grid, batch, seed)
        coverage(row[-3], found.context, "context seen")
        coverage(row[-2], found.target, "asked for")
        context_shares(row[-1], found.shares)
    return figure


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])


def save(figure: Figure, path: Any) -> None:
    """Writes a figure, in the format of the file's ending."""
    figure.savefig(path, dpi=160)


def synthetic(count: int, grid: Grid) -> Tensor:
    """Images to lay masks over where there is no data set: soft gradients, [n H W 3] in [0, 1]."""
    height, width = grid[0] * 12, grid[1] * 12
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves: Sequence[Tensor] = [0.5 + 0.4 * torch.sin(3 * x + 2 * y * n + n) for n in range(1, count + 1)]
    return torch.stack([torch.stack([wave, 0.6 * wave + 0.2, 1 - wave], -1) for wave in waves])
