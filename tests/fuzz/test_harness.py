"""The harness tells every kind of outcome apart; it would be worth nothing if it could not see a defect."""

import time

import harness
import pytest
from harness import Case, outcome, tried

from sslzoo import UserError


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (Case("help", ("--help",)), "valid"),
        (Case("no such command", ("trian",)), "clean"),
        (Case("no such recipe", ("check", "tiny/ijpea"), names=("tiny/ijpea",)), "clean"),
        (Case("names another place", ("check", "tiny/ijpea"), names=("optim.lr",)), "silent"),
        (Case("accepted though wrong", ("list", "masks"), wrong=True), "silent"),
        (Case("leaves with 1", call=lambda: _raise(SystemExit(1))), "silent"),
        (Case("a person's mistake", call=lambda: _raise(UserError("run.steps: no"))), "clean"),
        (Case("an engine's mistake", call=lambda: _raise(KeyError("x"))), "traceback"),
        (Case("too deep", call=lambda: _raise(RecursionError())), "traceback"),
    ],
)
def test_outcomes_are_told_apart(case, kind):
    assert outcome(case)[0] == kind


def test_a_hang_is_seen_and_cannot_be_caught_on_the_way(monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 1)

    def hangs():
        try:
            time.sleep(5)
        except Exception:
            return

    assert outcome(Case("sleeps", call=hangs))[0] == "hang"


def test_the_same_seed_makes_the_same_case_and_defects_are_listed(tmp_path):
    seen = []

    def generator(rng, folder):
        seen.append(rng.random())
        return Case("wrong", call=lambda: _raise(KeyError("x")) if seen[-1] > 0.5 else None)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = tried(generator, range(8), tmp_path / "a")
    again = tried(generator, range(8), tmp_path / "b")
    assert seen[:8] == seen[8:]
    assert first.count == again.count
    assert len(first.defects) == first.count["traceback"] == sum(one > 0.5 for one in seen[:8])
