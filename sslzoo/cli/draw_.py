"""`sslzoo draw`: pictures of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslzoo.cli.options import Written, recipe_options

if TYPE_CHECKING:
    from torch import Tensor

    from sslzoo.plugins import Catalogue


@click.command("draw")
@click.argument("what", nargs=-1, required=True)
@recipe_options
@click.option("--out", type=Written(), default=Path("masks.png"), help="The picture.")
@click.option("--grid", default="14x14", help="Rows x columns of patches, for samplers named alone.")
@click.option("--images", default=4, type=click.IntRange(1, 12), help="Images that masks are laid over.")
@click.option("--batch", default=64, type=click.IntRange(1), help="Images whose masks are drawn together.")
@click.option("--seed", default=0, help="Another seed draws other masks.")
def command(
    what: tuple[str, ...],
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    out: Path,
    grid: str,
    images: int,
    batch: int,
    seed: int,
) -> None:
    """Draw the masks of a RECIPE over its images; or of mask samplers, side by side, by name.

    Each row: masks over images (what is seen in full, target blocks in colors), how often each patch is seen and asked
    for, and the share of the image that is seen.

    \b
    Examples:
      sslzoo draw tiny/ijepa --out masks.png
      sslzoo draw multiblock multiblock-legacy rasterized block random --grid 14x14
      sslzoo draw my-mask --plugin my_masks.py --grid 16x24
    """
    from sslzoo.errors import UserError
    from sslzoo.plugins import catalogue
    from sslzoo.report.masks import compare, save

    installed = catalogue(plugins)
    if all(name in installed.parts["masks"] for name in what):
        size = _grid(grid)
        samplers = {name: _made(installed, name) for name in what}
        pictures = _scenes(installed, images, size)
    else:
        samplers, pictures, size = _of_recipe(what, sets, plugins, images, installed)
    try:
        save(compare(samplers, pictures, size, batch=max(batch, images), seed=seed), out)
    except ValueError as error:
        raise UserError(str(error)) from error
    click.echo(f"drawn to {out}")


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise click.UsageError(f"--grid: found {text!r}; rows x columns is wanted, such as 14x14")
    return int(rows), int(columns)


def _made(installed: Catalogue, name: str) -> Any:
    from sslzoo.recipe.build import make

    return make(installed, "masks", {"use": name}, place=f"masks.{name}")


def _scenes(installed: Catalogue, count: int, grid: tuple[int, int]) -> Tensor:
    import torch

    from sslzoo.recipe.build import make
    from sslzoo.report.masks import synthetic

    if "scenes" not in installed.parts["datasets"]:
        return synthetic(count, grid)
    side = [n * max(1, round(192 / max(grid))) for n in grid]
    data = make(installed, "datasets", {"use": "scenes", "length": count, "size": side}, place="data")
    return torch.stack([data.image(i) for i in range(count)]).permute(0, 2, 3, 1) / 255


def _of_recipe(
    what: Sequence[str], sets: tuple[str, ...], plugins: tuple[Path, ...], images: int, installed: Catalogue
) -> tuple[dict[str, Any], Tensor, tuple[int, int]]:

    from sslzoo.errors import UserError, did_you_mean
    from sslzoo.recipe.build import build
    from sslzoo.recipe.recipe import load, names
    from sslzoo.report.masks import shown
    from sslzoo.run.data import first_views

    if len(what) > 1:
        known = installed.parts["masks"]
        wrong = next(name for name in what if name not in known)
        raise UserError(
            f"no mask sampler is called {wrong!r}{did_you_mean(wrong, known)}\ninstalled: {', '.join(known)}"
        )
    if not Path(what[0]).exists() and what[0] not in names(installed):
        known = [*installed.parts["masks"], *names(installed)]
        raise UserError(
            f"no mask sampler or recipe is called {what[0]!r}{did_you_mean(what[0], known)}\n"
            f"mask samplers: {', '.join(sorted(installed.parts['masks']))}; `sslzoo list recipes` lists all recipes"
        )
    recipe, loaded = load(what[0], sets, plugins)
    method, sources = build(recipe, loaded)
    if not sources.masks:
        raise UserError(f"{what[0]} has no section masks, so there is nothing to draw")
    group = next(iter(sources.masks))
    view = sources.views[group].view
    pixels = first_views(sources.data, view, images, images, recipe.run.seed)
    sampler = {str(recipe.masks[group]["use"]): sources.masks[group]}
    return sampler, shown(pixels), method.student.encoder.grid(view.size)
