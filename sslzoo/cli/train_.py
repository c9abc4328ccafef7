"""`sslzoo train`: train a recipe in this process, or under torchrun; the same command resumes."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import Written, allow_changed_data, changed_data_option, recipe_options


@click.command("train")
@click.argument("recipe")
@recipe_options
@click.option(
    "--out",
    type=Written(folder=True),
    help="Run folder; if left out, runs/NAME, or RECIPE itself if that is a run folder.",
)
@click.option("--evaluate/--no-evaluate", default=True, help="Probe the encoder at the end, if the recipe says how.")
@click.option("--allow-upgrade", is_flag=True, help="Resume even if a plugin's version is another than before.")
@changed_data_option
def command(
    recipe: str,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    out: Path | None,
    evaluate: bool,
    allow_upgrade: bool,
    changed_data: bool,
) -> None:
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
    from sslzoo.launch.work import work
    from sslzoo.recipe.recipe import load
    from sslzoo.run.stop import Stop

    stop = Stop()
    stop.listen()
    read, installed = load(recipe, sets, plugins)
    folder = Path(recipe) if (Path(recipe) / "recipe.yaml").is_file() else read.folder
    allow_changed_data(out or folder, changed_data)
    work(read, installed, out or folder, stop, evaluate=evaluate, upgrade=allow_upgrade)
