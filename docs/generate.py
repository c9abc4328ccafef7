"""Writes the pages that are made from the code: `python docs/generate.py`. A test sees that they are up to date."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

from sslzoo import hooks
from sslzoo.recipe import told, yamltext
from sslzoo.scaffold.api import NAMES, describe

HEAD = """# Hooks: what a plugin can offer

A plugin is a module whose functions, marked `@hookimpl`, carry the names below. It is found through the entry-point
group `sslzoo`, or named as a file: in a recipe (`plugins: [./my_masks.py]`) or on the command line
(`--plugin my_masks.py`). `SSLZOO_PLUGINS=vit,ijepa` loads only these installed plugins; `SSLZOO_TRACE=1` prints every
hook call.

This page is made from `sslzoo/hooks.py` by `python docs/generate.py`.
"""


def hooks_page() -> str:
    """docs/hooks.md, from the live hook specifications."""
    parts = [HEAD]
    for name, function in vars(hooks).items():
        if name.startswith("sslzoo_"):
            text, _, example = inspect.getdoc(function).partition("    @hookimpl")
            code = textwrap.dedent("    @hookimpl" + example).strip()
            signature = str(inspect.signature(function)).replace("'", "")
            parts.append(f"## `{name}{signature}`\n\n{text.strip()}\n\n```python\n{code}\n```\n")
    return "\n".join(parts)


API = """# What authors import

Every public name, with its docstring; `sslzoo show Rng` prints one. The letters of shapes are explained in
[contracts](contracts.md).

This page is made from the code by `python docs/generate.py`.
"""


def api_page() -> str:
    """docs/api.md, from the docstrings of all that plugins may import."""
    parts = [API]
    for home, names in NAMES.items():
        parts.append(f"## `{home}`\n")
        parts += [f"### `{name}`\n\n```text\n{describe(name)}```\n" for name in names.split()]
    return "\n".join(parts)


def recipes_page() -> str:
    """docs/recipes.md with its table of the keys of sections, from the models that check them."""
    tables = []
    for name, model in told.SECTIONS.items():
        rows = [f"| `{name}` | takes | default | means | may change when a run is resumed |", "|---|---|---|---|---|"]
        for key in told.keys(model):
            default = "needed" if key.needed else f"`{yamltext.written(key.default)}`"
            takes, means = (text.replace("|", "\\|") for text in (key.type, key.meaning))
            rows.append(f"| `{key.name}` | {takes} | {default} | {means} | {'yes' if key.free else 'no'} |")
        tables.append("\n".join(rows) + "\n")
    head, tail = "<!-- made by docs/generate.py -->\n", "<!-- to here -->"
    page = Path(__file__).with_name("recipes.md").read_text()
    return re.sub(f"{head}.*?{tail}", lambda _: head + "\n".join(tables) + tail, page, flags=re.S)


if __name__ == "__main__":
    Path(__file__).with_name("recipes.md").write_text(recipes_page())
    Path(__file__).with_name("api.md").write_text(api_page())
    Path(__file__).with_name("hooks.md").write_text(hooks_page())
