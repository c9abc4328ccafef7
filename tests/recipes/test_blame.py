"""A plugin that misbehaves is told from an engine that does: name, version, call, line of the recipe, shapes in letters."""

import re

import pytest
from recipe_text import GOOD

from sslzoo import RecipeError
from sslzoo.launch.work import work
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.stop import Stop

PLUGIN = """
from torch import nn
from sslzoo import Signal, hookimpl

class Bad(nn.Module):
    projector = None
    def __init__(self, encoder, *, wrong: str = ""):
        super().__init__()
        if wrong == "made":
            raise KeyError("nothing there")
        self.wrong = wrong
        self.outputs = {"patch": Signal("patch", encoder.width)}
        self.blocks = nn.ModuleList()
        self.out = nn.Linear(encoder.width, encoder.width + (wrong == "width"))
        self.calls = 0
    def forward(self, tokens, target, at):
        self.calls += 1
        if self.wrong == "later" and self.calls > 3:
            raise RuntimeError("enough")
        if self.wrong == "name":
            return {"pach": self.out(target.flat(tokens.summary[:, None, None].expand(-1, *target.index.shape[1:], -1)))}
        rows = target.flat(tokens.summary[:, None, None].expand(-1, *target.index.shape[1:], -1))
        return {"patch": self.out(rows)[: len(rows) - (self.wrong == "rows")]}

@hookimpl
def sslzoo_predictors():
    return {"bad": Bad}
"""


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "bad.py").write_text(PLUGIN)

    def recipe(wrong):
        text = GOOD.replace("{use: ijepa, width: 32, depth: 1, heads: 2}", f"{{use: bad, wrong: {wrong}}}")
        (tmp_path / "r.yaml").write_text(text + "plugins: [./bad.py]\n")
        return load(str(tmp_path / "r.yaml"))

    return recipe


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("made", "failed when it was made: KeyError"),
        ("width", r"returned patch \[(\d+) 193\]; the contract says \[t e\] = \[\1 192\]"),
        ("rows", r"returned patch \[(15|31) 192\]; the contract says \[t e\] = \[(16|32) 192\]"),
        ("name", "returned pach; it declares patch"),
    ],
)
def test_what_leaves_a_part_is_compared_with_its_contract(bad, wrong, says):
    with pytest.raises(RecipeError) as caught:
        check(*bad(wrong))
    (problem,) = caught.value.problems
    assert (problem.place, problem.line) == ("predictor", 8)
    assert re.search(says, problem.message)  # how many rows is the rehearsal's own affair


def test_an_error_while_training_names_plugin_version_and_line(bad, tmp_path):
    recipe, installed = bad("later")
    with pytest.raises(RuntimeError, match="enough") as caught:
        work(recipe, installed, tmp_path / "run", Stop(), evaluate=False)
    (note,) = caught.value.__notes__
    version = next(plugin.version for name, plugin in installed.plugins.items() if name.endswith("bad.py"))
    assert f"this arose in the plugin {tmp_path / 'bad.py'} {version}, in forward()" in note
    assert "predictor 'bad' (line 8 of" in note
    assert note in (tmp_path / "run" / "failure.txt").read_text()


def test_an_error_of_the_engine_blames_no_plugin(bad, tmp_path, monkeypatch):
    import sslzoo.train

    def broken(*_):
        raise RuntimeError("engine")

    monkeypatch.setattr(sslzoo.train.optim, "clip", broken)
    with pytest.raises(RuntimeError, match="engine") as caught:
        work(*bad("nothing"), tmp_path / "run", Stop(), evaluate=False)
    assert not getattr(caught.value, "__notes__", [])
