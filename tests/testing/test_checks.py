"""Checks have teeth: each part that is wrong on purpose is caught by the check that names its defect."""

import json
import os
from pathlib import Path

import broken_data
import broken_encoders
import broken_losses
import broken_masks
import broken_optimizers
import broken_predictors
import broken_targets
import hashed_data
import pytest

from sslzoo import catalogue, testing
from sslzoo.cli import main
from sslzoo.recipe.build import maker
from sslzoo.testing import masks, scene
from sslzoo.testing import report as report_
from sslzoo.testing.report import Violation

MODULES = (broken_masks, broken_predictors, broken_targets, broken_losses, broken_encoders)
MODULES += (broken_data, broken_optimizers)
BROKEN = {family: getattr(module, family.upper()) for module in MODULES for family in module.SOUND}
SOUND = {family: parts for module in MODULES for family, parts in module.SOUND.items()}
WRONG = [(family, part, check) for family, parts in BROKEN.items() for part, check in parts.items()]
RARE = (
    broken_masks.RareOutside,
    broken_masks.RareOverlap,
    broken_masks.Empty,
    broken_masks.Drifting,
    broken_masks.NumpyRandom,
)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch, request):
    """Fewer draws than authors get, but where a defect is rare; and less patience with what never ends."""
    part = request.node.callspec.params.get("part") if hasattr(request.node, "callspec") else None
    monkeypatch.setattr(masks, "STEPS", 200 if part in RARE else 40)
    monkeypatch.setattr(masks, "PATIENCE", 2.0 if part is broken_masks.Endless else 10.0)
    monkeypatch.setattr(scene, "PATIENCE", 1.0 if part is broken_data.Threaded else 10.0)


@pytest.mark.parametrize(
    ("family", "part", "check"), WRONG, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)
def test_a_defect_is_caught_by_the_check_that_names_it(family, part, check):
    """And by none before it, so nothing else is broken."""
    report = testing.examine(family, part, only=check)
    (failed,) = report.failed
    assert failed.name == check, report
    assert failed.expected
    assert failed.came
    assert report.results[-1] is failed


@pytest.mark.parametrize(
    ("family", "part"),
    [(family, part) for family, parts in SOUND.items() for part in parts],
    ids=lambda x: x.__name__ if isinstance(x, type) else str(x),
)
def test_the_part_they_are_made_from_keeps_its_contract(family, part):
    """So it is the defect that is caught, and nothing else."""
    report = testing.examine(family, part)
    assert report.ok, report


@pytest.mark.parametrize(
    ("family", "part", "check", "state"),
    [
        ("targets", broken_targets.Queue, "ranks", "ok"),
        ("targets", broken_targets.Draws, "ranks", "skipped"),
        ("probes", broken_data.Abstains, "blind", "ok"),
    ],
)
def test_a_right_part_of_an_unusual_kind_is_not_refused(family, part, check, state):
    assert testing.examine(family, part, only=check).results[-1].state == state


@pytest.mark.parametrize("check", ["alone", "positions", "repeats"])
def test_of_large_images_an_encoder_is_given_few(check, monkeypatch):
    """A network that takes half a second for each stays far from the limit of a check."""
    monkeypatch.setattr(broken_encoders.Large, "images", 0)
    result = testing.examine("encoders", broken_encoders.Large, only=check)
    assert result.ok, result
    assert broken_encoders.Large.images < 60


def test_a_fingerprint_is_asked_for_in_another_process():
    *_, result = testing.examine("datasets", hashed_data.Named, only="processes").results
    assert (result.name, result.state) == ("processes", "ok")


@pytest.mark.parametrize("family", BROKEN)
def test_every_check_has_a_defect_that_it_catches(family):
    harmless = {"arithmetic", "made"}
    assert set(testing.checks(family)) - harmless <= set(BROKEN[family].values())


@pytest.mark.parametrize(("family", "part"), [("masks", broken_masks.Whole), ("losses", broken_losses.NotScalar)])
def test_checks_that_need_a_broken_contract_are_left_out(family, part):
    told = []
    report = testing.examine(family, part, tell=told.append)
    assert len(report.failed) == 1
    assert told == list(report.results)
    assert {result.state for result in report.results[2:]} == {"left out"}
    with pytest.raises(testing.ContractError, match=r"1 of \d+ checks failed \(\d+ left out"):
        getattr(testing, f"check_{family}")(part)


def test_a_part_that_ends_one_of_two_ranks_is_told():
    with pytest.raises(Violation, match="its process ended"):
        scene.as_two_ranks(lambda rank: os._exit(3) if rank == 0 else None, dict)


def test_a_fault_of_a_check_is_never_shown_as_the_authors(monkeypatch):
    def broken_check(make):
        """It is something."""
        make()
        return {}["nothing"]

    one = report_.Check(broken_check)
    monkeypatch.setattr(masks, "CHECKS", (one,))
    report = testing.examine("masks", broken_masks.Sound)
    (result,) = report.results
    assert result.state == "fault"
    assert not report.ok
    assert not report.failed
    assert "a fault of sslzoo's check, not of your part" in str(report)


def test_an_error_inside_a_part_is_told_with_its_own_line():
    (failed,) = testing.examine("predictors", broken_predictors.Needy, only="unmasked").failed
    lines = Path(broken_predictors.__file__).read_text().splitlines()
    number = int(failed.came.split("line ")[1].split(",")[0])
    assert "target.flat(self.rows(tokens, target))" in lines[number - 1]
    assert "in forward" in failed.came


def test_time_is_bounded_for_a_check_and_for_the_whole():
    report = testing.examine("masks", broken_masks.Endless, only="oblong", limit=1)
    assert report.failed[0].expected.startswith(("an answer within", "all checks within"))
    assert report_.signal.getitimer(report_.signal.ITIMER_REAL)[0] == 0


def test_time_that_is_over_for_all_is_not_told_as_a_loop_without_end(monkeypatch):
    monkeypatch.setattr(masks, "STEPS", 2000)
    (failed,) = testing.examine("masks", broken_masks.Sound, only="legal", limit=0.3).failed
    assert failed.expected == "all checks within 0.3 s"
    assert "loop" not in failed.came


def test_slow_checks_can_be_left_out():
    report = testing.examine("losses", broken_losses.Square, fast=True)
    assert report.ok
    assert {result.name for result in report.results if result.state == "left out"} == {"processes", "ranks"}


def test_a_loss_tells_every_kind_that_it_does_not_work_with():
    (failed,) = testing.examine("losses", broken_losses.FromOneToK).failed
    assert "patch: IndexError: Target -1 is out of bounds" in failed.came
    assert "image: ValueError: of patch signals" in failed.came


def test_a_part_that_cannot_be_made_says_so_once():
    (result,) = testing.examine("predictors", catalogue().parts["predictors"]["ijepa"].make).failed
    assert result.name == "made"
    assert "nothing is published for an encoder 64 wide" in result.came


SMALL = {"width": 32, "depth": 2, "heads": 2}
KEYS = {
    "multiblock": {"min_keep": 4},
    "vit": {**SMALL, "patch": 8},
    "ijepa": SMALL,
    "cross": SMALL,
    "mae": SMALL,
    "regressor": {"heads": 4},
    "join": {"parts": {"one": {"use": "ijepa", **SMALL}, "two": {"use": "cross", **SMALL}}},
    "convolutions": {"noise": 0.0},  # else it draws noise, from torch's generator, also in eval mode
    "vit-rope": {**SMALL, "patch": 8},
    "scenes": {"length": 50, "size": 32},
    "few": {"shots": 5},
    "finetune": {"epochs": 25, "warmup": 2},
}
INSTALLED = catalogue()
PARTS = INSTALLED.parts
SHIPPED = [(family, name) for family in testing.FAMILIES for name in PARTS[family]]
# Those need files, and are examined where tests make some; the published sampler has a test of its own.
APART = ("folder", "torchvision", "shards", "parquet", "clevr", "dalle", "multiblock-legacy")
SHIPPED = [one for one in SHIPPED if one[1] not in APART]


@pytest.mark.parametrize(("family", "name"), SHIPPED)
def test_every_shipped_part_keeps_its_contract(family, name):
    part = PARTS[family][name]
    report = testing.examine(family, maker(INSTALLED, part) if name == "join" else part.make, KEYS.get(name, {}))
    assert report.ok, report


OTHERWISE = (
    ("masks", "blocks", {"rate": 0.5}, "legal"),  # of half of the images nothing is asked
    ("losses", "mse", {"reduce": "sum"}, None),
    ("losses", "distill", {"average": "images"}, None),
)


@pytest.mark.parametrize(("family", "name", "keys", "only"), OTHERWISE)
def test_shipped_parts_keep_their_contracts_with_other_keys(family, name, keys, only, monkeypatch):
    monkeypatch.setattr(masks, "STEPS", 4)
    report = testing.examine(family, PARTS[family][name].make, keys, only=only, fast=True)
    assert report.ok, report


def test_the_published_sampler_is_caught_with_its_defects():
    report = testing.examine("masks", PARTS["masks"]["multiblock-legacy"].make, {"min_keep": 4})
    assert {"reaches", "mirrored", "apart", "batches"} <= {result.name for result in report.failed}
    assert "one random number" in str(report)
    assert "raster order" in str(report)


def test_verify_is_the_same_from_the_command_line(capsys):
    def verify(*words):
        with pytest.raises(SystemExit) as left:
            main(["verify", *words])
        return (left.value.code or 0, *capsys.readouterr())

    code, out, _ = verify("broken-last-row", "--plugin", str(Path(__file__).parent / "broken_masks.py"))
    assert code == 1
    assert "every patch asked for sometimes" in out
    assert "in 640 draws" in out
    assert verify("random", "--only", "leagl")[0] == 2
    assert json.loads(verify("random", "--set", "hide=0.5", "--json")[1])["ok"]
    assert verify("randm")[0] == 2
    assert "did you mean hide?" in verify("random", "--set", "hid=0.5")[2]
    assert "several parts" in verify("linear")[2]
