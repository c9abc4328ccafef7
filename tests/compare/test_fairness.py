"""Each of the traps in which a comparison turned round is found, and nothing is found where there is none."""

import pytest
from made_up import TREE, evaluated, record

from sslzoo.compare.fairness import box


def names(side):
    return [one.what for one in side]


def both(**changes):
    return box({"base": [record()], "other": [record(**changes)]}, {"other": ["masks.image"], "base": []})


def test_runs_that_differ_in_what_was_named_alone_are_fair():
    found = both(tree={"masks": {"image": {"use": "random"}}})
    assert names(found.question) == ["masks.image.use"]
    assert not found.unfair
    assert not found.beside
    assert {"images seen", "training data", "precision"} <= set(names(found.same))


def test_what_differs_and_was_not_named_stands_beside_the_question():
    found = both(tree={"optim": {"lr": {"warmup": {"steps": 90, "from": 0, "to": 1}}}})
    assert names(found.beside) == ["optim.lr.warmup.steps"]


@pytest.mark.parametrize(
    ("changes", "trap"),
    [
        ({"step": 500}, "images seen"),
        ({"facts": {"flops_per_image": 12.0}}, "flops"),
        ({"line": {"seconds": 80.0}}, "seconds of device time"),
        ({"line": {"context_patches": 12.8}}, "patch tokens seen"),
        ({"plugins": {"mine": "cafe"}}, "version of the plugin mine"),
        ({"facts": {"commit": "cafe"}}, "commit"),
        ({"attempts": ({"threads": 1, "device": "cpu", "processes": 1}, {"threads": 2})}, "threads"),
        ({"evaluated": evaluated("teacher", versions={"timm": "1"})}, "version of timm, when it was evaluated"),
        ({"evaluated": evaluated("student")}, "networks evaluated"),
        ({"evaluated": evaluated("teacher", pooling="4 layers")}, "evaluation"),
        ({"facts": {"threads": 2}}, "threads"),
        ({"facts": {"versions": {"torch": "3"}}}, "versions"),
        ({"facts": {"device": "A100"}}, "machine"),
        ({"tree": {"data": {"use": "folder"}}}, "training data"),
        ({"tree": {"run": {**TREE["run"], "precision": "bf16"}}}, "precision"),
        ({"seed": 4}, "seeds"),
        ({"tree": {"targets": {"t": {"use": "ema", "momentum": 0.9999}}}}, "share of its starting weights"),
        (
            {"tree": {"optim": {"lr": {"warmup": {"steps": 400, "from": 0, "to": 1}}}}},
            "share of the run that is warm-up",
        ),
        ({"state": "failed"}, "runs that are not finished"),
        ({"line": {"rankme": 1.01}}, "health"),
    ],
)
def test_a_trap_is_told_as_unfair(changes, trap):
    found = both(**changes)
    assert any(what.startswith(trap) for what in names(found.unfair)), names(found.unfair)


def test_of_an_evaluation_that_differs_it_is_told_in_what():
    found = both(evaluated=evaluated("teacher", pooling="last 4 blocks", data={"test": {"images": 7}}))
    told = {one.what: dict(one.values) for one in found.unfair}
    assert told["evaluation: pooling"] == {"base": "(absent)", "other": "last 4 blocks"}
    assert told["evaluation: data.test.images"]["other"] == "7"
    assert both(evaluated={}).unfair[0].values == {"other": "none"}


def test_what_is_not_finished_is_told_once_and_takes_no_part():
    found = box({"base": [record(), record(1)], "other": [record(), record(1, step=400, state="failed")]}, {})
    assert names(found.unfair) == ["runs that are not finished", "seeds"]
    assert found.unfair[-1].values == {"base": "0, 1", "other": "0"}
    nothing = box({"base": [record(state="running")], "other": [record(step=7, state="running")]}, {})
    assert "images seen" in names(nothing.unfair)  # where none is finished, what there is


def test_the_share_a_teacher_keeps_is_the_product_of_its_momenta():
    one = record(tree={"targets": {"t": {"use": "ema", "momentum": 0.999}}})
    assert one.kept == pytest.approx(0.999**1000)
