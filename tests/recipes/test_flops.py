"""The arithmetic that `check` tells is that of training: masks at the real micro-batch, the mean over many draws."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.progress import Progress
from sslzoo.recipe import fit
from sslzoo.recipe.build import build
from sslzoo.recipe.recipe import load
from sslzoo.run.data import fake_batch
from sslzoo.run.metrics import mask_shares
from sslzoo.step import compute_loss

LEGACY = "masks.image={use: multiblock-legacy, min_keep: 1}"


@pytest.mark.parametrize("sets", [(), (LEGACY,), (LEGACY, "run.micro=4")], ids=["corrected", "legacy", "legacy by 4"])
def test_flops_are_the_mean_over_draws_at_the_real_micro_batch(sets, monkeypatch):
    monkeypatch.setattr(fit, "COUNTED_STEPS", 12)
    recipe, installed = load("tiny/ijepa", sets)
    images = recipe.run.micro or recipe.run.batch
    method, sources = build(recipe, installed)
    method.to("meta")
    each = []
    for seed, at in enumerate(fit._spread(recipe, 12)):
        batch = fake_batch(sources, method.student.encoder, images, "meta", seed=seed, at=at, chance=fit.COUNTED)
        with FlopCounterMode(display=False) as counter:
            compute_loss(method, batch, Progress(0, 1))[0].backward()
        each.append(counter.get_total_flops() / images)
    assert fit.check(recipe, installed).flops == pytest.approx(sum(each) / len(each), rel=0.03)


def test_what_a_recipe_costs_is_no_matter_of_its_seed_and_patches_are_those_that_training_counts():
    recipe, installed = load("tiny/ijepa", ["run.seed=3"])
    flow = fit.check(recipe, installed)
    assert flow == fit.check(*load("tiny/ijepa"))
    shorter = fit.check(*load("tiny/ijepa", ["run.steps=20"]))
    assert (flow.flops, flow.patches) == (shorter.flops, shorter.patches)  # a budget's lengths are of one measure
    method, sources = build(recipe, installed)
    encoder = method.student.encoder
    seen = [
        mask_shares([fake_batch(sources, encoder, 16, "cpu", seed=9, at=at)], sources.grids(encoder))["context_patches"]
        for at in fit._spread(recipe, 256)
    ]
    assert flow.patches == pytest.approx(sum(seen) / len(seen), rel=0.03)


def test_masks_that_change_by_epochs_are_counted_as_far_as_a_run_of_steps_comes(monkeypatch):
    monkeypatch.setattr(fit, "COUNTED_STEPS", 40)
    ramp = "masks.image={use: random, hide: {linear: [0.2, 0.8], over: 100 epochs}}"
    own = ["run.steps=40", "run.batch=8", "data.length=64", "data.cache=false"]  # 5 epochs of 8 steps
    flow = fit.check(*load("tiny/ijepa", [*own, ramp]))
    same = fit.check(*load("tiny/ijepa", [*own, "masks.image={use: random, hide: {linear: [0.2, 0.23]}}"]))
    assert flow.patches == pytest.approx(same.patches, rel=0.02)
    assert flow.flops == pytest.approx(same.flops, rel=0.02)
