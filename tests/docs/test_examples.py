"""Do the worked plugins and the examples of the pages work?"""

import csv
import re
from pathlib import Path

import pytest

from sslzoo import catalogue, testing
from sslzoo.recipe.build import check
from sslzoo.recipe.recipe import load
from sslzoo.run.parallel import World
from sslzoo.train import train

ROOT = Path(__file__).parents[2]
SHORT = ["run.steps=3", "run.batch=8", "run.workers=0", "run.monitor=0", "run.log_every=1", "data.length=24"]


@pytest.mark.parametrize(
    ("file", "family", "name"), [("edges", "masks", "edges"), ("blurred_pixels", "targets", "blurred-pixels")]
)
def test_a_worked_plugin_keeps_its_contract(file, family, name):
    part = catalogue([ROOT / "examples" / f"{file}.py"]).parts[family][name]
    report = testing.examine(family, part.make)
    assert report.ok, report


def test_worked_plugins_train_together(tmp_path):
    files = [ROOT / "examples" / f"{name}.py" for name in ("edges", "blurred_pixels", "csv_log")]
    sets = [*SHORT, "masks.image={use: edges}", "targets={blurred: {use: blurred-pixels, cells: 8}}"]
    sets += ["predictor={use: ijepa, width: 48, depth: 1, heads: 3, to: pixels}", "losses.guess.target=blurred.patch"]
    recipe, installed = load("tiny/ijepa", sets, files)
    train(recipe, installed, check(recipe, installed), tmp_path, World())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3"]


def test_the_mask_of_the_authors_page_fails_as_it_says(tmp_path):
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    (tmp_path / "edges.py").write_text(re.search(r"```python\n(import torch.*?)```", page, flags=re.S)[1])
    part = catalogue([tmp_path / "edges.py"]).parts["masks"]["edges"]
    failed = {result.name: result for result in testing.examine("masks", part.make).failed}
    assert "reaches" in failed
    for line in re.search(r"FAILED (.*?)```", page, flags=re.S)[0].splitlines()[1:3]:
        what, text = line.split(maxsplit=1)
        assert text.rstrip("`") in getattr(failed["reaches"], what)
