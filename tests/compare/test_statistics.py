"""Means, intervals and p-values against closed forms, scipy and brute force."""

import numpy as np
import pytest
from scipy import stats

from sslzoo.compare.statistics import Difference, difference, holm, summary, wording


def test_a_summary_is_mean_and_sample_deviation():
    found = summary([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.std == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert summary([5.0]).std is None


def test_the_p_value_is_the_paired_t_test():
    ours, theirs = [71.0, 72.5, 70.1, 73.0], [70.0, 70.9, 70.3, 71.2]
    assert difference(ours, theirs).p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_below_three_seeds_no_test_is_made_and_the_reason_told():
    found = difference([71.0, 72.0], [70.0, 70.5])
    assert found.p is None
    assert found.low is None
    assert "at least 3" in found.why
    assert wording(found) == "+1.2"
    assert found.mean == pytest.approx(1.25)


def test_seeds_that_all_differ_by_the_same_prove_nothing():
    # Of 200 test images three gaps of half a point are no wonder; a t-test without spread would say p 0.
    found = difference([70.5, 71.0, 72.0], [70.0, 70.5, 71.5])
    assert found.p is None
    assert not found.sure
    assert wording(found) == "+0.5 [+0.5, +0.5]"
    assert "no spread" in found.why
    assert difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p == 1.0


def test_percentages_that_differ_by_the_same_up_to_rounding_prove_nothing_either():
    counts = np.array([700, 811, 929])
    for more in range(1, 40):
        found = difference(((counts + more) / 2000 * 100).tolist(), (counts / 2000 * 100).tolist())
        assert (found.p, "differ by the same" in found.why) == (None, True), more


def test_a_figure_that_is_not_finite_leaves_the_other_tests_alone():
    p = [0.035, float("nan"), 0.00027]
    found = holm([Difference(0, 0, 0, one, ()) for one in p])
    assert [found[0].p, found[2].p] == pytest.approx([0.035, 0.00054])
    assert found[1].p != found[1].p


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_without_answers_the_interval_is_that_of_the_t_test():
    ours, theirs = [71.0, 72.5, 70.1, 73.0], [70.0, 70.9, 70.3, 71.2]
    found, known = difference(ours, theirs), stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_where_seeds_do_not_differ_the_interval_is_that_of_the_images():
    draw = np.random.default_rng(0)
    one = [np.tile(draw.random(500) < rate, (3, 1)) for rate in (0.7, 0.6)]
    ours, theirs = (side.mean(1) * 100 for side in one)
    found = difference(ours, theirs, (one[0], one[1]))
    apart = (one[0][0].astype(float) - one[1][0]) * 100
    assert found.high - found.mean == pytest.approx(1.96 * apart.std() / np.sqrt(500), rel=0.05)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.06), (10, 0.03)])
def test_the_interval_covers_as_often_as_it_says(seeds, spread, monkeypatch):
    """Many studies whose true difference is known; spread is that between seeds, as a share of right answers."""
    monkeypatch.setattr("sslzoo.compare.statistics.DRAWS", 200)
    draw, hit, studies = np.random.default_rng(1), 0, 100
    for number in range(studies):
        rate = draw.random(200) * 0.4 + 0.3
        right = [
            draw.random((seeds, 200)) < rate + shift + spread * draw.standard_normal((seeds, 1)) for shift in (0.05, 0)
        ]
        ours, theirs = (side.mean(1) * 100 for side in right)
        found = difference(ours, theirs, (right[0], right[1]), seed=number)
        hit += found.low <= 5.0 <= found.high
    assert hit / studies >= 0.91  # a percentile bootstrap has 0.75 of three seeds that differ


def test_holm_equals_its_definition():
    p = [0.01, 0.04, 0.03, 0.5]
    found = holm([difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.5]).__class__(0, 0, 0, one, ()) for one in p])
    order = np.argsort(p)
    wanted, highest = {}, 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        wanted[place] = highest
    assert [one.p for one in found] == pytest.approx([wanted[n] for n in range(4)])
    assert [one.alone for one in found] == p
    assert [wording(one) for one in found[:2]] == [
        "+0.0 [+0.0, +0.0], p 0.04 (alone 0.01)",
        "+0.0 [+0.0, +0.0], p 0.09 (alone 0.04)",
    ]


def test_without_a_test_nothing_is_corrected():
    one = difference([1.0], [0.0])
    assert holm([one]) == [one]


def test_no_difference_has_no_sign_of_less():
    assert wording(Difference(mean=-0.01, low=-0.04, high=0.04, p=1.0, values=(-0.01,))).startswith("+0.0 [+0.0, +0.0]")
