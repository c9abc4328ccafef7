"""`sslzoo compare`: a study, or runs that exist, as a table that may be trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sslzoo.cli.options import Written, json_option


@click.command("compare")
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=Written(folder=True), help="Folder of the study (runs/NAME if left out) or the page.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path, exists=True), help="Plugin file.")
@click.option("--dry-run", is_flag=True, help="Tell the cells and their cost; run none.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="Cells trained at a time on this machine.")
@click.option("--cluster", help="Cluster profile: one job array instead of this machine.")
@click.option("--strict", is_flag=True, help="Exit with code 1 if the comparison is unfair.")
@click.option("--baseline", help="For runs: the variant that others are compared to; the first if left out.")
@json_option
def command(
    what: tuple[Path, ...],
    out: Path | None,
    plugins: tuple[Path, ...],
    dry_run: bool,
    jobs: int,
    cluster: str | None,
    strict: bool,
    baseline: str | None,
    as_json: bool,
) -> None:
    """Run the study WHAT (a YAML file, or a shipped one's name), or compare the run folders WHAT; write a page.

    A study goes on where it was left: finished cells are not run again.

    \b
    Examples:
      sslzoo compare tiny/masks --dry-run
      sslzoo compare masks.yaml
      sslzoo compare runs/ijepa-a runs/ijepa-b --strict
    """
    from sslzoo.compare.command import Asked, compare_runs, run_study
    from sslzoo.compare.study import find_study

    asked = Asked(out, plugins, dry_run, jobs, cluster, baseline, as_json)
    study = find_study(what[0], plugins) if len(what) == 1 else None
    if study is not None and baseline is not None:
        raise click.UsageError("--baseline is for runs; of a study, its own key baseline says it")
    if study is None and (dry_run or cluster is not None or jobs != 1):
        raise click.UsageError("--dry-run, --jobs and --cluster are for a study; runs are only read")
    fair = compare_runs(what, asked) if study is None else run_study(study, asked)
    if strict and not fair:
        sys.exit(1)
