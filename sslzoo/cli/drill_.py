"""`sslzoo drill`: rehearse a preemption."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sslzoo.cli.options import Written, recipe_options


@click.command("drill")
@click.argument("recipe")
@click.option("--cluster", help="Cluster profile; in processes of this machine if left out.")
@click.option("--nodes", default=1, type=click.IntRange(1), help="Nodes.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs of each node; the profile's if left out.")
@click.option("--time", default="30m", help="Time limit of each job.")
@click.option("--steps", default=60, type=click.IntRange(6), help="Steps of the rehearsed runs.")
@click.option("--out", type=Written(folder=True), help="Folder; runs/drill-NAME if left out.")
@recipe_options
def command(
    recipe: str,
    cluster: str | None,
    nodes: int,
    gpus: int | None,
    time: str,
    steps: int,
    out: Path | None,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
) -> None:
    """Rehearse a preemption of RECIPE: a short run unbroken, one stopped and resumed, and a verdict.

    Exit code 0 if the run may be trusted to resume here.

    \b
    Examples:
      sslzoo drill tiny/ijepa
      sslzoo drill ijepa/vith14_in1k --cluster a100-80gb --nodes 2
    """
    from dataclasses import replace

    from sslzoo.launch.drill import empty, here, on_cluster, short
    from sslzoo.launch.submit import Asked, elements, plan

    if cluster is None and (nodes, gpus, time) != (1, None, "30m"):
        raise click.UsageError("--nodes, --gpus and --time are for --cluster; a drill here takes this machine as it is")
    (element,) = elements(recipe, sets, plugins, out, (), None)
    folder = out or element.folder.with_name(f"drill-{element.recipe.name}")
    asked = None if cluster is None else Asked(cluster, nodes, gpus, time, evaluate=False)
    if asked is not None:
        plan([element], asked)  # is anything wrong with what is asked?
    empty(folder)
    element = short(replace(element, folder=folder), steps)
    verdict = here(element, click.echo) if asked is None else on_cluster(element, asked, click.echo)
    click.echo(str(verdict))
    sys.exit(0 if verdict.sound else 1)
