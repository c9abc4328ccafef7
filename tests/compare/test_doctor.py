"""Verdicts from what a folder records: each sign alone, and none where there is none."""

from pathlib import Path

import pytest
import yaml
from made_up import TREE, evaluated, record

from sslzoo.report import doctor
from sslzoo.report.doctor import diagnose, limits

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


def spread(last):
    """Predictions that end with little spread, at a rank that never was high."""
    lines = [line | {"guess/prediction_std": 0.4, "rankme": 5.0} for line in HEALTHY]
    return [*lines[:-1], lines[-1] | {"guess/prediction_std": last}]


@pytest.mark.parametrize(
    ("verdict", "lines", "changes"),
    [
        ("diverged", sick(loss=None), {}),
        ("diverged", sick(loss=1e4), {}),
        ("full collapse", sick(rankme=1.02), {}),
        ("full collapse", sick(**{"guess/target_std": 0.001}), {}),
        ("teacher frozen", HEALTHY, {"tree": {"targets": {"t": {"use": "ema", "momentum": 1.0}}}}),
        ("dimensional collapse", sick(rankme=3.0), {"facts": {"width": 96}}),
        ("dimensional collapse", spread(0.02), {"facts": {"width": 400}}),
    ],
)
def test_each_sign_is_told_with_evidence_and_two_remedies(verdict, lines, changes):
    found = told(lines, **changes)
    assert found.verdict == verdict
    assert found.evidence
    assert len(found.remedies) == 2


@pytest.mark.parametrize(
    ("predict", "target", "rank", "verdict"),
    [
        ("predictor.image", None, 9.0, "full collapse"),
        ("predictor.image", None, 14.0, "healthy"),  # a loss that normalizes holds no scale
        ("encoder.context", None, 9.0, "healthy"),  # compares no views
        ("predictor.patch", "teacher.code", 9.0, "healthy"),
    ],
)
def test_views_that_are_all_alike_are_a_collapse_where_nothing_else_is_compared(predict, target, rank, verdict):
    """VICReg without its variance; healthy CAPI, whose predictions are held to targets, falls as far."""
    losses = {"agree": {"use": "invariance", "predict": predict, "target": target}}
    first, *others = HEALTHY
    sick = {"agree/prediction_std": 0.0183, "rankme": rank}
    lines = [first | {"agree/prediction_std": 0.215}, *(one | sick for one in others)]
    found = told(lines, tree={"losses": losses, "targets": {}})
    assert found.verdict == verdict
    assert ("variance" in "".join(found.remedies[:1])) is (verdict == "full collapse")


def test_a_run_that_learnt_nothing_is_told_and_one_that_learnt_is_not():
    def probed(gain):
        figures = {"trained": {"knn/x/top1": 30.0 + gain}, "untrained": {"knn/x/top1": 30.0}}
        return {"evaluated": evaluated("teacher", figures=figures)}

    assert told(**probed(0.1)).verdict == "not learning"
    assert told(**probed(3.0)).verdict == "healthy"


def test_a_run_that_tells_nothing_is_not_healthy(tmp_path):
    assert told(()).verdict == "unknown"
    (tmp_path / "failure.txt").write_text("Traceback\nRunError: the disk is full")
    for lines in ((), HEALTHY):
        found = told(lines, state="failed", folder=tmp_path)
        assert found.verdict == "failed"
        assert "the disk is full" in found.evidence[0]


def test_a_run_that_diverged_before_its_first_line_is_told_so(tmp_path):
    (tmp_path / "failure.txt").write_text("RunError: 3 steps in a row had a loss or gradient that is not finite")
    found = told((), state="failed", folder=tmp_path)
    assert found.verdict == "diverged"
    assert "lower optim.lr" in found.remedies[0]


def test_an_encoder_below_the_untrained_one_on_half_of_its_figures_is_told_so():
    figures = {"trained": {f"knn/{task}/top1": 30.0 + gain for task, gain in zip("abcd", (3, 2, -2, -4), strict=True)}}
    figures["untrained"] = dict.fromkeys(figures["trained"], 30.0)
    data = {"test": {"images": 200}}
    found = told(evaluated=evaluated("teacher", figures=figures, data=data))
    assert found.verdict == "healthy"
    (line,) = [line for line in found.evidence if "teacher" in line]
    words = (
        "teacher above untrained on 2 of 4 figures, below untrained on 2 of 4 (most: knn/d -4.0), of 200 test images"
    )
    assert line == words


@pytest.mark.parametrize(("last", "verdict"), [(0.04, "full collapse"), (0.4, "healthy")])
def test_targets_that_point_one_way_are_a_collapse_whatever_their_scale(last, verdict):
    """BYOL without its predictor and momentum: the loss normalizes, so the deviation of what it compares grew."""
    lines = [line | {"agree/target_unit_std": 0.8, "agree/target_std": 0.3} for line in HEALTHY]
    found = told([*lines, lines[-1] | {"step": 500, "agree/target_unit_std": last, "agree/target_std": 0.5}])
    assert found.verdict == verdict
    assert ("point one way" in found.evidence[0]) == (verdict == "full collapse")


def test_momentum_as_shipped_is_not_frozen():
    assert told(tree={"targets": TREE["targets"]}).verdict == "healthy"


BANDS = yaml.safe_load(Path(doctor.__file__).with_name("bands.yaml").read_text())


@pytest.mark.parametrize(("verdict", "name"), [(verdict, name) for verdict in BANDS for name in BANDS[verdict]])
def test_the_runs_that_limits_rest_on_get_their_own_verdicts(verdict, name):
    run = BANDS[verdict][name]
    first = {"step": 10, "loss": 0.5, "rankme": run["highest"], "guess/target_std": 0.8, "guess/prediction_std": 0.4}
    last = {"step": 1000, "loss": 0.4, "rankme": run["rank"], "guess/target_std": 0.8 * run["targets"]}
    lines = [first, last | {"guess/prediction_std": 0.4 * run["guesses"]}]
    assert told(lines, facts={"width": run["width"]}).verdict == verdict


def test_limits_lie_clear_of_every_run_they_rest_on():
    found, well = limits(), list(BANDS["healthy"].values())
    assert len(well) >= 4
    assert all(one["rank"] > 1.3 * found.one for one in (*well, *BANDS["dimensional collapse"].values()))
    assert all(one["rank"] < found.one / 1.3 for one in BANDS["full collapse"].values())
    for limit, value in ((found.few, "width"), (found.fell, "highest")):
        assert all(one["rank"] / one[value] > 1.1 * limit for one in well)
        assert all(one["rank"] / one[value] < limit / 1.1 for one in BANDS["dimensional collapse"].values())
    assert all(one["targets"] > 1.5 * found.targets and one["guesses"] > 1.5 * found.guesses for one in well)


def test_a_rate_far_too_high_is_the_first_remedy_of_a_collapse():
    lines = [line | {"lr": 0.3} for line in sick(rankme=1.1)]
    found = told(lines, tree={"optim": {"use": "adamw", "lr": 0.3}})
    assert found.verdict == "full collapse"
    assert "it reached 0.3" in found.remedies[0]
    assert len(found.remedies) == 2
    assert "it reached" not in told(sick(rankme=1.1)).remedies[0]


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "not learning"), (2.0, "healthy")])
def test_a_run_that_is_probed_while_it_goes_on_is_judged_by_that(gain, verdict):
    probed = {"probe/knn/x": 30.0 + gain, "probe/knn/x/untrained": 30.0}
    lines = [*HEALTHY[:-1], HEALTHY[-1] | probed]
    assert told(lines, evaluated={}, step=190, steps=1000).verdict == verdict
    assert told(lines, evaluated={}, step=50, steps=1000).verdict == "healthy"  # too early to say


def test_a_teacher_is_judged_at_the_end_of_its_run():
    slow = {"targets": {"t": {"use": "ema", "momentum": 0.998}}}
    assert told(tree=slow, step=100, steps=1000).verdict == "healthy"
    found = told(tree=slow, step=100, steps=200)
    assert found.verdict == "teacher frozen"
    assert "will still hold 67%" in found.evidence[0]
