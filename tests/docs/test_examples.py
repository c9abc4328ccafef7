"""Do the worked plugins and the examples of the pages work?"""

import csv
import json
import re
import textwrap
from pathlib import Path

import pytest

from sslzoo import RecipeError, catalogue, testing
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.processes import World
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


def test_the_mended_mask_of_the_authors_page_is_the_worked_one_and_is_right(tmp_path):
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    broken = re.search(r"```python\n(import torch.*?)```", page, flags=re.S)[1]
    mended = re.search(r"```python\n(size = int.*?)```", page, flags=re.S)[1]
    head, tail = broken.split("        first, second", 1)[0], broken[broken.index("\n\n@hookimpl") :]
    (tmp_path / "edges.py").write_text(head + textwrap.indent(mended, " " * 8) + tail)
    part = catalogue([tmp_path / "edges.py"]).parts["masks"]["edges"]
    assert testing.examine("masks", part.make).ok
    assert textwrap.indent(mended, " " * 8) in (ROOT / "examples" / "edges.py").read_text()


def test_the_page_of_data_makes_an_image_folder_of_cifar10(tmp_path, monkeypatch):
    from PIL import Image

    class CIFAR10(list):
        classes = ("cat", "dog")

        def __init__(self, root, *, train, download):
            super().__init__((Image.new("RGB", (32, 32), (n, 0, 0)), n % 2) for n in range(4 if train else 2))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", CIFAR10)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text()
    exec(re.search(r"```python\n(from pathlib.*?)```", page, flags=re.S)[1], {})
    folder = catalogue().parts["datasets"]["folder"].make
    train, test = (folder(root=tmp_path / "cifar10" / split) for split in ("train", "test"))
    assert (len(train), len(test), train.class_names) == (4, 2, {"class": ("cat", "dog")})
    assert sorted((train.label(i)["class"], train.image(i).getpixel((0, 0))[0]) for i in range(4)) == [
        (0, 0), (0, 2), (1, 1), (1, 3),
    ]  # fmt: skip
