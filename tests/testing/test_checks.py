"""Checks have teeth: each part that is wrong on purpose is caught by the check that names its defect."""

import json
from pathlib import Path

import broken
import pytest

from sslzoo import catalogue, testing
from sslzoo.cli import main

FAMILIES = {
    "masks": (broken.MASKS, broken.Sound),
    "predictors": (broken.PREDICTORS, broken.Guess),
    "targets": (broken.TARGETS, broken.Follow),
    "losses": (broken.LOSSES, broken.Square),
    "encoders": (broken.ENCODERS, broken.Look),
}
WRONG = [(family, part, check) for family, (parts, _) in FAMILIES.items() for part, check in parts.items()]


@pytest.mark.parametrize(
    ("family", "part", "check"), WRONG, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)
def test_a_defect_is_caught_by_the_check_that_names_it(family, part, check):
    report = testing.examine(family, part)
    failed = {result.name: result for result in report.failed}
    assert check in failed, report
    assert failed[check].expected
    assert failed[check].came
    with pytest.raises(testing.ContractError, match="failed"):
        getattr(testing, f"check_{family}")(part)


def test_a_part_that_cannot_be_made_says_so_once():
    (result,) = testing.examine("predictors", catalogue().parts["predictors"]["ijepa"].make).results
    assert result.name == "made"
    assert "nothing is published for an encoder 64 wide" in result.came


@pytest.mark.parametrize("family", FAMILIES)
def test_what_they_were_made_from_keeps_its_contract(family):
    """So it is the defect that is caught, and nothing else."""
    report = testing.examine(family, FAMILIES[family][1])
    assert report.ok, report


@pytest.mark.parametrize("family", FAMILIES)
def test_every_check_has_a_defect_that_it_catches(family):
    from importlib import import_module

    checks = {check.__name__ for check in import_module(f"sslzoo.testing.{family}").CHECKS}
    harmless = {"arithmetic", "shapes"}
    assert checks - harmless <= set(FAMILIES[family][0].values())


SMALL = {"width": 32, "depth": 2, "heads": 2}
KEYS = {
    "multiblock": {"min_keep": 4},
    "vit": {**SMALL, "patch": 8},
    "ijepa": SMALL,
    "cross": SMALL,
    "mae": SMALL,
    "scenes": {"length": 50, "size": 32},
}
PARTS = catalogue().parts
SHIPPED = [(family, name) for family in testing.FAMILIES for name in PARTS[family]]
SHIPPED = [one for one in SHIPPED if one[1] not in ("folder", "torchvision", "shards", "parquet", "multiblock-legacy")]


@pytest.mark.parametrize(("family", "name"), SHIPPED)
def test_every_shipped_part_keeps_its_contract(family, name):
    report = testing.examine(family, PARTS[family][name].make, **KEYS.get(name, {}))
    assert report.ok, report


def test_the_published_sampler_is_caught_with_its_defects():
    report = testing.examine("masks", PARTS["masks"]["multiblock-legacy"].make, min_keep=4)
    assert {"reaches", "mirrored", "apart", "batches"} <= {result.name for result in report.failed}
    assert "one random number" in str(report)
    assert "raster order" in str(report)


def test_verify_is_the_same_from_the_command_line(capsys):
    def verify(*words):
        with pytest.raises(SystemExit) as left:
            main(["verify", *words])
        return (left.value.code or 0, *capsys.readouterr())

    code, out, _ = verify("broken-last-row", "--plugin", str(Path(__file__).parent / "broken.py"))
    assert code == 1
    assert "every patch asked for sometimes" in out
    assert "in 1280 draws" in out
    assert json.loads(verify("random", "--set", "hide=0.5", "--json")[1])["ok"]
    assert verify("randm")[0] == 2
    assert "did you mean hide?" in verify("random", "--set", "hid=0.5")[2]
    assert "several parts" in verify("linear")[2]
