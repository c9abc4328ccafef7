"""Probing on a GPU: nothing meets a tensor of the host, and every figure is the CPU's."""

import pytest
import torch
from computing import DEVICE, computing

from sslzoo.evaluate.bench import bench, untrained
from sslzoo.recipe.recipe import load

PROBES = """{
knn: {use: knn, k: [5, 10]}, linear: {use: linear, penalties: [0.01, 0.1]}, few: {use: few, shots: 2, draws: 2}, part: {use: few, share: 0.1, draws: 1},
sgd: {use: heads, epochs: 2, batch: 32, lrs: [0.01], penalties: [0]},
lars: {use: heads, optimizer: lars, schedule: cosine, augment: true, epochs: 1, features: [mean], lrs: [0.1], penalties: [0]},
tuned: {use: finetune, epochs: 1, warmup: 0.5, batch: 32, micro: 16, clip: 1.0}}"""
SIDES = ("train", "test")
COUNT = 64  # images of each side


def test_tensors_of_two_devices_do_not_meet():
    with computing():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        assert (there + 1).device == there.device == DEVICE
        assert (there.cpu() + here).device.type == "cpu"
        assert (there * torch.tensor(2.0)).device == there[torch.tensor([0])].device == DEVICE
        for mixed in (
            lambda: here + there,
            lambda: here[there.long()],
            lambda: there.scatter_add_(0, here.long(), there),
            lambda: torch.nn.functional.cross_entropy(there[None], here[:1].long()),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()


@pytest.fixture(autouse=True)
def three_rounds(monkeypatch):
    """Of L-BFGS: each is alike, and each operation costs here."""
    solver = torch.optim.LBFGS
    monkeypatch.setattr(torch.optim, "LBFGS", lambda weights, **keys: solver(weights, **{**keys, "max_iter": 3}))


def figures(device, recipe, installed):
    torch.manual_seed(0)
    opened = bench(recipe, installed)
    encoder = untrained(recipe, installed).student.encoder.to(device)
    return opened.probe(encoder, device)


def test_every_probe_tells_there_what_it_tells_here():
    sizes = [
        f"evaluate.{side}={{use: scenes, split: {side}, length: {COUNT}, size: 64, cache: true}}" for side in SIDES
    ]
    augment = "evaluate.augment={use: crop, size: 64, scale: [0.5, 1.0]}"
    recipe, installed = load("tiny/ijepa", [*sizes, augment, f"evaluate.probes={PROBES}"])
    here = figures(torch.device("cpu"), recipe, installed)
    with computing():
        there = figures(DEVICE, recipe, installed)
    assert {name.split("/")[0] for name in here[0]} == {"knn", "linear", "few", "part", "sgd", "lars", "tuned"}
    one = 100 / COUNT  # an image more or less: sums may differ in their last bits
    assert there[0] == pytest.approx(here[0], abs=one + 1e-6)
    assert {name: value.shape for name, value in there[1].items()} == {
        name: value.shape for name, value in here[1].items()
    }
    assert there[2] == here[2]
