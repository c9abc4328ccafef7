"""Whole runs on a GPU that computes: losses are the CPU's, and a resumed run is the unbroken one bit for bit."""

import json
import shutil

import pytest
import torch
from computing import DEVICE, computing
from safetensors.torch import load_file

from sslzoo import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names
from sslzoo.run.clock import TIMING
from sslzoo.run.processes import World
from sslzoo.train import train

SHORT = [
    "data.length=64",
    *(f"run.{key}" for key in ("steps=3", "batch=8", "log_every=1", "save_every=2 steps", "monitor=8")),
    "run.monitor_every=2 steps",
]
TINY = sorted(name for name in names(catalogue()) if name.startswith("tiny/"))
QUICK = ("tiny/capi", "tiny/ijepa")


def lines(run):
    """What its log lines say of training, not of time."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def last(run):
    return load_file(run / "checkpoints" / "step-000000003.safetensors")


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in TINY])
def test_a_run_there_learns_as_here_and_goes_on_exactly(name, tmp_path):
    recipe, installed = load(name, SHORT)
    flow = check(recipe, installed)
    here, there, resumed = (tmp_path / one for one in ("here", "there", "resumed"))
    train(recipe, installed, flow, here, World())
    with computing():
        train(recipe, installed, flow, there, World(device=DEVICE))
        shutil.copytree(there, resumed)
        (resumed / "checkpoints" / "step-000000003.safetensors").unlink()
        train(recipe, installed, flow, resumed, World(device=DEVICE))
    for theirs, ours in zip(lines(there), lines(here), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)
    unbroken, again = last(there), last(resumed)
    assert unbroken.keys() == again.keys() == last(here).keys()
    assert all(torch.equal(unbroken[key], again[key]) for key in unbroken)
