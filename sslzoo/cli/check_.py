"""`sslzoo check`: validate a recipe and rehearse one step on nothing."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import json_option, recipe_options


@click.command("check")
@click.argument("recipe")
@recipe_options
@json_option
def command(recipe: str, sets: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool) -> None:
    """Validate RECIPE and print what flows through one step: shapes, parameters, arithmetic.

    Opens no data set, but says which of the folders and files that they name are not on this machine.

    \b
    Examples:
      sslzoo check ijepa/vith14_in1k
      sslzoo check my.yaml --plugin my_masks.py --set encoder.size=small
    """
    from sslzoo.cli import echo_json
    from sslzoo.evaluate.rehearse import absent, rehearse
    from sslzoo.recipe.fit import check
    from sslzoo.recipe.recipe import load

    read, installed = load(recipe, sets, plugins)
    flow = check(read, installed)
    rehearse(read, installed, data=False)
    missing = absent(read, installed)
    if as_json:
        rows = [dict(zip(("part", "shape", "remark"), row, strict=True)) for row in flow.rows]
        more = {"parameters": flow.parameters, "flops_per_image": flow.flops, "no_gradient": flow.unused}
        more |= {"remarks": flow.remarks, "data_not_here": missing}
        echo_json({"name": read.name, "rows": rows} | more)
        return
    click.echo(str(flow))
    some = f"{flow.images} image{'s' if flow.images > 1 else ''}"
    click.echo(f"shapes are those of {some}; batch {read.run.batch}, {flow.flops / 1e9:.2f} GFLOP an image")
    for one in missing:
        click.echo(f"data not here: {one}")
    click.echo("ok")
