"""What does `sslzoo compare` do, from the words on the command line to the page?"""

from __future__ import annotations

import json
import re
import shlex
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sslzoo.compare import cells, evaluation, fairness, page, study, table
from sslzoo.contracts import Grid
from sslzoo.errors import UserError, did_you_mean
from sslzoo.evaluate.bench import asked as asked_for
from sslzoo.report import records
from sslzoo.report.records import Record


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    out: Path | None = None
    plugins: tuple[Path, ...] = ()
    dry_run: bool = False
    jobs: int = 1
    cluster: str | None = None
    baseline: str | None = None
    as_json: bool = False
    patch: Grid | None = None  # from which attention is drawn


def run_study(path: Path, asked: Asked) -> bool:
    """Runs what is left of a study, evaluates it, writes its page; returns whether the comparison is fair.

    Raises:
        UserError: a cell failed; the others are compared. Or it was stopped.
    """
    console = Console(stderr=asked.as_json)
    read = study.read(path, asked.out, asked.plugins, measure=asked.cluster is None)
    evaluation.refuse_unfit(read, data=asked.cluster is None)
    if asked.dry_run:
        console.print(_costs(read))
        return True
    if asked.cluster is not None:
        from sslzoo.launch.submit import Asked as Submission

        submission = Submission(asked.cluster, networks=read.keys.networks)
        if cells.on_cluster(read, submission, sys.argv[1:], click.echo):
            return True
    try:
        failed = cells.here(read, asked.jobs, console) + evaluation.evaluate(read, console)
    except KeyboardInterrupt:
        raise UserError("stopped while probing; the same command goes on") from None
    fair = _tell_study(read, path, asked)
    if failed:
        lost = f"{len(failed)} of {len(read.cells)} cells failed and are left out: {'; '.join(failed)}"
        raise UserError(f"{lost}\n`sslzoo status {read.folder}` says why; the same command tries them again")
    return fair


def page_of_study(path: Path, asked: Asked) -> bool:
    """Writes the page of what there is of a study; returns whether the comparison is fair.

    Raises:
        UserError: none of its cells has begun, or the study was edited since.
    """
    read = study.read(path, asked.out, asked.plugins, measure=False)
    cells.refuse_edited(read, more=False)
    return _tell_study(read, path, asked)


def _tell_study(read: study.Study, path: Path, asked: Asked) -> bool:
    begun = [cell for cell in read.cells if cells.has_begun(cell)]
    if not begun:
        raise UserError(f"nothing of the study {read.name} has run in {read.folder}: `sslzoo compare {path}` runs it")
    found = {
        one.name: [
            records.read(cell.folder, one.name, cell.recipe.evaluate and asked_for(cell.recipe, cell.installed))
            for cell in begun
            if cell.variant == one.name
        ]
        for one in read.variants
    }
    variants = {name: some for name, some in found.items() if some}
    commands = f"sslzoo compare {path}{_options(asked)}\n\n{path.read_text()}"
    waiting = [f"{cell.variant}, seed {cell.seed}: not begun" for cell in read.cells if cell not in begun]
    held, folder = read.keys.budget.equal, read.folder
    return _tell(read.name, variants, read.baseline, read.named(), held, folder, commands, asked, waiting)


def compare_runs(folders: Sequence[Path], asked: Asked) -> bool:
    """The reading half, for any runs that exist."""
    twice = [str(one) for i, one in enumerate(folders) if one.resolve() in {other.resolve() for other in folders[:i]}]
    if twice:
        raise UserError(f"found {twice[0]} twice; a run is compared with others: name each once")
    for folder in folders:
        within = sorted(folder.glob("**/recipe.yaml")) if not (folder / "recipe.yaml").exists() else []
        if within:
            some = within[0].parent.parent
            what = f"{folder} is no run folder, but holds {len(within)}: name those, such as {some}/*"
            raise UserError(f"{what}; or the YAML file of the study that made them")
    variants = records.by_recipe(list(folders))
    baseline = asked.baseline or next(iter(variants))
    if baseline not in variants:
        message = f"no variant is called {baseline!r}{did_you_mean(baseline, variants)}"
        raise UserError(f"{message}\nvariants: {', '.join(variants)}")
    commands = "sslzoo compare " + shlex.join(map(str, folders)) + _options(asked)
    name = "-".join(re.sub(r"[^\w.]", "_", one)[:30] for one in list(variants)[:3])
    folder = (
        asked.out or Path("runs") / "compared" / f"{name}-{zlib.crc32(commands.encode(errors='surrogateescape')):08x}"
    )
    return _tell("comparison", variants, baseline, {}, "", folder, commands, asked)


def _options(asked: Asked) -> str:
    patch = asked.patch and "{},{}".format(*asked.patch)
    given = [("--baseline", asked.baseline), ("--out", asked.out), *(("--plugin", one) for one in asked.plugins)]
    given.append(("--patch", patch))
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in given if value is not None)


def _tell(
    name: str,
    variants: Mapping[str, Sequence[Record]],
    baseline: str,
    named: Mapping[str, tuple[str, ...]],
    held: str,
    folder: Path,
    commands: str,
    asked: Asked,
    waiting: Sequence[str] = (),
) -> bool:
    for fault in (fault for found in variants.values() for one in found for fault in one.faults):
        click.echo(f"warning: {fault}", err=True)
    fair = fairness.box(variants, named, held)
    found = table.compare(variants, baseline)
    found = replace(found, left_out=[*found.left_out, *waiting])
    console = Console(stderr=asked.as_json)
    for line in table.verdict(found):
        console.print(line, markup=False, highlight=False)
    console.print(table.shown(found))
    for finding in fair.unfair:
        console.print(f"unfair: {finding}", markup=False, highlight=False)
    for line in found.left_out:
        console.print(f"left out: {line}", markup=False, highlight=False)
    written = page.write(folder / "report", name, variants, found, fair, commands, asked.patch)
    console.print(f"page: {written}", markup=False, highlight=False)
    if asked.as_json:
        click.echo(json.dumps(table.as_json(found, fair), indent=2, default=str))
    return not fair.unfair


def _costs(read: study.Study) -> Table:
    """What a study will cost, before any of it runs."""
    shown = Table("variant", "changes", "steps", "images", "FLOPs a run", box=None, header_style="bold")
    for one in read.variants:
        images = one.steps * one.cost.batch
        sets = ", ".join(one.sets) or "(the base)"
        shown.add_row(one.name, sets, str(one.steps), f"{images:,}", f"{images * one.cost.flops:.3g}")
    total = sum(one.steps * one.cost.batch * one.cost.flops for one in read.variants) * len(read.seeds)
    shown.caption = (
        f"{len(read.cells)} cells ({len(read.variants)} variants x {len(read.seeds)} seeds), {total:.3g} FLOPs"
    )
    return shown
