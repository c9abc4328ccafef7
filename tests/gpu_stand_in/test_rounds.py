"""What `sslzoo bench` measures on a GPU is the device's own time: nothing in a round waits for it."""

from dataclasses import replace

import torch
from stand_in import standing

from sslzoo import speed
from sslzoo.recipe.recipe import load
from sslzoo.run.processes import World


def test_nobody_waits_for_the_device_within_a_round():
    recipe, installed = load("tiny/ijepa")
    short = {"steps": speed.READY, "batch": 4, "precision": "bf16"}
    recipe = replace(recipe, run=recipe.run.model_copy(update=short))
    with standing(recipe, installed, "cuda") as seen:
        world = World(device=torch.device("cuda"))
        (found,) = speed.measure([(recipe, installed)], world, real=False, steps=3, rounds=2)
    waits = [crossing.op for crossing in seen.crossings if crossing.blocks]
    assert waits, "the ends of rounds are waited for"
    assert set(waits) == {"synchronize"}
    # One at each end of a round (its end read twice), two for each of five products a round, one after the warm-up.
    assert len(waits) == 2 * (3 + 8) + 1
    assert (found.precision, found.memory, found.steps) == ("bfloat16", 2, 6)
    assert set(found.stages) == set(speed.STAGES)
    # Every mark is a second later on this clock: each stage is entered once a step, but for the whole forward pass,
    # which targets and loss cut in three.
    assert found.stages["forward"] == 3.0
    assert found.stages["targets"] == found.stages["loss"] == found.stages["EMA"] == 1.0
