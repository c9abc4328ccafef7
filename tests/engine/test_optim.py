"""A step is whole or none; and what the optimizers, groups and schedules of a recipe do to weights."""

from types import SimpleNamespace

import pytest
import torch
from ranks import on_ranks
from test_train import run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sslzoo import Progress, RecipeError, catalogue
from sslzoo.recipe.build import build, build_optimizer
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run import checkpoint, optim
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


def test_layers_are_found_by_what_they_are_whatever_their_parameters_are_called():
    """Of a ResNet, whose parameters are net.layer1.0.*, all decayed as what stands before the blocks."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one = nn.Linear(1, 1, bias=False), nn.Sequential(nn.Linear(1, 1, bias=False))
            self.two, self.norm = nn.Sequential(nn.Linear(1, 1, bias=False)), nn.Linear(1, 1, bias=False)

        @property
        def blocks(self):
            return nn.ModuleList([*self.one, *self.two])

    method = SimpleNamespace(student=SimpleNamespace(encoder=Stages()))
    wanted = {"stem": 0.125, "one.0": 0.25, "two.0": 0.5, "norm": 1.0}
    assert optim.layer_factors(method, 0.5) == {f"encoder.{name}.weight": factor for name, factor in wanted.items()}


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
    found, clip, keep = after_each_step(monkeypatch), optim.clip, optim.keep
    buffers = []

    def keeping(tensors):
        buffers[:] = tensors
        return keep(buffers)

    def broken(optimizer, *words):
        """As if an image of the step had held a nan: in the loss, so in buffers and gradients."""
        if len(found) == bad:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            for x in [*buffers, *grads]:
                x.fill_(float("nan") if x.is_floating_point() else 99)
        return clip(optimizer, *words)

    monkeypatch.setattr(optim, "keep", keeping)
    monkeypatch.setattr(optim, "clip", broken)
    run(recipe, tmp_path / "run", "run.steps=6", f"optim.use={use}", "run.save_every=100")
    assert all(torch.isfinite(x).all() for state in found for x in state.values())
    before = found[bad - 1] if bad else None
    if before is not None:
        assert changed(before, found[bad]) == set()
        assert found[bad + 1].keys() == found[bad].keys()
    moved = changed(found[bad], found[bad + 1])
    among = {"dino": "losses.agree.center", "simclr": "student.predictor.projector.1.running_mean"}
    assert among[method] in moved
    assert "student.encoder.embed.weight" in moved


def test_what_is_frozen_does_not_count_in_the_norm_that_is_clipped(tmp_path, toy, monkeypatch):
    """The step of the rest is as long as `clip` says."""
    found, start = after_each_step(monkeypatch), build(*load(str(toy("jepa"))))[0].state_dict()
    sets = ("optim={use: sgd, momentum: 0, lr: 0.5, clip: 0.01, groups: {'encoder.*': {lr: 0}}}", "run.steps=1")
    run(toy("jepa"), tmp_path / "run", *sets)
    moves = {name: found[0][name] - x for name, x in start.items() if name.startswith("student.")}
    assert not any(x.any() for name, x in moves.items() if name.startswith("student.encoder."))
    assert torch.cat([x.flatten() for x in moves.values()]).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


OPTIMIZERS = ["adamw", "sgd", "lars", "lamb", "muon"]


def moved(recipe, turns, *sets, between=None):
    """A method after steps with gradients of ones, or of nans where a turn is false; and its optimizer."""
    read, installed = load(str(recipe), sets)
    method = build(read, installed)[0]
    optimizer = build_optimizer(read, installed, method)
    for turn, finite in enumerate(turns):
        optim.set_schedules(optimizer, read.optim_keys, Progress(2, 10))
        for parameter in method.student.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + turn % 2 if finite else float("nan"))
        optim.step(optimizer, torch.tensor(finite))
        if between is not None:
            between(turn, method, optimizer)
    return method, optimizer


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_a_skipped_step_is_none_also_the_first(toy, monkeypatch, use):
    monkeypatch.setattr(torch, "empty_like", lambda x, *_, **__: torch.full_like(x, 1e9))  # as memory may hold
    recipe, ones = toy("jepa"), [True, True]
    states = []

    def note(turn, method, optimizer):
        states.append({name: x.clone() for name, x in method.state_dict().items()})

    moved(recipe, [False, True, False, True], f"optim.use={use}", between=note)
    start = build(*load(str(recipe)))[0].state_dict()
    assert changed(states[0], start) == set()
    assert changed(states[2], states[1]) == set()
    # The gradients of the two steps that count are equal, so an optimizer that saw nothing else has gone the same way.
    read, installed = load(str(recipe), (f"optim.use={use}",))
    method = build(read, installed)[0]
    optimizer = build_optimizer(read, installed, method)
    for _ in ones:
        optim.set_schedules(optimizer, read.optim_keys, Progress(2, 10))
        for parameter in method.student.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        optim.step(optimizer, torch.tensor(True))
    assert changed(method.state_dict(), states[3]) == set()


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_state_is_saved_by_name_and_goes_on_bit_for_bit(toy, tmp_path, use):
    recipe, sets = toy("jepa"), (f"optim.use={use}", "optim.decay_vectors=false")

    def save(turn, method, optimizer):
        if turn == 2:
            checkpoint.save(tmp_path, 3, method, optimizer)

    whole, _ = moved(recipe, [True] * 5, *sets, between=save)
    read, installed = load(str(recipe), sets)
    method = build(read, installed)[0]
    optimizer = build_optimizer(read, installed, method)
    checkpoint.restore(checkpoint.newest(tmp_path, print), method, optimizer)
    for turn in (3, 4):
        optim.set_schedules(optimizer, read.optim_keys, Progress(2, 10))
        for parameter in method.student.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + turn % 2)
        optim.step(optimizer, torch.tensor(True))
    assert changed(whole.state_dict(), method.state_dict()) == set()


def test_lars_in_closed_form(toy):
    sets = ("optim.use=lars", "optim.lr=2.0", "optim.weight_decay=0.1", "optim.decay_vectors=false", "optim.trust=0.01")
    start = build(*load(str(toy("jepa"))))[0].student.encoder
    end = moved(toy("jepa"), [True], *sets)[0].student.encoder
    weight, bias = start.embed.weight, start.embed.bias
    step = torch.ones_like(weight) + 0.1 * weight
    torch.testing.assert_close(end.embed.weight, weight - 2.0 * 0.01 * weight.norm() / step.norm() * step)
    torch.testing.assert_close(end.embed.bias, bias - 2.0)


def test_a_factor_may_be_a_schedule_and_zero_freezes_as_dino(toy):
    """Nothing of a frozen parameter moves: no decay, and no momentum that would move it later."""
    read, installed = load(
        str(toy("jepa")), ("optim.groups={predictor.out*: {lr: {piecewise: {0: 0, 2: 0.5}}}}", "optim.lr=0.1")
    )
    method = build(read, installed)[0]
    optimizer = build_optimizer(read, installed, method)
    weight, rates = method.student.predictor.out.weight, []
    start = weight.detach().clone()
    for step in range(3):
        optim.set_schedules(optimizer, read.optim_keys, Progress(step, 3))
        for parameter in method.student.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.drop_frozen(optimizer)
        optim.step(optimizer, torch.tensor(True))
        rates.append({group["lr"] for group in optimizer.param_groups})
        assert torch.equal(weight, start) == (step < 2)
        assert (weight in optimizer.state) == (step == 2)
    assert rates == [{0.0, 0.1}, {0.0, 0.1}, {0.05, 0.1}]


def test_learning_rates_decay_with_depth_as_in_beit(toy):
    read, installed = load(str(toy("jepa")), ("optim.layer_decay=0.5", "optim.decay_vectors=false"))
    method = build(read, installed)[0]
    optimizer = build_optimizer(read, installed, method)
    optim.set_schedules(optimizer, read.optim_keys, Progress(5, 10))
    names = {parameter: name for name, parameter in optim.trainable(method)}
    found = {
        names[p]: (group["layer"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert found["encoder.embed.weight"] == (0.125, 0.01)  # two blocks above it
    assert found["encoder.embed.bias"] == (0.125, 0.0)
    assert found["encoder.blocks.0.linear1.weight"] == (0.25, 0.01)
    assert found["encoder.blocks.1.linear1.weight"] == (0.5, 0.01)
    assert found["predictor.out.weight"] == (1.0, 0.01)


def test_what_cannot_be_split_over_ranks_is_refused_before_a_start(toy, monkeypatch):
    read, installed = load(str(toy("jepa")), ("optim.use=muon", "run.shard=2"))
    make = installed.find("predictors", "guess").make
    start = make.__init__

    def with_number(self, encoder):
        start(self, encoder)
        self.temperature = torch.nn.Parameter(torch.tensor(0.1))

    monkeypatch.setattr(make, "__init__", with_number)
    with pytest.raises(RecipeError) as caught:
        check(read, installed)
    assert "the optimizer muon needs whole weights" in str(caught.value)
    assert "predictor.temperature is a single number (0-d)" in str(caught.value)


def test_metrics_are_means_over_micro_batches_as_the_loss_is(tmp_path, toy):
    lines = [
        Folder(run(toy("jepa"), tmp_path / name, "run.steps=1", "optim.lr=0.01", *sets)).metrics.read()[0]
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
    run(toy("jepa"), tmp_path / "run", "run.steps=2", "optim.lr=0.01", "run.precision=bf16")
    assert len(seen) >= 2
    assert not any(seen)


SPLIT = ["adamw", "sgd", "lars"]  # those that declare `shards`


def walked(use, wrap):
    """Weights after five steps, two of them skipped, from whole gradients on every rank."""
    torch.manual_seed(0)
    net = wrap(torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 1)))
    groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 0.1, "frozen": False}]
    optimizer = catalogue().find("optimizers", use).make(groups)
    for finite in (False, True, True, False, True):
        net(torch.randn(4, 5)).square().mean().backward()
        for parameter in net.parameters() if not finite else ():
            parameter.grad.mul_(float("nan"))
        optim.step(optimizer, torch.tensor(finite))
    return [optim.full_tensor(parameter.detach()) for parameter in net.parameters()]


def walked_in_pieces(rank):
    mesh = init_device_mesh("cpu", (2,))
    return [walked(use, lambda net: fully_shard(net, mesh=mesh)) for use in SPLIT]


@pytest.mark.two_ranks
def test_optimizers_that_take_pieces_of_weights_move_them_as_whole_ones():
    installed = catalogue()
    assert [name for name, part in installed.parts["optimizers"].items() if part.make.shards] == SPLIT
    for ranks in on_ranks(walked_in_pieces, 2):
        for use, found in zip(SPLIT, ranks, strict=True):
            for one, other in zip(walked(use, lambda net: net), found, strict=True):
                torch.testing.assert_close(other, one, msg=lambda text, use=use: f"{use}: {text}")
