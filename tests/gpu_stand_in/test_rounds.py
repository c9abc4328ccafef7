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


def test_the_peak_of_each_of_two_recipes_is_its_own(monkeypatch):
    """The first one's held the second's weights, the second one's the first's optimizer state."""
    recipe, installed = load("tiny/ijepa")
    short = {"steps": speed.READY, "batch": 4, "precision": "bf16"}
    recipe = replace(recipe, run=recipe.run.model_copy(update=short))
    bytes_ = {"now": 0, "peak": 0}
    stepped = set()

    def step(learner, *_given, **_named):  # its first makes the optimizer's state, each needs room for a while
        bytes_["now"] += 0 if id(learner) in stepped else 20
        stepped.add(id(learner))
        bytes_["peak"] = max(bytes_["peak"], bytes_["now"] + 50)

    with standing(recipe, installed, "cuda"):
        build = speed.build
        monkeypatch.setattr(speed, "build", lambda *given: (bytes_.update(now=bytes_["now"] + 10), build(*given))[1])
        monkeypatch.setattr(speed.Learner, "step", step)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: bytes_["now"])
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: bytes_["peak"])
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: bytes_.update(peak=bytes_["now"]))
        world = World(device=torch.device("cuda"))
        found = speed.measure([(recipe, installed)] * 2, world, real=False, steps=2, rounds=1)
        monkeypatch.undo()
    assert [one.memory for one in found] == [80, 80]
