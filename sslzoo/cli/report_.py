"""`sslzoo report`: the page of a run, of a study, or of any runs beside one another."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import Written


@click.command("report")
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=Written(folder=True), help="Study folder; runs/NAME if left out.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path, exists=True), help="Plugin file.")
@click.option("--baseline", help="For runs: the variant that others are compared to; the first if left out.")
def command(what: tuple[Path, ...], out: Path | None, plugins: tuple[Path, ...], baseline: str | None) -> None:
    """Write the page of the run folder WHAT; or of a study (a YAML file, or a shipped one's name), or of several runs.

    Nothing is trained or probed: the page shows what there is. It is one HTML file that opens offline; every figure
    lies beside it as SVG, with its numbers as CSV.

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

    asked = Asked(out=out, plugins=plugins, baseline=baseline)
    study = find_study(what[0], plugins) if len(what) == 1 else None
    if study is not None:
        page_of_study(study, asked)
    elif len(what) == 1 and is_run(what[0]):
        click.echo(f"page: {page.of(what[0], lambda text: click.echo(text, err=True))}")
    else:
        compare_runs([run for one in what for run in folders(one)], asked)
