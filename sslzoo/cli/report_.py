"""`sslzoo report`: the page of a run, of a study, or of any runs beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslzoo.cli.options import Written


class Patch(click.ParamType):
    """Row and column of a patch."""

    name = "patch"

    def convert(self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The two numbers; fails on anything else."""
        parts = value.split(",") if isinstance(value, str) else [str(one) for one in value]
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            self.fail(f"found {value!r}; row,column is wanted, counted from 0, such as 3,4", param, ctx)
        return int(parts[0]), int(parts[1])


@click.command("report")
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=Written(folder=True), help="Folder of the study (runs/NAME if left out) or the page.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path, exists=True), help="Plugin file.")
@click.option("--baseline", help="For runs: the variant that others are compared to; the first if left out.")
@click.option("--patch", type=Patch(), metavar="ROW,COLUMN", help="Draw attention from this patch, counted from 0.")
def command(
    what: tuple[Path, ...],
    out: Path | None,
    plugins: tuple[Path, ...],
    baseline: str | None,
    patch: tuple[int, int] | None,
) -> None:
    """Write the page of the run folder WHAT; or of a study (a YAML file, or a shipped one's name); or of several runs.

    Nothing is trained or probed: the page shows what there is. It is one HTML file that opens offline; every figure
    lies beside it as SVG, with its numbers as CSV. Attention is drawn from the class token, else from the patch in the
    middle, or from --patch.

    \b
    Examples:
      sslzoo report runs/ijepa-tiny
      sslzoo report runs/a runs/b --baseline a
      sslzoo report tiny/masks
    """
    from sslzoo.compare.command import Asked, compare_runs, page_of_study
    from sslzoo.compare.study import find_study
    from sslzoo.launch.follow import folders, is_run
    from sslzoo.report import page

    asked = Asked(out=out, plugins=plugins, baseline=baseline, patch=patch)
    study = find_study(what[0], plugins) if len(what) == 1 else None
    if study is not None:
        if baseline is not None:
            raise click.UsageError("--baseline is for runs; of a study, its own key baseline says it")
        page_of_study(study, asked)
    elif len(what) == 1 and is_run(what[0]):
        click.echo(f"page: {page.of(what[0], lambda text: click.echo(text, err=True), patch)}")
    else:
        compare_runs([run for one in what for run in folders(one)], asked)
