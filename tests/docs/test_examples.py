"""Do the worked plugins and the examples of the pages work?"""

import csv
import json
import re
from pathlib import Path

import pytest

from sslzoo import RecipeError, catalogue, testing
from sslzoo.recipe.build import check
from sslzoo.recipe.recipe import load
from sslzoo.run.parallel import World
from sslzoo.scaffold import write
from sslzoo.train import train

ROOT = Path(__file__).parents[2]
SHORT = ["run.steps=3", "run.batch=8", "run.workers=0", "run.monitor=0", "run.log_every=1", "data.length=24"]


@pytest.mark.parametrize(
    ("file", "family", "name"),
    [
        ("edges", "masks", "edges"),
        ("blurred_pixels", "targets", "blurred-pixels"),
        ("nearby", "predictors", "nearby"),
        ("variance_covariance", "losses", "variance-covariance"),
        ("few_shot", "probes", "few-shot"),
        ("color_words", "targets", "color-words"),
        ("color_words", "predictors", "words"),
        ("color_words", "losses", "word-entropy"),
    ],
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


def trained(out, sets, *files):
    recipe, installed = load("tiny/ijepa", [*SHORT, *sets], [ROOT / "examples" / f"{name}.py" for name in files])
    train(recipe, installed, check(recipe, installed), out, World())
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_predictor_and_a_term_on_the_context_encoders_own_tokens_beside_ijepas(tmp_path):
    spread = "losses.spread={use: variance-covariance, predict: encoder.context, weight: 0.01}"
    lines = trained(tmp_path, [spread, "predictor={use: nearby}"], "variance_covariance", "nearby")
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss/guess"] + 0.01 * lines[-1]["loss/spread"], rel=1e-5)
    assert lines[-1]["spread/std"] > 0


def test_a_plugin_of_three_families_trains_on_class_ids(tmp_path):
    sets = ["targets={words: {use: color-words}}", "predictor={use: words}"]
    sets += ["losses={guess: {use: word-entropy, predict: predictor.word, target: words.word}}"]
    assert trained(tmp_path, sets, "color_words")[-1]["loss/guess"] < 4
    with pytest.raises(RecipeError, match="holds class ids, but this loss reads rows"):
        check(*load("tiny/ijepa", [*sets, "losses.guess.use=mse"], [ROOT / "examples" / "color_words.py"]))


def test_the_authors_page_shows_what_new_writes(tmp_path):
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    (path,) = write("mask", "stripes", tmp_path, lone=True, installed=catalogue())
    assert f"```python\n{path.read_text()}```" in page


def test_the_mask_of_the_authors_page_fails_as_it_says(tmp_path):
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    (tmp_path / "edges.py").write_text(re.search(r"```python\n(import torch.*?)```", page, flags=re.S)[1])
    part = catalogue([tmp_path / "edges.py"]).parts["masks"]["edges"]
    failed = {result.name: result for result in testing.examine("masks", part.make).failed}
    assert "reaches" in failed
    for line in re.search(r"FAILED (.*?)```", page, flags=re.S)[0].splitlines()[1:3]:
        what, text = line.split(maxsplit=1)
        assert text.rstrip("`") in getattr(failed["reaches"], what)
