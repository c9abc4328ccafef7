"""`sslzoo bench`: how fast is a step here, and where does its time go?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sslzoo.cli.options import Written, json_option, recipe_options

if TYPE_CHECKING:
    from sslzoo.speed import Result


@click.command("bench")
@click.argument("recipe")
@click.option("--against", metavar="RECIPE|JSON", help="Another recipe, timed in turn; or what --out wrote earlier.")
@click.option("--against-set", "other_sets", multiple=True, metavar="KEY=VALUE", help="As --set, for --against alone.")
@click.option(
    "--data", type=click.Choice(["ready", "real"]), default="ready", help="Ready-made batches, or the loader."
)
@click.option("--steps", type=click.IntRange(2), help="Steps of a round; 10, or as many as loaders make ahead.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Rounds; with --against, in turn.")
@click.option(
    "--parallel", type=click.Choice(["none", "ddp", "fsdp"]), default="none", help="Wrap one process as many."
)
@click.option("--out", type=Written(), help="Also write the result here, as JSON.")
@click.option("--chart", type=Written(endings=(".svg", ".png")), help="Also draw the stages: .svg or .png.")
@recipe_options
@json_option
def command(
    recipe: str,
    against: str | None,
    other_sets: tuple[str, ...],
    data: str,
    steps: int | None,
    rounds: int,
    parallel: Literal["none", "ddp", "fsdp"],
    out: Path | None,
    chart: Path | None,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Time steps of RECIPE on this machine, whole and stage by stage; nothing is trained or saved.

    A step is one micro-batch on each process, as a run there would take it, by the training loop's own code.
    Utilisation is the recipe's counted arithmetic, mean over mask draws, beside a large matrix product measured in the
    same run. --set and --plugin hold for both recipes. Under torchrun, every process joins in. No ratio is told beside
    an earlier result of another device, precision, number of processes or of images.

    \b
    Examples:
      sslzoo bench tiny/ijepa
      sslzoo bench tiny/ijepa --data real --chart stages.svg
      sslzoo bench tiny/ijepa --against tiny/ijepa --against-set run.compile=true
      sslzoo bench ijepa/vith14_in1k --set run.micro=64 --out h14.json
    """
    from sslzoo.cli import echo_json
    from sslzoo.recipe.recipe import load
    from sslzoo.report import speed as report
    from sslzoo.run.processes import join, leave, lone_group
    from sslzoo.speed import measure

    if other_sets and (against is None or against.endswith(".json")):
        raise click.UsageError("--against-set changes the recipe of --against, and none is given")
    earlier = _earlier(against) if against is not None and against.endswith(".json") else None
    loaded = [load(recipe, sets, plugins)]
    if against is not None and earlier is None:
        loaded.append(load(against, (*sets, *other_sets), plugins))
    world = join(loaded[0][0].run.device)
    with lone_group(world, parallel) as world:
        found = measure(loaded, world, real=data == "real", steps=steps, rounds=rounds)
    leave()
    if not world.first:
        return
    results = {recipe: found[0]}
    if against is not None:
        results[f"{against} (2)" if against == recipe else against] = earlier or found[1]
    if out is not None:
        _write(out, results)
    if chart is not None:
        report.chart(results, chart)
    if as_json:
        echo_json([one.as_dict() for one in results.values()])
    else:
        click.echo(report.table(results, apart=earlier is not None))


def _earlier(path: str) -> Result:
    import json

    from sslzoo.errors import UserError
    from sslzoo.speed import read

    try:
        return read(json.loads(Path(path).read_text())[0])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"--against {path}: this is nothing that `sslzoo bench --out` wrote ({error})") from error


def _write(path: Path, results: dict[str, Result]) -> None:
    import json

    path.write_text(json.dumps([one.as_dict() for one in results.values()], indent=1) + "\n")
