"""`sslzoo verify`: does a part keep its contract?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from sslzoo.cli.options import json_option, plugin_option


@click.command("verify")
@click.argument("words", nargs=-1, required=True, metavar="[FAMILY] NAME")
@plugin_option
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A key of the part; VALUE may be YAML.")
@click.option("--only", metavar="CHECK", help="One check, after those that it needs.")
@click.option("--fast", is_flag=True, help="Leave out the slow checks.")
@click.option("--limit", type=click.FloatRange(min=1), default=600.0, show_default=True, help="Seconds for all of it.")
@json_option
def command(
    words: Sequence[str],
    plugins: tuple[Path, ...],
    sets: tuple[str, ...],
    only: str | None,
    fast: bool,
    limit: float,
    as_json: bool,
) -> None:
    """Check that the part NAME keeps its contract; exit code 1 if it does not.

    Each check is told as soon as it is known; one that fails tells what was expected, what came, and the smallest input
    that shows it. Checks that need a contract that is broken are left out. FAMILY is needed only where several
    families have a part of that name.

    \b
    Examples:
      sslzoo verify multiblock
      sslzoo verify multiblock-legacy --set min_keep=4
      sslzoo verify losses mse
      sslzoo verify my-mask --plugin my_masks.py --set where=3
      sslzoo verify my-mask --plugin my_masks.py --only reaches
      sslzoo verify losses mse --fast
    """
    from sslzoo import testing
    from sslzoo.cli import echo_folded, echo_json
    from sslzoo.errors import Problem, RecipeError, UserError, did_you_mean, shown
    from sslzoo.plugins import catalogue
    from sslzoo.recipe import signature, yamltext
    from sslzoo.recipe.build import maker

    installed = catalogue(plugins)
    families = [words[0]] if len(words) == 2 else list(testing.FAMILIES)
    if len(words) > 2 or families[0] not in testing.FAMILIES:
        close = did_you_mean(words[0], testing.FAMILIES)
        raise UserError(
            f"found {' '.join(words)!r}{close}\nwanted: [FAMILY] NAME; families: {', '.join(testing.FAMILIES)}"
        )
    found = [installed.parts[family][words[-1]] for family in families if words[-1] in installed.parts[family]]
    if not found:
        known = sorted({name for family in families for name in installed.parts[family]})
        close = did_you_mean(words[-1], known)
        hint = "" if plugins else "\na part of your own plugin file is found with --plugin FILE.py"
        raise UserError(f"no part is called {shown(words[-1])}{close}{hint}")
    if len(found) > 1:
        raise UserError(f"several parts are called {words[-1]!r}: say which of {', '.join(p.family for p in found)}")
    part = found[0]
    given = {key: value for _, key, value in yamltext.assigned(sets)}
    keys, problems = signature.validate(signature.keys_of(part.make), given, part.name, repr(part.name))
    if problems:
        raise RecipeError("sslzoo verify", [Problem(one.place, one.message) for one in problems])
    if not as_json:
        click.echo(f"{part.family} {part.name} (plugin {part.plugin} {part.version})")

    def tell(result: testing.Result) -> None:
        if not as_json and result.state != "left out":
            echo_folded(str(result))

    try:
        made = {name: signature.expand(value) for name, value in keys.items()}
    except ValueError as error:
        raise UserError(f"--set: {error}") from error

    make = maker(installed, part) if any(signature.held(part.make, keys)) else part.make
    report = testing.examine(part.family, make, made, only=only, fast=fast, limit=limit, tell=tell)
    if as_json:
        echo_json(
            {"part": part.name, "family": part.family, "ok": report.ok, "checks": [r.__dict__ for r in report.results]}
        )
    else:
        click.echo(report.head)
    sys.exit(0 if report.ok else 1)
