"""Every shipped recipe passes check, carries its header, and resolves to itself; the tiny ones train."""

import math

import pytest
import yaml

from sslzoo import catalogue
from sslzoo.recipe.build import check
from sslzoo.recipe.recipe import load, names, resolve
from sslzoo.run.folder import Folder
from sslzoo.run.parallel import World
from sslzoo.train import Watch, train

NAMES = sorted(names(catalogue()))

# Trainable parameters of encoder and predictor, counted from the published sizes (Assran et al. 2023; tables excluded).
PUBLISHED = {
    "ijepa/vitb16_in1k": (85_646_592, 11_238_912),
    "ijepa/vitl16_in1k": (303_098_880, 22_082_560),
    "ijepa/vith14_in1k": (630_434_560, 22_279_424),
    "ijepa/vith16-448_in1k": (630_664_960, 22_279_424),
    "ijepa/vitg16_in22k": (1_011_092_608, 29_475_712),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_passes_check_and_resolves_to_itself(name, tmp_path):
    recipe, installed = load(name)
    flow = check(recipe, installed)
    assert not flow.unused
    assert flow.flops > 0
    if name in PUBLISHED:
        assert (flow.parameters["encoder"], flow.parameters["predictor"]) == PUBLISHED[name]
    written = resolve(recipe, installed)
    path = tmp_path / "resolved.yaml"
    path.write_text(written)
    again, installed = load(str(path))
    assert yaml.safe_load(resolve(again, installed)) == yaml.safe_load(written)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_carries_its_header(name):
    lines = names(catalogue())[name].read_text().splitlines()
    assert "arXiv" in lines[0]
    assert [line[:9].strip(" #:") for line in lines[1:5]] == ["Run", "Cost", "Expect", "Differs"]
    assert name in lines[1]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("tiny/", "combos/"))])
def test_a_tiny_recipe_trains(name, tmp_path):
    short = ("run.steps=6", "run.batch=8", "run.workers=0", "run.monitor=8", "run.log_every=3", "data.length=40")
    recipe, installed = load(name, short)
    said = []
    train(recipe, installed, check(recipe, installed), tmp_path, World(), Watch(said.append))
    lines = Folder(tmp_path).metrics.read()
    assert [line["step"] for line in lines] == [3, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)
