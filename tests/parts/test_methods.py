"""Do the fragments of docs/methods.md make methods that can take a step?"""

import re
from pathlib import Path

import pytest
import yaml

from sslzoo import catalogue
from sslzoo.recipe import fit, recipe
from sslzoo.recipe.recipe import names

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
REST = """
name: fragment
data: {use: folder, root: .}
views: {image: {use: crop, size: 96}}
optim: {lr: 0.001}
run: {steps: 1, batch: 2}
"""


def fragments():
    found = re.findall(r"### (.+?)\n.*?```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)
    return [pytest.param(text, id=title) for title, text in found]


@pytest.mark.parametrize("text", fragments())
def test_every_fragment_takes_a_step_that_teaches_every_weight(text, tmp_path):
    # 96 pixels rather than 224 to be quick: a grid of 6 x 6 keeps fewer patches than the published floor.
    (tmp_path / "fragment.yaml").write_text(text.replace("min_keep: 10", "min_keep: 1") + REST)
    flow = fit.check(*recipe.load(str(tmp_path / "fragment.yaml")))
    assert not flow.unused
    assert flow.flops > 0


def test_the_page_has_its_fragments():
    assert len(fragments()) == 8


def test_the_map_says_what_the_recipes_say():
    known = names(catalogue())
    cells = " (.+?) \\|" * 6
    rows = re.findall(rf"^\| \[?((?:tiny|combos)/\w+)(?:\]\((.+?)\))? \|{cells}$", PAGE.read_text(), flags=re.M)
    assert {name for name in known if name.startswith(("tiny/", "combos/"))} == {name for name, *_ in rows}
    for name, page, views, *words in rows:
        tree = yaml.safe_load(known[name].read_text())
        assert re.findall(r"`(.+?)`", views) == list(tree["views"]), name
        ones = [{"one": tree["encoder"]}, {"one": tree["predictor"]}]
        wanted = [tree.get("masks", {}), *ones, tree.get("targets", {}), tree["losses"]]
        for cell, parts in zip(words, wanted, strict=True):
            assert re.findall(r"`(.+?)`", cell) == list(dict.fromkeys(part["use"] for part in parts.values())), name
        assert (PAGE.parent / page).is_file() if name.startswith("tiny/") else not page


@pytest.mark.parametrize("page", sorted((PAGE.parent / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_tells_its_method_in_words_that_exist(page):
    text = page.read_text()
    headings = re.findall(r"^## (.+)", text, flags=re.M)
    assert headings == ["Source", "What differs", "Published figures", "Cost"]
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    drawing = re.search(r"```\n(.*?)```", text, flags=re.S)[1]
    assert "-->" in drawing
    installed = catalogue().parts
    families = ("views", "masks", "encoders", "predictors", "targets", "losses")
    answers = re.findall(r"^\| (?:what|who|how) .*?\|.*?\| (.+?) \|$", text, flags=re.M)
    assert len(answers) == 5
    for word in {word for answer in answers for word in re.findall(r"`(.+?)`", answer)}:
        assert any(word in installed[family] for family in families), word
