"""`sslzoo plugins`: who is installed, and what each offers."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import json_option, plugin_option


@click.command("plugins")
@plugin_option
@json_option
def command(plugins: tuple[Path, ...], as_json: bool) -> None:
    """Who is installed, and what each offers.

    \b
    Examples:
      sslzoo plugins
      sslzoo plugins --plugin my_masks.py
      SSLZOO_PLUGINS=vit,ijepa sslzoo plugins --json
    """
    from rich.console import Console
    from rich.table import Table

    from sslzoo.cli import echo_json
    from sslzoo.plugins import catalogue

    installed = catalogue(plugins)
    rows = []
    for plugin in installed.plugins.values():
        parts = {
            family: sorted(name for name, part in family_parts.items() if part.plugin == plugin.name)
            for family, family_parts in installed.parts.items()
        }
        offers = {family: names for family, names in parts.items() if names}
        rows.append(
            {
                "name": plugin.name,
                "version": plugin.version,
                "from": plugin.origin,
                "hooks": list(plugin.hooks),
                "offers": offers,
            }
        )
    if as_json:
        echo_json(rows)
        return
    table = Table("plugin", "version", "from", "offers", box=None, header_style="bold")
    for row in rows:
        offers = "; ".join(f"{family}: {', '.join(names)}" for family, names in row["offers"].items())
        others = [
            hook.removeprefix("sslzoo_") for hook in row["hooks"] if hook.removeprefix("sslzoo_") not in row["offers"]
        ]
        table.add_row(row["name"], row["version"], row["from"], "; ".join(filter(None, [offers, *others])))
    Console().print(table)
