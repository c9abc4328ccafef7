"""What should a person see of a run at a glance? One page: masks, curves, features, figures."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from string import Template

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from sslzoo.contracts import Dataset, Grid, View
from sslzoo.evaluate.bench import Figures, untrained
from sslzoo.evaluate.figures import main_figures
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import make
from sslzoo.recipe.recipe import Recipe
from sslzoo.report import masks
from sslzoo.run.data import Sources, draw_mask, readable, seed_views
from sslzoo.run.folder import Folder
from sslzoo.run.monitor import evaluated_encoder
from sslzoo.step import Method

SHOWN = 8  # images on the page
INK, ACCENT, PALE = "#2b4162", "#e4572e", "#b8c4d6"


def write(
    recipe: Recipe, installed: Catalogue, method: Method, sources: Sources, folder: Path, figures: Mapping[str, Figures]
) -> Path:
    """Draws the page of a run: report/page.png, and report/index.html that holds it with the table of figures."""
    place = folder / "report"
    place.mkdir(parents=True, exist_ok=True)
    figure = _page(recipe, installed, method, sources, Folder(folder).metrics.read(), figures)
    figure.savefig(place / "page.png", dpi=110)
    picture = base64.b64encode((place / "page.png").read_bytes()).decode()
    html = _HTML.substitute(name=escape(recipe.name), picture=picture, table=_table(figures))
    (place / "index.html").write_text(html)
    return place / "index.html"


def _page(
    recipe: Recipe,
    installed: Catalogue,
    method: Method,
    sources: Sources,
    lines: Sequence[Mapping[str, float]],
    figures: Mapping[str, Figures],
) -> Figure:
    page = Figure(figsize=(15, 13), layout="constrained")
    page.suptitle(recipe.name, fontsize=15, fontweight="bold")
    top, middle, low = list(page.subfigures(3, 1, height_ratios=[1.15, 1.0, 1.9]))  # type: ignore[call-overload]
    _masks(top, recipe, method, sources)
    _curves(middle, lines, figures)
    encoders = {"trained": evaluated_encoder(method), "untrained": evaluated_encoder(untrained(recipe, installed))}
    _features(low, encoders, _pixels(recipe, installed, sources))
    return page


def _masks(page: Figure, recipe: Recipe, method: Method, sources: Sources) -> None:
    page.suptitle("masks: what is seen, and the blocks to guess", fontsize=11, x=0.01, ha="left")
    if not sources.masks:
        page.text(0.5, 0.5, "this method has no masks", ha="center", color=INK)
        return
    name = next(iter(sources.masks))
    view, sampler = sources.views[name].view, sources.masks[name]
    grid = method.student.encoder.grid(view.size)
    pixels = _seen(sources.data, view, SHOWN - 3, recipe.run.seed)
    mask = draw_mask(sampler, grid, recipe.run.seed, 0, range(len(pixels)))
    axes = page.subplots(1, SHOWN, gridspec_kw={"width_ratios": [1] * (SHOWN - 3) + [1.1, 1.1, 1]})
    for blank in axes[len(pixels) : SHOWN - 3]:
        blank.set_axis_off()
    for row, image in enumerate(masks.shown(pixels)):
        masks.sample(axes[row], image, mask, row, grid)
    found = masks.survey(sampler, grid, 32, recipe.run.seed)
    masks.coverage(axes[-3], found.context, "how often seen")
    masks.coverage(axes[-2], found.target, "how often asked for")
    masks.context_shares(axes[-1], found.shares)


def _curves(page: Figure, lines: Sequence[Mapping[str, float]], figures: Mapping[str, Figures]) -> None:
    axes = page.subplots(1, 4, gridspec_kw={"width_ratios": [1.3, 1, 1, 1.6]})
    _curve(axes[0], lines, ["loss"], "loss")
    _curve(
        axes[1],
        lines,
        [key for key in (lines[-1] if lines else {}) if key.endswith("_std")],
        "standard deviation over rows",
    )
    _curve(axes[2], lines, ["rankme"], "RankMe of monitored images")
    _bars(axes[3], figures)


def _curve(ax: Axes, lines: Sequence[Mapping[str, float]], keys: Sequence[str], title: str) -> None:
    colours = (INK, ACCENT, "#3a9b5c", "#6a4c93")
    for number, key in enumerate(keys):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        colour = colours[number % len(colours)]
        ax.plot(x, y, color=colour, alpha=0.3 if len(y) > 40 else 1, linewidth=1)
        if len(y) > 40:
            ax.plot(x, _smooth(y), color=colour, linewidth=1.8, label=key)
        else:
            ax.lines[-1].set_label(key)
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel("step", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    if len(keys) > 1:
        ax.legend(fontsize=7, frameon=False)
    _open(ax)


def _smooth(y: Sequence[float], share: float = 0.05) -> list[float]:
    """A moving average over a twentieth of the run, centred."""
    half = max(1, int(len(y) * share / 2))
    return [sum(y[max(0, i - half) : i + half + 1]) / len(y[max(0, i - half) : i + half + 1]) for i in range(len(y))]


def _bars(ax: Axes, figures: Mapping[str, Figures]) -> None:
    if not figures:
        ax.set_axis_off()
        return
    rows, columns = main_figures(figures), list(figures)
    colours = (ACCENT, PALE, "#e8e8e8")
    wide = 0.8 / len(columns)
    for number, column in enumerate(columns):
        x = [place + (number - (len(columns) - 1) / 2) * wide for place in range(len(rows))]
        bars = ax.bar(x, [values[number] for _, values in rows], wide, color=colours[number % 3], label=column)
        ax.bar_label(bars, fmt="%.0f", fontsize=6)
    ax.set_xticks(range(len(rows)), [name.replace("/", "\n") for name, _ in rows], fontsize=7)
    ax.set_title("frozen probes, top-1 in percent", fontsize=11, loc="left")
    ax.legend(fontsize=7, frameon=False)
    ax.tick_params(axis="y", labelsize=8)
    _open(ax)


def _features(page: Figure, encoders: Mapping[str, nn.Module], pixels: Tensor) -> None:
    page.suptitle("patch features: their first three principal components as colours", fontsize=11, x=0.01, ha="left")
    if not len(pixels):
        page.text(0.5, 0.5, "no image could be read", ha="center", color=INK)
        return
    axes = page.subplots(1 + len(encoders), SHOWN)
    rows = {"image": masks.shown(pixels)}
    rows |= {f"{name} encoder": components(encoder, pixels) for name, encoder in encoders.items()}
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax, image in zip(line, images, strict=False):  # a small data set leaves places free
            ax.imshow(image, interpolation="nearest")
        for number, ax in enumerate(line):
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_frame_on(number < len(images))


@torch.no_grad()
def components(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """First three principal components of all patch features of some images, as colours: [n h w 3] in [0, 1]."""
    mode = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    tokens = encoder(pixels.to(device))
    encoder.train(mode)
    grid: Grid = tokens.grid
    x = tokens.patches.float().cpu().flatten(0, 1)
    x = x - x.mean(0)
    _, _, axes = torch.linalg.svd(x.nan_to_num(), full_matrices=False)
    found = x @ axes[:3].T
    low, high = found.quantile(0.02, 0), found.quantile(0.98, 0)
    return ((found - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).reshape(len(pixels), *grid, 3)


def _pixels(recipe: Recipe, installed: Catalogue, sources: Sources) -> Tensor:
    if recipe.evaluate is not None:
        data = make(installed, "datasets", recipe.evaluate.test, place="evaluate.test")
        view = make(installed, "views", recipe.evaluate.view, place="evaluate.view")
    else:
        data, view = sources.data, next(iter(sources.views.values())).view
    return _seen(data, view, SHOWN, recipe.run.seed)


def _seen(data: Dataset, view: View, most: int, seed: int) -> Tensor:
    """Views of the first images that can be read, at most some: [n 3 H W]."""
    images = [image for _, image in islice(readable(data, len(data)), most)]
    seed_views(seed)
    pixels = [view(image)[0] for image in images]
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, *view.size)


def _open(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _table(figures: Mapping[str, Figures]) -> str:
    if not figures:
        return ""
    cell = lambda value: "" if math.isnan(value) else f"{value:.1f}"  # noqa: E731 - one word for one use
    head = "".join(f"<th>{escape(name)}</th>" for name in ("top-1, percent", *figures))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell(value)}</td>' for value in values)}</tr>"
        for name, values in main_figures(figures)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


_HTML = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$name</title>
<style>
body { font: 15px system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
img { width: 100% }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: right } td:first-child, th:first-child { text-align: left }
</style></head>
<body><h1>$name</h1>$table
<img alt="masks, curves, figures and features" src="data:image/png;base64,$picture"></body></html>
""")
