"""A step is whole or none; and what the optimizers, groups and schedules of a recipe do to weights."""

import pytest
import torch
from test_train import run

from sslzoo import Progress
from sslzoo.recipe.build import build
from sslzoo.recipe.recipe import load
from sslzoo.run import optim
from sslzoo.run.folder import Folder


def after_each_step(monkeypatch):
    """A list that fills with all of a run's state after each step: the method's, the optimizer's."""
    found, step, follow = [], optim.step, optim.follow
    seen = {}

    def stepping(optimizer, finite):
        step(optimizer, finite)
        seen["optimizer"] = optimizer

    def following(method, at, finite):
        follow(method, at, finite)
        state = {name: x.clone() for name, x in method.state_dict().items()}
        for index, slots in enumerate(seen["optimizer"].state.values()):
            state |= {f"{index}.{slot}": x.clone() for slot, x in slots.items() if isinstance(x, torch.Tensor)}
        found.append(state)

    monkeypatch.setattr(optim, "step", stepping)
    monkeypatch.setattr(optim, "follow", following)
    return found


def changed(one, other):
    """What differs between two states; what only one of them has counts if it is not zero."""
    zero = torch.zeros(())
    names = one.keys() | other.keys()
    return {
        name
        for name in names
        if not torch.equal(one.get(name, zero * other.get(name, zero)), other.get(name, zero * one.get(name, zero)))
    }


@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("method", ["dino", "simclr"])
@pytest.mark.parametrize("use", ["adamw", "sgd"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(tmp_path, toy, monkeypatch, method, use, bad):
    """Weights, teacher, centre, running statistics, momentum."""
    recipe = toy(method)
    found, clip = after_each_step(monkeypatch), optim.clip

    def broken(parts, *words):
        """As if an image of the step had held a nan: in the loss, so in buffers and gradients."""
        if len(found) == bad:
            for x in [*parts.buffers(), *(p.grad for p in parts.parameters() if p.grad is not None)]:
                x.fill_(float("nan") if x.is_floating_point() else 99)
        return clip(parts, *words)

    monkeypatch.setattr(optim, "clip", broken)
    run(recipe, tmp_path / "run", "run.steps=6", f"optim.use={use}", "run.save_every=100")
    assert all(torch.isfinite(x).all() for state in found for x in state.values())
    before = found[bad - 1] if bad else None
    if before is not None:
        assert changed(before, found[bad]) == set()
        assert found[bad + 1].keys() == found[bad].keys()
    moved = changed(found[bad], found[bad + 1])
    buffers = {"dino": "losses.agree.center", "simclr": "student.predictor.projector.1.running_mean"}
    assert buffers[method] in moved
    assert "student.encoder.embed.weight" in moved


@pytest.mark.parametrize("use", ["adamw", "sgd"])
def test_a_first_step_that_is_skipped_starts_no_momentum(toy, monkeypatch, use):
    monkeypatch.setattr(torch, "empty_like", lambda x, *_, **__: torch.full_like(x, 1e9))  # as memory may hold
    read, installed = load(str(toy("jepa")), (f"optim.use={use}",))
    weights = []
    for turns in ([True, True], [False, True, True]):
        method = build(read, installed)[0]
        optimizer = optim.make(method, read.optim)
        for finite in turns:
            optim.set_schedules(optimizer, read.optim, Progress(2, 10))
            for parameter in method.student.parameters():
                parameter.grad = torch.ones_like(parameter) if finite else torch.full_like(parameter, float("nan"))
            optim.step(optimizer, torch.tensor(finite))
        weights.append(method.student.state_dict())
    assert changed(*weights) == set()


def test_metrics_are_means_over_micro_batches_as_the_loss_is(tmp_path, toy):
    lines = [
        Folder(run(toy("jepa"), tmp_path / name, "run.steps=1", *sets)).metrics.read()[0]
        for name, sets in (("whole", ()), ("parts", ("run.micro=4",)))
    ]
    whole, parts = lines
    assert parts["loss/guess"] == pytest.approx(whole["loss/guess"], rel=1e-5)
    assert parts["loss/guess"] == pytest.approx(parts["loss"], rel=1e-6)


def test_the_gradient_is_computed_outside_autocast(tmp_path, toy, monkeypatch):
    seen, backward = [], torch.Tensor.backward

    def noted(x, *words, **keys):
        seen.append(torch.is_autocast_enabled("cpu"))
        return backward(x, *words, **keys)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    run(toy("jepa"), tmp_path / "run", "run.steps=2", "run.precision=bf16")
    assert len(seen) >= 2
    assert not any(seen)
