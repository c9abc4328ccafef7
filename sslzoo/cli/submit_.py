"""`sslzoo submit`: train a recipe on a SLURM cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sslzoo.cli.options import Written, json_option, recipe_options

if TYPE_CHECKING:
    from sslzoo.launch.submit import Element


@click.command("submit")
@click.argument("recipe")
@click.option("--cluster", required=True, help="Cluster profile: a name, or a YAML file.")
@click.option("--nodes", default=1, type=click.IntRange(1), help="Nodes.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs of each node; the profile's if left out.")
@click.option("--time", help="Time limit, such as 72h or 3-00:00:00; at it the run saves and is queued again.")
@recipe_options
@click.option("--out", type=Written(folder=True), help="Run folder; runs/NAME if left out.")
@click.option("--evaluate/--no-evaluate", default=True, help="Probe the encoder at the end, if the recipe says how.")
@click.option("--sweep", multiple=True, metavar="KEY=V,V", help="A run for each value; several: each combination.")
@click.option("--seeds", type=click.IntRange(1), help="A run for each of this many seeds.")
@click.option("--limit", type=click.IntRange(1), help="Most runs of a sweep at a time.")
@click.option("--then", multiple=True, metavar="COMMAND", help="Afterwards, such as 'eval --untrained'; {} is the run.")
@click.option("--allow-upgrade", is_flag=True, help="Go on even if a plugin's version is another than before.")
@click.option("--dry-run", is_flag=True, help="Print the batch script and the plan; submit nothing.")
@json_option
def command(
    recipe: str,
    cluster: str,
    nodes: int,
    gpus: int | None,
    time: str | None,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    out: Path | None,
    evaluate: bool,
    sweep: tuple[str, ...],
    seeds: int | None,
    limit: int | None,
    then: tuple[str, ...],
    allow_upgrade: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE on a SLURM cluster: one process a GPU, requeued after preemption and at the time limit.

    Profiles go by name: your own, ~/.config/sslzoo/clusters/NAME.yaml, and those that ship (`sslzoo list clusters`).

    \b
    Examples:
      sslzoo submit ijepa/vith14_in1k --cluster a100-80gb --nodes 2 --gpus 8 --time 72h
      sslzoo submit tiny/ijepa --cluster my.yaml --gpus 1 --dry-run
      sslzoo submit tiny/ijepa --cluster my.yaml --gpus 1 --sweep optim.lr=1e-3,5e-4 --seeds 3 --limit 4
      sslzoo submit tiny/ijepa --cluster my.yaml --gpus 1 --then 'eval --untrained'
    """
    from sslzoo.cli import echo_json
    from sslzoo.launch.submit import Asked, elements, plan, script, submit, with_folder

    asked = Asked(cluster, nodes, gpus, time, evaluate, limit, then)
    found = elements(recipe, sets, plugins, out, sweep, seeds)
    made = plan(found, asked)
    for words in then:
        refuse_wrong(found[0], words)
    split = f"batch {found[0].recipe.run.batch} over {made.processes} processes"
    if dry_run:
        click.echo(script(found, made))
        click.echo(f"# {len(found)} run{'s' if len(found) > 1 else ''}; {split}; {made.nodes} nodes x {made.gpus} GPUs")
        for one in found:
            click.echo(f"# {one.folder}")
        each = " (for each run)" if len(found) > 1 else ""
        alone = f"1 process on {min(1, made.gpus)} GPU, submitted along, that waits until"
        if evaluate and found[0].recipe.evaluate is not None:
            click.echo(f"# probing{each}: a job of {alone} the run has succeeded; --time {made.profile.probing_time}")
        for words in then:
            called = " ".join(with_folder(words, found[0].folder))
            click.echo(f"# then{each}: a job of {alone} all before it has succeeded: sslzoo {called}")
        return
    jobs = submit(found, asked, sys.argv[1:], upgrade=allow_upgrade)
    submitted = [{"run": str(one.folder), "job": job} for one, job in zip(found, jobs, strict=True)]
    if as_json:
        echo_json(submitted)
        return
    for one in submitted:
        click.echo(f"job {one['job']}: {one['run']}")
    click.echo(f"{split}; follow with: sslzoo status {found[0].folder if len(found) == 1 else found[0].folder.parent}")


def refuse_wrong(run: Element, given: str) -> None:
    """Raises UserError if words are no command that could follow a run, or an evaluation that it could not have."""
    from sslzoo.cli import cli
    from sslzoo.errors import UserError
    from sslzoo.launch.submit import with_folder

    try:
        with click.Context(cli) as parent:
            name, command, rest = cli.resolve_command(parent, list(with_folder(given, run.folder)))
            if command is None or "--help" in rest or "-h" in rest:
                raise UserError(f"--then: found {given!r}; a command is wanted, such as 'eval --untrained'")
            context = command.make_context(name, rest, parent=parent)
    except click.ClickException as error:
        raise UserError(f"--then: found {given!r}; {error.format_message()}") from error
    if name == "eval" and not context.params["plugins"]:
        network = context.params["network"]
        sets = [*context.params["sets"], *([f"evaluate.network={network}"] if network else [])]
        _refuse_evaluation(run, sets, context.params["probes"], given)


def _refuse_evaluation(run: Element, sets: Sequence[str], probes: Sequence[str], given: str) -> None:
    import yaml

    from sslzoo.cli import eval_
    from sslzoo.errors import UserError
    from sslzoo.recipe.recipe import change, resolve

    had = yaml.safe_load(resolve(run.recipe, run.installed))
    try:
        eval_.refuse_wrong(run.folder, had, change(run.recipe, run.installed, sets), run.installed, probes)
    except UserError as error:
        raise UserError(f"--then: found {given!r}; {error}") from error
