"""`sslzoo resume`: go on with a run, the way it was started."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sslzoo.cli.options import allow_changed_data, changed_data_option


@click.command("resume")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cluster", help="Another cluster profile than before.")
@click.option("--nodes", type=click.IntRange(1), help="Another number of nodes.")
@click.option("--gpus", type=click.IntRange(0), help="Another number of GPUs of each node.")
@click.option("--time", help="Another time limit.")
@click.option("--allow-upgrade", is_flag=True, help="Resume even if a plugin's version is another than before.")
@changed_data_option
def command(
    run: Path,
    cluster: str | None,
    nodes: int | None,
    gpus: int | None,
    time: str | None,
    allow_upgrade: bool,
    changed_data: bool,
) -> None:
    """Go on with the run RUN from its newest checkpoint: as a job if it was submitted, else in this process.

    \b
    Examples:
      sslzoo resume runs/ijepa-tiny
      sslzoo resume runs/vith14 --nodes 4 --time 24h
    """
    from dataclasses import fields

    from sslzoo.errors import UserError
    from sslzoo.launch.submit import Asked, Element, code, plan, refuse_if_active, send
    from sslzoo.launch.work import work
    from sslzoo.recipe.recipe import load_run
    from sslzoo.recipe.resuming import refuse_upgrade
    from sslzoo.run.folder import Folder
    from sslzoo.run.state import State
    from sslzoo.run.stop import Stop

    state = State(run)
    launch, fault = state.launch, state.launch_fault
    known = {field.name for field in fields(Asked)}
    if fault or not launch.get("asked", {}).keys() <= known or (launch and "cluster" not in launch["asked"]):
        raise UserError(
            f"{fault or f'{run}/launch.json is of another version'}, so nothing tells how this run was submitted\n"
            f"go on in this process with `sslzoo train {run}`, or on a cluster with `sslzoo submit {run} --out {run} "
            "--cluster NAME`"
        )
    changed = {"cluster": cluster, "nodes": nodes, "gpus": gpus, "time": time}
    changed = {name: value for name, value in changed.items() if value is not None}
    recipe, installed = load_run(run)
    if not allow_upgrade:
        refuse_upgrade(Folder(run), recipe, installed)
    allow_changed_data(run, changed_data)
    if not launch:
        if changed:
            raise UserError(f"{run} was not submitted to a cluster; `sslzoo submit {run} --out {run}` does")
        stop = Stop()
        stop.listen()
        work(recipe, installed, run, stop, evaluate=True, upgrade=True)
        return
    refuse_if_active(run)
    asked = Asked(**{**launch["asked"], "then": tuple(launch["asked"].get("then", ())), **changed})
    element = Element(run, recipe, installed)
    made = plan([element], asked)
    # With an upgrade this run alone goes on with the code of now, else with that of its submission.
    top = run.resolve() if allow_upgrade else Path(launch["top"])
    use = code([element], top) if allow_upgrade else Path(launch["code"])
    (job,) = send(made, [element], asked, top, sys.argv[1:], use)
    click.echo(f"job {job}: {run}")
