"""The arithmetic that `check` tells is that of training: masks at the real micro-batch, the mean over many draws."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.progress import Progress
from sslzoo.recipe import fit
from sslzoo.recipe.build import build
from sslzoo.recipe.recipe import load
from sslzoo.run.data import fake_batch
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
    for at in fit._spread(recipe):
        batch = fake_batch(sources, method.student.encoder, images, "meta", seed=recipe.run.seed, at=at)
        with FlopCounterMode(display=False) as counter:
            compute_loss(method, batch, Progress(0, 1))[0].backward()
        each.append(counter.get_total_flops() / images)
    assert fit.check(recipe, installed).flops == pytest.approx(sum(each) / len(each), rel=0.03)
