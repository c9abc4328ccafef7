"""Is a part what the contracts say? Checks that authors run: `sslzoo verify`, or one line of a test.

    from sslzoo.testing import check_masks
    from my_masks import Corner

    def test_corner():
        check_masks(Corner, where=3)

Each `check_FAMILY(make, **keys)` makes the part with the given keys, runs every check of its family and raises
`ContractError` with all that failed: what was expected, what came, and the smallest input that shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from sslzoo.testing.report import ContractError, Report, Result, Violation, run

FAMILIES = ("masks", "predictors", "targets", "losses", "encoders", "views", "datasets", "probes")


def examine(family: str, make: Callable[..., Any], **keys: Any) -> Report:
    """Runs every check of a family; nothing is raised for a part that fails."""
    checks = import_module(f"sslzoo.testing.{family}").CHECKS
    return run(f"{family} {getattr(make, '__name__', make)}", checks, partial(make, **keys))


def _check(family: str) -> Callable[..., Report]:
    def check(make: Callable[..., Any], **keys: Any) -> Report:
        report = examine(family, make, **keys)
        if not report.ok:
            raise ContractError(str(report))
        return report

    check.__name__ = check.__qualname__ = f"check_{family}"
    check.__doc__ = f"Makes a part of the family {family} with `keys` and checks its contract; raises ContractError."
    return check


check_masks = _check("masks")
check_predictors = _check("predictors")
check_targets = _check("targets")
check_losses = _check("losses")
check_encoders = _check("encoders")
check_views = _check("views")
check_datasets = _check("datasets")
check_probes = _check("probes")

__all__ = [
    "FAMILIES",
    "ContractError",
    "Report",
    "Result",
    "Violation",
    "check_datasets",
    "check_encoders",
    "check_losses",
    "check_masks",
    "check_predictors",
    "check_probes",
    "check_targets",
    "check_views",
    "examine",
]
