"""Verdicts from what a folder records: each sign alone, and none where there is none."""

import pytest
from made_up import TREE, evaluated, record

from sslzoo.compare.doctor import diagnose

HEALTHY = tuple({"step": n * 10, "loss": 0.5 - n * 0.01, "rankme": 14.0, "guess/target_std": 0.9} for n in range(1, 20))


def told(lines=HEALTHY, **changes):
    return diagnose(record(**changes, lines=tuple(lines)))


def sick(**last):
    return [*HEALTHY[:-1], HEALTHY[-1] | last]


def test_a_healthy_run_has_nothing_but_its_vital_signs():
    found = told()
    assert found.verdict == "healthy"
    assert not found.remedies
    assert any("effective rank" in line for line in found.evidence)


@pytest.mark.parametrize(
    ("verdict", "lines", "changes"),
    [
        ("diverged", sick(loss=None), {}),
        ("diverged", sick(loss=1e4), {}),
        ("full collapse", sick(rankme=1.02), {}),
        ("full collapse", sick(**{"guess/target_std": 0.001}), {}),
        ("teacher frozen", HEALTHY, {"tree": {"targets": {"t": {"use": "ema", "momentum": 1.0}}}}),
        ("dimensional collapse", sick(rankme=3.0), {"facts": {"width": 96}}),
    ],
)
def test_each_sign_is_told_with_evidence_and_two_remedies(verdict, lines, changes):
    found = told(lines, **changes)
    assert found.verdict == verdict
    assert found.evidence
    assert len(found.remedies) == 2


def test_a_run_that_learnt_nothing_is_told_and_one_that_learnt_is_not():
    def probed(gain):
        figures = {"trained": {"knn/x/top1": 30.0 + gain}, "untrained": {"knn/x/top1": 30.0}}
        return {"evaluated": evaluated("teacher", figures=figures)}

    assert told(**probed(0.1)).verdict == "not learning"
    assert told(**probed(3.0)).verdict == "healthy"


def test_momentum_as_shipped_is_not_frozen():
    assert told(tree={"targets": TREE["targets"]}).verdict == "healthy"
