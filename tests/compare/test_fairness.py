"""Each of the traps in which a comparison turned round is found, and nothing is found where there is none."""

from pathlib import Path

import pytest

from sslzoo.compare.fairness import box
from sslzoo.compare.records import Evaluation, Record

TREE = {
    "name": "a",
    "data": {"use": "scenes"},
    "masks": {"image": {"use": "multiblock"}},
    "targets": {"teacher": {"use": "ema", "momentum": {"linear": [0.98, 1.0]}}},
    "optim": {"lr": {"warmup": {"steps": 100, "from": 0, "to": 1}}},
    "run": {"batch": 16, "seed": 0, "precision": "fp32", "steps": 1000},
}
FACTS = {"flops_per_image": 10.0, "patches_per_image": 64, "processes": 1, "device": "cpu", "threads": 1}
FACTS |= {"versions": {"torch": "2"}, "images": 1000}


def evaluated(network, **settings):
    told = {"figures": {"trained": {"knn/x/top1": 1.0}}, "network": network, "step": 1000, **settings}
    return {network: Evaluation(Path("nowhere"), network, 1000, told)}


def record(seed=0, tree=None, facts=None, line=None, **changes):
    keys = {"folder": Path("nowhere"), "variant": "a", "seed": seed, "tree": {**TREE, **(tree or {})}, "state": "done"}
    keys |= {"step": 1000, "steps": 1000, "facts": FACTS | (facts or {}), "evaluated": evaluated("teacher")}
    keys |= {"lines": ({"step": 1000, "seconds": 50.0, "context_share/image": 0.4} | (line or {}),)}
    return Record(**(keys | changes))


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
        ({"step": 500, "state": "stopped"}, "images seen"),
        ({"facts": {"flops_per_image": 12.0}}, "flops"),
        ({"line": {"seconds": 80.0}}, "seconds of device time"),
        ({"line": {"context_share/image": 0.2}}, "patch tokens seen"),
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
        ({"health": "full collapse"}, "health"),
    ],
)
def test_a_trap_is_told_as_unfair(changes, trap):
    found = both(**changes)
    assert any(what.startswith(trap) for what in names(found.unfair)), names(found.unfair)


def test_the_share_a_teacher_keeps_is_the_product_of_its_momenta():
    one = record(tree={"targets": {"t": {"use": "ema", "momentum": 0.999}}})
    assert one.kept == pytest.approx(0.999**1000)
