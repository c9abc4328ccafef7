"""What does an encoder make of an image? Masks, features, attention and neighbors of some networks, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from sslzoo.contracts import Grid, MaskSampler
from sslzoo.errors import RunError
from sslzoo.evaluate.features import by_class_token
from sslzoo.report import masks
from sslzoo.report.charts import SVG, Chart, Rows, chart
from sslzoo.run.compiling import eager
from sslzoo.run.masking import draw_mask
from sslzoo.run.networks import device_of, evaluating, summaries

SHOWN = 6  # images in a row
ASKED = 4  # images whose neighbors are shown
NEAR = 4  # neighbors of each
DRAWN = 2048  # masks behind a map of coverage
ALIKE = 0.05  # mean distance of pictures in [0, 1], below which they are of the same images
THUMB = 72  # side of a small picture in pixels


@dataclass(frozen=True)
class Look:
    """A network to look into: its title (variant, seed, steps, which network), and what it is shown."""

    title: str
    encoder: nn.Module
    pixels: Tensor  # test images, as it sees them: [n 3 H W]
    network: str = "student"  # or a target generator's name
    sampler: MaskSampler | None = None
    grid: Grid = (0, 0)  # of the masked view
    batch: int = 1  # images that masks are drawn for together, as in training
    seed: int = 0


@dataclass(frozen=True)
class Attention:
    """Where a network looks: attention to each patch, 1 as much as everywhere, and who asks."""

    maps: Tensor  # [n h w]
    patch: Grid | None  # row and column of the patch that asks; None: the class token

    @property
    def asks(self) -> str:
        """Who asks, in words."""
        return "class token" if self.patch is None else f"patch {self.patch[0]},{self.patch[1]}"


def charts(looks: Sequence[Look], patch: Grid | None = None) -> Iterator[Chart]:
    """Every picture that can be drawn of these networks; attention from a patch, its row and column from 0.

    Raises:
        RunError: no network has such a patch, or attention that could be drawn from it.
    """
    if not looks:
        return
    if any(one.sampler is not None for one in looks):
        yield of_masks([one for one in looks if one.sampler is not None])
    seeing = [one for one in looks if len(one.pixels)]
    others = unlike(looks)
    seeing = [one for one in seeing if one.title not in others]
    if seeing:
        yield of_features(seeing)
        attending, faults = _attending(seeing, patch)
        if any(found is not None for found in attending.values()):
            yield of_attention(seeing, attending)
        elif patch is not None:
            raise RunError("; ".join(faults) or "no encoder here has attention that could be drawn from a patch")
        if len(seeing[0].pixels) > ASKED:
            yield of_neighbors(seeing)


def unlike(looks: Sequence[Look]) -> list[str]:
    """Titles of those that are shown other images than the first; another size or normalization does not matter."""
    seeing = [(one.title, len(one.pixels), _shown(one.pixels[:SHOWN])) for one in looks if len(one.pixels)]
    return [
        title
        for title, count, pictures in seeing
        if count != seeing[0][1] or (pictures - seeing[0][2]).abs().mean() > ALIKE
    ]


# --- masks ------------------------------------------------------------------------------------------------------------


def of_masks(looks: Sequence[Look]) -> Chart:
    """Masks over the same images, and over many draws how often each patch is seen and asked for, in one scale."""
    surveys = {}
    for one in looks:
        assert one.sampler is not None
        surveys[one.title] = masks.survey(one.sampler, one.grid, one.batch, one.seed, max(4, DRAWN // one.batch))
    top = [max(float(getattr(one, side).max()) for one in surveys.values()) for side in ("context", "target")]
    rows: Rows = []
    with rc_context(SVG):
        page, parts = boards([one.title for one in looks])
        for one, board in zip(looks, parts, strict=True):
            assert one.sampler is not None
            axes = board.subplots(1, SHOWN + 1, gridspec_kw={"width_ratios": [1] * (SHOWN - 2) + [1.2, 1.2, 1.1]})
            images = _shown(looks[0].pixels[: SHOWN - 2], one.grid)
            mask = draw_mask(one.sampler, one.grid, one.seed, 0, range(max(one.batch, SHOWN)))
            for row, ax in enumerate(axes[: SHOWN - 2]):
                if row < len(images):
                    masks.sample(ax, images[row], mask, row, one.grid)
                else:
                    ax.set_axis_off()
            found = surveys[one.title]
            masks.coverage(axes[-3], found.context, "how often seen", top[0])
            masks.coverage(axes[-2], found.target, "how often asked for", top[1])
            masks.context_shares(axes[-1], found.shares)
            for index, (seen, asked) in enumerate(zip(found.context.flatten(), found.target.flatten(), strict=True)):
                r, c = divmod(index, one.grid[1])
                told = {"row": r, "column": c, "seen": float(seen), "asked": float(asked)}
                rows.append({"run": one.title, **told, "share seen": "", "masks": ""})
            bare = dict.fromkeys(("row", "column", "seen", "asked"), "")
            for share, many in zip(*(each.tolist() for each in found.shares.unique(return_counts=True)), strict=True):
                rows.append({"run": one.title, **bare, "share seen": share, "masks": many})
    caption = (
        "What the encoder sees (clear) and which blocks it must predict (outlined), on the same images, drawn for as "
        "many images at once as in training. Pale and not outlined: neither seen nor asked for; so are patches that a "
        "sampler drops to make all contexts equally long. Maps: share of masks in which a patch is seen and asked for; "
        "one color scale for all rows. Right: share of the image that is seen, over all draws."
    )
    return chart("masks", "Masks", caption, page, rows)


# --- features ---------------------------------------------------------------------------------------------------------


def of_features(looks: Sequence[Look]) -> Chart:
    """Patch features as colors, the same directions of every network turned to the same color."""
    colors = alike([scores(one.encoder, one.pixels[:SHOWN]) for one in looks])
    rows: Rows = []
    with rc_context(SVG):
        page, parts = boards(["image", *(one.title for one in looks)])
        images = [_shown(looks[0].pixels[:SHOWN]), *colors]
        for board, some in zip(parts, images, strict=True):
            pictures(board, some)
        for one, some in zip(looks, colors, strict=True):
            for n, r, c in _patches(some):
                red, green, blue = (round(float(x), 4) for x in some[n, r, c])
                rows.append({"run": one.title, "image": n, "row": r, "column": c, "r": red, "g": green, "b": blue})
    caption = (
        "Output of the frozen encoder for each patch: the first three principal components over all images shown, as "
        "red, green and blue. Components of a network are its own up to a rotation; each was rotated (Procrustes) to "
        "match the first row's best, so like colors mean like things, and all rows have one scale."
    )
    return chart("features", "Features of patches", caption, page, rows)


@torch.no_grad()
def scores(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """First three principal components of the patch features of some images, each of variance 1: [n h w 3]."""
    with evaluating(encoder):
        tokens = encoder(pixels.to(device_of(encoder)))
    x = tokens.patches.double().cpu().flatten(0, 1).nan_to_num()
    x = x - x.mean(0)
    _, _, axes = torch.linalg.svd(x, full_matrices=False)
    found = F.pad(x @ axes[:3].T, (0, 3 - min(3, len(axes))))
    found = found / found.std(0).clamp(min=1e-9)
    return found.reshape(len(pixels), *tokens.grid, 3).float()


def alike(found: Sequence[Tensor]) -> list[Tensor]:
    """Components [n h w 3] of several networks as colors in [0, 1]: each rotated to the first, in one scale."""
    turned = [found[0], *(turn(one, found[0]) for one in found[1:])]
    rows = torch.cat([one.flatten(0, 2) for one in turned])
    low, high = rows.quantile(0.02, 0), rows.quantile(0.98, 0)
    return [((one - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) for one in turned]


def turn(x: Tensor, to: Tensor) -> Tensor:
    """Components [n h w 3] rotated so that they are nearest to others of the same images: orthogonal Procrustes."""
    there = F.interpolate(to.permute(0, 3, 1, 2), size=x.shape[1:3], mode="area").permute(0, 2, 3, 1)
    u, _, v = torch.linalg.svd(x.flatten(0, 2).T.double() @ there.flatten(0, 2).double())
    return (x.double() @ (u @ v)).float()


# --- attention --------------------------------------------------------------------------------------------------------


def _attending(looks: Sequence[Look], patch: Grid | None) -> tuple[dict[str, Attention | None], list[str]]:
    """The attention of each, by title, and what is wrong with the patch for some."""
    found: dict[str, Attention | None] = {}
    faults = []
    for one in looks:
        try:
            found[one.title] = attention(one.encoder, one.pixels[:SHOWN], patch)
        except RunError as error:  # of a study whose grids differ, the others are drawn
            found[one.title] = None
            faults.append(f"{one.title}: {error}")
    return found, faults


def of_attention(looks: Sequence[Look], found: Mapping[str, Attention | None]) -> Chart:
    """Where the last block looks, from the class token or from a patch; 1 is as much as everywhere."""
    drawn = {title: one for title, one in found.items() if one is not None}
    top = torch.cat([one.maps.flatten() for one in drawn.values()]).quantile(0.995).clamp(min=1.0).item()
    rows: Rows = []
    with rc_context(SVG):
        page, parts = boards(["image", *(f"{title}, from the {one.asks}" for title, one in drawn.items())])
        pictures(parts[0], _shown(looks[0].pixels[:SHOWN]))
        for board, (title, one) in zip(parts[1:], drawn.items(), strict=True):
            axes = pictures(board, one.maps, vmin=0, vmax=top, cmap="viridis")
            if one.patch is not None:
                for ax in axes[: len(one.maps)]:
                    ax.plot(one.patch[1], one.patch[0], "+", color="white", markersize=7)
            bar = board.colorbar(axes[0].images[0], ax=axes, fraction=0.015, pad=0.01)
            bar.ax.tick_params(labelsize=6)
            for n, r, c in _patches(one.maps):
                told: dict[str, object] = {"run": title, "from": one.asks, "image": n, "row": r, "column": c}
                rows.append(told | {"attention": float(one.maps[n, r, c])})
    blind = [one.title for one in looks if one.title not in drawn]
    caption = (
        "Attention of the last block, mean over heads, from the class token or from the patch (row, column) that is "
        "marked (+); times the number of tokens, so that 1 is uniform attention. One color scale for all rows."
    ) + (f" No attention to draw, or no such patch: {', '.join(blind)}." if blind else "")
    return chart("attention", "Attention", caption, page, rows)


@torch.no_grad()
def attention(encoder: nn.Module, pixels: Tensor, patch: Grid | None = None) -> Attention | None:
    """Attention of the last block to the patches, times the number of tokens.

    From `patch`; if left out, from the class token where that is the summary, else from the patch in the middle. It is
    read from the arguments of the last call of torch's scaled dot-product attention over all tokens, whatever the
    encoder. None for encoders that make no such call.

    Raises:
        RunError: there is no such patch.
    """
    with evaluating(encoder), eager(), _Listener() as heard:
        tokens = encoder(pixels.to(device_of(encoder)))
    ahead = 0 if tokens.prefix is None else tokens.prefix.shape[1]
    count = ahead + tokens.patches.shape[1]
    if heard.last is None or heard.last[0].shape[-2] != count:
        return None
    query, key, bias, scale = heard.last
    h, w = tokens.grid
    if patch is None and not by_class_token(tokens):
        patch = (h // 2, w // 2)
    if patch is not None and not (patch[0] < h and patch[1] < w):
        raise RunError(f"there is no patch {patch[0]},{patch[1]}: rows are 0 to {h - 1}, columns 0 to {w - 1}")
    asks = 0 if patch is None else ahead + patch[0] * w + patch[1]
    each = query[..., asks, :].float()[..., None, :] @ key.float().transpose(-2, -1)  # [n heads 1 tokens]
    each = each[..., 0, :] * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        row = bias[..., asks, :] if bias.shape[-2] > 1 else bias[..., 0, :]
        each = each.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else each + row
    share = each.softmax(-1).mean(1)[:, ahead:] * count
    return Attention(share.reshape(len(pixels), h, w).cpu(), patch)


class _Listener(TorchFunctionMode):
    """Keeps queries, keys, bias and scale of the last call of scaled dot-product attention."""

    last: tuple[Tensor, Tensor, Tensor | None, float | None] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            self.last = (named["query"], named["key"], named.get("attn_mask"), named.get("scale"))
        return func(*args, **kwargs)


# --- neighbors --------------------------------------------------------------------------------------------------------


def of_neighbors(looks: Sequence[Look]) -> Chart:
    """The nearest of the other test images, by the cosine of the encoder's word for the whole image."""
    rows: Rows = []
    with rc_context(SVG):
        page, parts = boards([one.title for one in looks], 1.75)
        pictures = _shown(looks[0].pixels)
        across = 2 * (NEAR + 2) - 1  # two images and their neighbors in a row, an empty one between
        for one, board in zip(looks, parts, strict=True):
            axes = board.subplots(-(-ASKED // 2), across)
            for ax in axes.flatten():
                ax.set_axis_off()
            near, which = nearest(summaries(one.encoder, one.pixels).cpu(), ASKED, NEAR)
            for asked in range(ASKED):
                line = axes[asked // 2][(asked % 2) * (NEAR + 2) :]
                for rank, number in enumerate([asked, *which[asked].tolist()]):
                    line[rank].imshow(pictures[number], interpolation="nearest")
                    cosine = "asked" if not rank else f"{float(near[asked, rank - 1]):.2f}"
                    line[rank].set_title(cosine, fontsize=6.5, pad=2)
                    if rank:
                        rows.append(
                            {"run": one.title, "image": asked, "rank": rank, "neighbor": number, "cosine": cosine}
                        )
    caption = (
        f"For {ASKED} test images, the {NEAR} nearest of {len(looks[0].pixels) - 1} others, by the cosine between the "
        "summaries of the frozen encoder (above each picture). No label is used."
    )
    return chart("neighbors", "Nearest neighbors", caption, page, rows)


def nearest(x: Tensor, asked: int, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the nearest other rows, of the first `asked` rows of x [n d]: two [asked count]."""
    unit = F.normalize(x.nan_to_num(), dim=1)
    cosine = unit[:asked] @ unit.T
    cosine[:, :asked].fill_diagonal_(-2)
    found = cosine.topk(min(count, len(x) - 1), 1)
    return found.values, found.indices


# --- drawing ----------------------------------------------------------------------------------------------------------


def boards(titles: Sequence[str], tall: float = 1.0) -> tuple[Figure, list[Any]]:
    """A figure of one board under another, each with a title."""
    high = tall * (10 / SHOWN) + 0.25
    page = Figure(figsize=(10, high * len(titles)), layout="constrained")
    parts = list(page.subfigures(len(titles), 1, squeeze=False)[:, 0])
    for board, title in zip(parts, titles, strict=True):
        board.suptitle(title, fontsize=9, x=0.01, ha="left", color=SVG["text.color"])
    return page, parts


def pictures(board: Any, images: Iterable[Tensor], **how: Any) -> list[Any]:
    """Images in a row; the rest of the row is empty."""
    axes = list(board.subplots(1, SHOWN, squeeze=False)[0])
    for ax in axes:
        ax.set_axis_off()
    for ax, image in zip(axes, images, strict=False):
        ax.imshow(image, interpolation="nearest", **how)
    return axes


def _patches(maps: Tensor) -> Iterator[tuple[int, int, int]]:
    yield from torch.ones(maps.shape[:3]).nonzero().tolist()


def _shown(pixels: Tensor, grid: Grid | None = None) -> Tensor:
    """Pixels [n 3 H W] as small pictures [n h w 3] in [0, 1]; with a grid, of sides that it divides."""
    size = (THUMB, THUMB) if grid is None else tuple(-(-THUMB // side) * side for side in grid)
    return masks.shown(F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False))
