"""Every hook is documented with its live signature, and used by a plugin that ships."""

import ast
import importlib.util
import re
from pathlib import Path

from sslzoo import hooks, load

ROOT = Path(__file__).parents[2]


def test_the_page_of_hooks_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / "hooks.md").read_text() == generate.hooks_page(), "run: python docs/generate.py"
    assert (ROOT / "docs" / "api.md").read_text() == generate.api_page(), "run: python docs/generate.py"
    assert (ROOT / "docs" / "recipes.md").read_text() == generate.recipes_page(), "run: python docs/generate.py"


def test_every_name_that_plugins_may_import_is_on_the_page_with_a_docstring():
    import sslzoo
    from sslzoo.scaffold.api import HOME, NAMES, describe

    assert set(sslzoo.__all__) - set(NAMES["sslzoo"].split()) == {"__version__"}
    assert all(len(describe(name).splitlines()) > 2 for name in HOME)
    assert "  .sequence\n    which sequence a row belongs to" in describe("Pairing")
    for foreign in ("int([x])", "partial(", "Built-in immutable"):  # docstrings of the types of values
        assert not any(foreign in describe(name) for name in HOME)


def test_every_hook_of_the_page_has_an_example_that_is_a_whole_function():
    page = (ROOT / "docs" / "hooks.md").read_text()
    examples = [ast.parse(code).body for code in re.findall(r"```python\n(.*?)```", page, flags=re.S)]
    assert len(examples) == sum(name.startswith("sslzoo_") for name in vars(hooks))
    assert all(isinstance(one, ast.FunctionDef) and one.name.startswith("sslzoo_") for (one,) in examples)


def test_every_hook_is_used_by_a_shipped_plugin():
    manager = load()
    names = [name for name in vars(hooks) if name.startswith("sslzoo_")]
    unused = [name for name in names if not getattr(manager.hook, name).get_hookimpls()]
    assert not unused


def test_every_shipped_part_describes_itself_and_its_keys():
    import inspect

    from sslzoo import catalogue

    silent = []
    for family in catalogue().parts.values():
        for part in family.values():
            doc = inspect.getdoc(part.make) or ""
            keys = [p.name for p in inspect.signature(part.make).parameters.values() if p.kind is p.KEYWORD_ONLY]
            silent += [f"{part.family} {part.name}: {key}" for key in keys if f"{key}:" not in doc]
            silent += [f"{part.family} {part.name}"] if not doc else []
    assert not silent
