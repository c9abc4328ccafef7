"""`sslzoo train`: train a recipe in this process, or under torchrun; the same command resumes."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import recipe_options


@click.command("train")
@click.argument("recipe")
@recipe_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder; runs/NAME if left out.")
@click.option("--evaluate/--no-evaluate", default=True, help="Probe the encoder at the end, if the recipe says how.")
def command(recipe: str, sets: tuple[str, ...], plugins: tuple[Path, ...], out: Path | None, evaluate: bool) -> None:
    """Train RECIPE: a recipe's name, a YAML file, or a run folder.

    The same command resumes from the newest checkpoint of the run folder. Under torchrun, every process joins in.

    \b
    Examples:
      sslzoo train tiny/ijepa
      sslzoo train tiny/ijepa --set run.steps=60 --set run.save_every=7 --out runs/short
      sslzoo train tiny/ijepa --set 'masks.image={use: random, hide: 0.6}'
      sslzoo train my.yaml --plugin my_masks.py
      torchrun --nproc-per-node 8 -m sslzoo train ijepa/vitb16_in1k
    """
    from sslzoo import parallel
    from sslzoo.build import check
    from sslzoo.cli.display import Display
    from sslzoo.recipe import load
    from sslzoo.train import train

    read, catalogue = load(recipe, sets, plugins)
    world = parallel.join(None if read.run.device == "auto" else read.run.device)
    out = out or Path("runs") / read.name
    flow = check(read, catalogue)
    with Display() as display:
        if world.first:
            display.say(f"{read.name} in {out}")
        parts = train(read, catalogue, flow, out, world, display.say, display.show)
    parallel.leave()
    if world.first and evaluate and read.evaluate is not None:
        from sslzoo.build import build
        from sslzoo.evaluate import finish, table
        from sslzoo.report.page import write

        figures = finish(read, catalogue, parts, out, world.device, display.say)
        display.console.print(table(figures))
        display.say(f"plots: {write(read, catalogue, parts, build(read, catalogue)[1], out, figures)}")
