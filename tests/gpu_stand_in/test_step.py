"""Whole steps on a GPU that is not there: every shipped recipe at full size, and every toy method."""

import math
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from stand_in import run, shallow, shortened

from sslzoo import catalogue
from sslzoo.recipe.recipe import load, names
from sslzoo.run import data, metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from toy_recipes import METHODS, write

KINDS = ("cuda", "meta")
UNFUSED = ("lamb", "muon")  # timm's: the host asks for them whether a step is finite (sslzoo/run/optim.py)
STANDING = sorted(names(catalogue()))
loaded = cache(load)  # shapes and sizes of all recipes are asked for before the first test
GROWING = (None, "tiny", "small", "base", "large", "huge", "giant")


def shape(name):
    """What a step of a recipe is made of, sizes aside."""
    recipe, _ = loaded(name)
    wiring = (recipe.targets, recipe.losses, {"encoder": recipe.encoder, "predictor": recipe.predictor})
    parts = [(key, spec["use"], spec.get("to"), spec.get("hidden")) for part in wiring for key, spec in part.items()]
    return str([parts, recipe.optim["use"], len(recipe.views)])


def size(name):
    recipe, _ = loaded(name)
    return GROWING.index(recipe.encoder.get("size"))


# Of those made alike, the largest stands for all. The marker `slow` takes every one, in full depth.
LARGEST = {shape(name): name for name in sorted(STANDING, key=size)}.values()
# Deep ResNets, which cannot be made shallow (cifar10's are made alike), and recipes that other tests train for real.
LONG = ("byol/", "simclr/", "vicreg/", "tiny/")


def assert_nobody_waits(seen):
    """Between log lines the host never waits for the device, and one small copy leaves it: the votes."""
    quiet = [crossing for crossing in seen.crossings if crossing.step == 0]
    assert not [crossing for crossing in quiet if crossing.blocks]
    # Batches travel while others compute; what a loss draws for itself on the CPU (SIGReg's directions) is small.
    assert not [one for one in quiet if one.way == "in" and not one.aside and math.prod(one.shape) > 1 << 16]
    assert [(c.step, c.shape) for c in quiet if c.way == "out"] == [(0, (2,))]
    assert [crossing for crossing in seen.crossings if crossing.step == 1 and crossing.blocks], "a log line is read"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", sorted(one for one in LARGEST if not one.startswith(LONG) and not one.endswith("_cpu"))
)
def test_every_shape_of_shipped_recipe_takes_steps(name, kind, tmp_path):
    recipe, installed = load(name)
    recipe = shallow(recipe) if recipe.encoder.get("size") else recipe
    seen = run(shortened(recipe), installed, kind, tmp_path)
    if kind == "cuda" and recipe.optim["use"] not in UNFUSED:
        assert_nobody_waits(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", STANDING)
def test_every_shipped_recipe_takes_steps_in_full_depth(name, tmp_path):
    recipe, installed = load(name)
    seen = run(shortened(recipe), installed, "cuda", tmp_path)
    if recipe.optim["use"] not in UNFUSED:
        assert_nobody_waits(seen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_takes_steps(method, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLZOO_PLUGINS", "optimizers")
    recipe, installed = load(str(write(tmp_path, method)))
    seen = run(shortened(recipe), installed, kind, tmp_path / "run")
    if kind == "cuda":
        assert_nobody_waits(seen)


# --- the stand-ins see what they are for: the code before them fails ---


def test_a_metric_on_another_device_is_seen(tmp_path, monkeypatch):
    def stacked(given, _device):
        given = {name: torch.tensor(x) if isinstance(x, float) else x for name, x in given.items()}
        return dict(zip(given, torch.stack([x.double() for x in given.values()]).tolist(), strict=True))

    monkeypatch.setattr("sslzoo.train.collect", stacked)
    recipe, installed = load("tiny/ijepa")
    with pytest.raises(RuntimeError, match="device"):
        run(shortened(recipe), installed, "meta", tmp_path)


def test_a_number_copied_to_the_device_is_seen(tmp_path, monkeypatch):
    full = torch.full

    def copied(size, value, **named):
        return torch.tensor(value, **named) if size == () else full(size, value, **named)

    monkeypatch.setattr(data.torch, "full", copied)
    recipe, installed = load("tiny/ijepa")
    seen = run(shortened(recipe), installed, "cuda", tmp_path)
    with pytest.raises(AssertionError):
        assert_nobody_waits(seen)


def test_computing_on_what_still_travels_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("stand_in._Stream.wait_stream", lambda *_: None)
    recipe, installed = load("tiny/ijepa")
    with pytest.raises(AssertionError, match="still travels"):
        run(shortened(recipe), installed, "cuda", tmp_path)


def test_numbers_stay_and_tensors_are_averaged():
    found = metrics.collect({"a": torch.tensor(2.0), "m": 0.9, "b": torch.tensor(3)}, torch.device("cpu"))
    assert found == {"a": 2.0, "m": 0.9, "b": 3.0}
    assert list(found) == ["a", "m", "b"]
    assert metrics.collect({}, torch.device("cpu")) == {}
