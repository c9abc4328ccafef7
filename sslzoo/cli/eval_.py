"""`sslzoo eval`: probe the frozen encoder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslzoo.cli.options import json_option, recipe_options

if TYPE_CHECKING:
    from sslzoo.plugins import Catalogue
    from sslzoo.recipe.recipe import Recipe


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--probe", "probes", multiple=True, help="Only this probe of the recipe's section evaluate.")
@click.option("--network", help="A target generator's name, or student; the recipe's choice if left out.")
@click.option("--step", type=int, help="The checkpoint of this step; the newest if left out.")
@click.option("--untrained", "also_untrained", is_flag=True, help="Beside it, the same encoder as it started.")
@recipe_options
@json_option
def command(
    run: Path,
    probes: tuple[str, ...],
    network: str | None,
    step: int | None,
    also_untrained: bool,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Probe the frozen encoder of the run folder RUN, as the section evaluate of its recipe says.

    \b
    Examples:
      sslzoo eval runs/ijepa-tiny
      sslzoo eval runs/ijepa-tiny --probe knn --untrained
      sslzoo eval runs/ijepa-tiny --network student --set 'evaluate.probes={knn: {use: knn, k: [20]}}' --json
    """
    from rich.console import Console

    from sslzoo.cli import echo_json
    from sslzoo.evaluate.bench import bench, restored, untrained
    from sslzoo.evaluate.figures import probe, table
    from sslzoo.recipe.recipe import load_run
    from sslzoo.run.folder import Folder
    from sslzoo.run.networks import network_of
    from sslzoo.run.processes import join

    recipe, installed = load_run(run, sets, plugins)
    refuse_wrong(run, Folder(run).tree()[0] or {}, recipe, installed, probes)
    say = lambda text: click.echo(text, err=True)  # noqa: E731 - beside the figures, which a script may read
    device = join(recipe.run.device, 1).device
    opened = bench(recipe, installed, probes, device=device, folder=run, say=say)
    method, steps = restored(recipe, installed, run, step, say)
    network = network_of(method, opened.settings.network if network is None else network)
    methods = {f"step {steps}": method}
    if also_untrained:
        methods["untrained"] = untrained(recipe, installed)
    figures, path = probe(opened, recipe, installed, methods, steps, network, run, device, say)
    if as_json:
        echo_json(figures)
    else:
        Console().print(table(figures))
        click.echo(f"written to {path}")


def refuse_wrong(
    run: Path, had: Mapping[str, Any], recipe: Recipe, installed: Catalogue, probes: Sequence[str] = ()
) -> None:
    """Sees that the encoder of a run, of which the recipe `had` is resolved, can be probed as this recipe says.

    Raises:
        UserError: it cannot, as far as is known without the data, which are opened, and told of, next.
    """
    from sslzoo.errors import UserError, did_you_mean
    from sslzoo.evaluate.bench import section
    from sslzoo.evaluate.rehearse import rehearse
    from sslzoo.recipe.resuming import differences

    rows = differences(had, recipe, installed)
    if rows:
        lines = "".join(f"    {row}\n" for row in rows)
        raise UserError(f"{run} was trained with other settings:\n{lines}--set changes what `evaluate` says here")
    rehearse(recipe, installed, data=False)
    known = section(recipe).probes
    for name in probes:
        if name not in known:
            there = f"the recipe has: {', '.join(known)}"
            raise UserError(f"no probe is called {name!r}{did_you_mean(name, known)}\n{there}")
