"""Every shipped tiny recipe, made very small, through the same engine: alone, in pairs, sharded, broken and resumed.

Plain SGD stands for the recipes' optimizers: Adam turns the rounding noise of parameters without a true gradient
(biases before batch norms, keys' biases) into steps of any sign, which no two ways of summing share.
"""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslzoo import RecipeError, RunError, catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names
from sslzoo.run import checkpoint
from sslzoo.run.folder import Folder

pytestmark = pytest.mark.slow

DRIVE = Path(__file__).parents[1] / "engine" / "drive.py"
RECIPES = sorted(name for name in names(catalogue()) if name.startswith("tiny/"))
COMBINATIONS = sorted(name for name in names(catalogue()) if name.startswith("combos/"))
SMALL = (
    "data.length=16",
    "optim={use: sgd, lr: 0.001}",
    "run.steps=3",
    "run.batch=8",
    "run.log_every=1",
    "run.save_every=1",
    "run.keep=9",
    "run.monitor=0",
)


def drive(out, *recipes, ranks=1, sets=()):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, str(DRIVE), str(out), *recipes, "--", *SMALL, *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs for each way of training; a way is trained when first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def trained(way):
        ranks, shard = map(int, way.split("-"))
        if not (folder / way).exists():
            drive(folder / way, *RECIPES, ranks=ranks, sets=(f"run.shard={shard}",))
        return folder / way

    return trained


def end(run):
    """The method's tensors in a run's newest checkpoint."""
    tensors = checkpoint.newest(Folder(run).checkpoints, print).tensors
    return {name: value for name, value in tensors.items() if name.startswith("method.")}


def losses(run):
    return [line["loss"] for line in Folder(run).metrics.read()]


def folder_of(name):
    return load(name)[0].name


@pytest.mark.two_ranks
@pytest.mark.parametrize("way", ["2-1", "2-2"], ids=["copies", "sharded"])
@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_equal_one(runs, name, way):
    one, two = (runs(which) / folder_of(name) for which in ("1-1", way))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert len(losses(one)) == 3
    assert all(map(math.isfinite, losses(one)))
    wanted, found = end(one), end(two)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=2e-5), key


@pytest.mark.two_ranks
def test_a_broken_run_goes_on_as_if_unbroken(runs, tmp_path):
    whole = runs("1-1")
    for name in RECIPES:
        shutil.copytree(whole / folder_of(name), tmp_path / folder_of(name))
        checkpoint.path_of(Folder(tmp_path / folder_of(name)).checkpoints, 3).unlink()
    drive(tmp_path, *RECIPES)
    for name in RECIPES:
        one, other = end(whole / folder_of(name)), end(tmp_path / folder_of(name))
        assert all(torch.equal(one[key], other[key]) for key in one), name
        assert losses(whole / folder_of(name)) == losses(tmp_path / folder_of(name))


@pytest.mark.parametrize("name", RECIPES)
def test_micro_batches_are_refused_where_images_are_related_and_the_flow_is_whole(name):
    recipe, installed = load(name, (*SMALL, "run.micro=4"))
    try:
        flow = check(recipe, installed)
    except (RecipeError, RunError) as error:
        assert "relates all images of a batch" in str(error)  # noqa: PT017 - either way is right
        return
    assert not flow.unused


def test_every_combination_learns(tmp_path):
    """At one rate, without warm-up or frozen layers: over the recipes' own first steps nothing needs to fall yet."""
    quick = ("data.length=64", "optim={use: adamw, lr: 0.003}", "run.steps=30", "run.save_every=30", "run.keep=1")
    drive(tmp_path, *COMBINATIONS, sets=quick)
    for name in COMBINATIONS:
        found = losses(tmp_path / folder_of(name))
        assert sum(found[-10:]) < sum(found[:10]), name
