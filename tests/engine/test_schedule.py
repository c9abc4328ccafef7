"""Schedules against closed forms."""

import math
from itertools import pairwise

import pytest

from sslzoo import Duration, Progress, Schedule


def at(step, steps=100, epoch=10):
    return Progress(step, steps, epoch)


def test_a_number_is_constant():
    assert [Schedule.parse(0.3)(at(step)) for step in (0, 50, 99)] == [0.3] * 3
    assert Schedule.parse("1e-3")(at(0)) == 1e-3  # YAML 1.1 reads it as text


def test_linear_and_cosine():
    assert Schedule.parse({"linear": [1, 3]})(at(50)) == 2
    value = Schedule.parse({"cosine": [0.04, 0.4]})(at(25))
    assert value == pytest.approx(0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi / 4)))


def test_over_ends_early_and_holds():
    rise = Schedule.parse({"linear": [0.04, 0.07], "over": "3 epochs"})
    assert rise(at(15)) == pytest.approx(0.055)
    assert rise(at(30)) == rise(at(99)) == pytest.approx(0.07)


def test_warmup_then_cosine_counting_from_zero_as_mae():
    lr = Schedule.parse({"warmup": {"epochs": 4, "from": 0, "to": 2.4e-3, "then": {"cosine": 0}}})
    assert lr(at(0)) == 0
    assert lr(at(20)) == pytest.approx(1.2e-3)
    assert lr(at(40)) == pytest.approx(2.4e-3)
    assert lr(at(70)) == pytest.approx(1.2e-3)  # half of the remaining 60 steps


def test_pieces_hold_from_a_moment_on_each_in_its_own_time():
    steps = Schedule.parse({"piecewise": {0: 0.1, 30: 0.01, 60: {"linear": [1, 3]}}})
    assert [steps(at(step)) for step in (0, 29, 30, 59, 60, 80)] == [0.1, 0.1, 0.01, 0.01, 1, 2]
    frozen = Schedule.parse({"piecewise": {0: 0, "1 epoch": 1}})
    assert [frozen(at(step)) for step in (0, 9, 10, 99)] == [0, 0, 1, 1]
    for wrong in ({5: 1}, {}, {0: 1, 9: 2, 3: 1}, {0: 1, "1 epoch": 2, 3: 1}):
        with pytest.raises(ValueError, match="piecewise"):
            Schedule.parse({"piecewise": wrong})


def test_counting_one_is_a_step_ahead():
    spec = {"warmup": {"steps": 10, "from": 1, "to": 2, "then": {"linear": 0}}}
    zero, one = Schedule.parse(spec), Schedule.parse(spec | {"counting": "one"})
    assert [one(at(step)) for step in range(50)] == [zero(at(step + 1)) for step in range(50)]


def test_inclusive_warmup_reaches_its_end_as_dino():
    lr = Schedule.parse({"warmup": {"steps": 10, "from": 0, "to": 1, "then": {"cosine": 0}}, "counting": "inclusive"})
    assert lr(at(9)) == 1
    assert lr(at(4)) == pytest.approx(4 / 9)
    assert lr(at(10)) == 1
    assert lr(at(55)) == pytest.approx(0.5)


def test_stretch_plans_for_more_steps_than_are_run():
    momentum = Schedule.parse({"linear": [0.996, 1.0], "stretch": 1.25})
    assert momentum(at(100)) == pytest.approx(0.996 + 0.004 * 100 / 125)


@pytest.mark.parametrize(("epochs", "steps"), [(2.3, 230), (0.57, 57), (0.29, 29), (1 / 3, 33), (0.0099, 0), (3, 300)])
def test_epochs_lose_no_step_to_rounding(epochs, steps):
    """2.3 * 100 is 229.99999999999997: they were 229."""
    assert Duration(epochs, "epochs").steps(100) == steps


def test_between_turns_a_schedule_rises_or_falls_or_stays():
    warm = {"warmup": {"epochs": 2, "from": 3, "to": 1, "then": {"cosine": 5}}}
    spec = {"piecewise": {0: {"linear": [0, 1], "over": 5}, "3 epochs": warm, "6 epochs": warm | {"over": "1 epoch"}}}
    for each in ("step", "epoch"):
        whole = Schedule.parse(
            {
                "piecewise": {0: spec["piecewise"][0]}
                | {start: piece | {"each": each} for start, piece in list(spec["piecewise"].items())[1:]}
            }
        )
        turns = sorted({0, 100, *(step for _, step in whole.turns(10))})
        for begin, end in pairwise(turns):
            values = [whole(at(step)) for step in range(begin, end)]
            assert values in (sorted(values), sorted(values, reverse=True))


def test_values_stay_at_their_end():
    assert Schedule.parse({"cosine": [1, 0.1]})(at(200)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fast", "a number is wanted"),
        (True, "a number is wanted"),
        ({"linear": [1]}, "two numbers are wanted"),
        ({"lineal": [1, 2]}, "found keys lineal"),
        ({"linear": [1, 2], "cosine": [1, 2]}, "one of"),
        ({"warmup": {"from": 0, "to": 1}}, "epochs or steps"),
        ({"warmup": {"steps": 8, "from": 0, "to": 1}, "each": "epoch"}, "found 8 steps beside each: epoch"),
        ({"linear": [0, 1], "over": 8, "each": "epoch"}, "such as '8 epochs'"),
        ({"piecewise": {0: {"warmup": {"steps": 10, "from": 0, "to": 1}}, 8: 1}}, "longer than its piece of 8 steps"),
        ({"warmup": {"steps": 3, "to": 1}}, "epochs or steps"),
        ({"warmup": {"steps": 3, "from": 0, "to": 1, "then": {"step": 0}}}, "cosine: end"),
        ({"cosine": [1, 2], "counting": "two"}, "zero, one, inclusive"),
    ],
)
def test_what_is_not_a_schedule_is_told_so(spec, says):
    with pytest.raises(ValueError, match=says):
        Schedule.parse(spec)


def test_durations():
    assert Duration.parse(7).steps(10) == 7
    assert Duration.parse("7 steps").steps(10) == 7
    assert Duration.parse("2.5 epochs").steps(10) == 25
    assert Duration.parse({"epochs": 3}).steps(10) == 30
    assert str(Duration.parse("1 epoch")) == "1 epochs"
    assert Duration.parse(str(Duration.parse("1 epoch"))) == Duration.parse("1 epoch")
    for wrong in ("soon", -1, {"weeks": 1}, True, None):
        with pytest.raises(ValueError, match="a duration is"):
            Duration.parse(wrong)


def test_each_epoch_changes_the_value_between_epochs_only():
    """DINO's teacher temperature: linspace over the warm-up epochs, both ends included, then constant."""
    spec = {"warmup": {"epochs": 3, "from": 0.04, "to": 0.07}, "counting": "inclusive", "each": "epoch"}
    found = [Schedule.parse(spec)(Progress(step, 10, 2)) for step in range(10)]
    assert found == pytest.approx([0.04, 0.04, 0.055, 0.055] + [0.07] * 6)
    with pytest.raises(ValueError, match="each: found 'year'; accepted: step, epoch"):
        Schedule.parse({"linear": [0, 1], "each": "year"})


def test_a_warm_up_may_fill_its_piece_whatever_rounding_says():
    warm = {"warmup": {"epochs": 0.2, "from": 0, "to": 1}}
    assert Schedule.parse({"piecewise": {0: 1, "0.1 epochs": warm, "0.3 epochs": 0}})
