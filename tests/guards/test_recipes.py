"""Every shipped recipe passes check, carries its header, and resolves to itself; the tiny ones train."""

import math
import re

import pytest
import yaml

from sslzoo import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names, resolve
from sslzoo.run.folder import Folder
from sslzoo.run.processes import World
from sslzoo.train import Watch, train

FILES = names(catalogue())
NAMES = sorted(FILES)

# Trainable parameters of encoder and predictor, counted from the published sizes (Assran et al. 2023; tables excluded).
PUBLISHED = {
    "ijepa/vitb16_in1k": (85_646_592, 11_238_912),
    "ijepa/vitl16_in1k": (303_098_880, 22_082_560),
    "ijepa/vith14_in1k": (630_434_560, 22_279_424),
    "ijepa/vith16-448_in1k": (630_664_960, 22_279_424),
    "ijepa/vitg16_in22k": (1_011_092_608, 29_475_712),
}


IMAGES = {"IMAGENET": 1_281_167, "IMAGENET22K": 14_200_000, "CIFAR10": 50_000}


def images_seen(recipe):
    if recipe.run.steps:
        return recipe.run.steps * recipe.run.batch
    root = re.match(r"\$\{(\w+)\}", recipe.data["root"])[1]
    return recipe.run.epochs * (IMAGES[root] // recipe.run.batch) * recipe.run.batch


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_passes_check_and_resolves_to_itself(name, tmp_path):
    recipe, installed = load(name)
    flow = check(recipe, installed)
    assert not flow.unused
    assert flow.flops > 0
    told = float(re.search(r"^# Cost: +(\S+) FLOPs, counted", FILES[name].read_text(), flags=re.M)[1])
    assert told == pytest.approx(flow.flops * images_seen(recipe), rel=0.1)
    if name in PUBLISHED:
        assert (flow.parameters["encoder"], flow.parameters["predictor"]) == PUBLISHED[name]
    written = resolve(recipe, installed)
    path = tmp_path / "resolved.yaml"
    path.write_text(written)
    again, installed = load(str(path))
    assert yaml.safe_load(resolve(again, installed)) == yaml.safe_load(written)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_carries_its_header(name):
    lines = FILES[name].read_text().splitlines()
    assert "arXiv" in lines[0]
    assert [line[:9].strip(" #:") for line in lines[1:5]] == ["Run", "Cost", "Expect", "Differs"]
    assert name in lines[1]


def test_no_small_recipe_decays_the_scales_of_its_batch_norms():
    """Towards 0 they would take along what is behind them; patterns such as *norm* miss those of a head."""
    for name in NAMES:
        text = FILES[name].read_text()
        if name.startswith(("tiny/", "cifar10/", "combos/")) and "norm: batch" in text:
            assert yaml.safe_load(text)["optim"].get("decay_vectors") is False, name


def test_no_recipe_balances_more_prototypes_than_rows():
    """Sinkhorn would undo the sharpening: each row would be shared out among several prototypes."""
    for name in NAMES:
        text = FILES[name].read_text()
        if "use: assign" not in text and "use: clusters" not in text:
            continue
        recipe = yaml.safe_load(text)
        read = [view.get("count", 1) for view in recipe.get("views", {}).values() if view.get("role") != "context"]
        rows = recipe["run"]["batch"] * sum(read)
        for part in (*recipe.get("losses", {}).values(), *recipe.get("targets", {}).values()):
            if part["use"] == "assign" or (part["use"] == "clusters" and part.get("placewise", True)):
                assert part.get("prototypes", part.get("clusters")) <= rows, name


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("tiny/", "combos/"))])
def test_a_tiny_recipe_trains(name, tmp_path):
    short = ("run.steps=6", "run.batch=8", "run.workers=0", "run.monitor=8", "run.log_every=3", "data.length=40")
    recipe, installed = load(name, short)
    said = []
    train(recipe, installed, check(recipe, installed), tmp_path, World(), Watch(said.append))
    lines = Folder(tmp_path).metrics.read()
    assert [line["step"] for line in lines] == [3, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)
