"""Is a part what the contracts say? Checks that authors run: `sslzoo verify`, or one line of a test.

    from sslzoo.testing import check_masks
    from my_masks import Corner

    def test_corner():
        check_masks(Corner, where=3)

Or one test a check, with the pytest plugin that comes along (`sslzoo.pytest_plugin`):

    @pytest.mark.sslzoo("masks", Corner, where=3)
    def test_corner(sslzoo_check):
        sslzoo_check()

Each `check_FAMILY(make, **keys)` makes the part with the given keys, runs every check of its family and raises
`ContractError` with all that failed: what was expected, what came, and the smallest input that shows it. A check that
needs another one's contract is left out while that is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sslzoo.errors import UserError, did_you_mean
from sslzoo.plugins import FAMILIES as _ALL
from sslzoo.testing.report import LIMIT, Check, ContractError, Report, Result, Violation, needed, run

FAMILIES = tuple(family for family in _ALL if find_spec(f"sslzoo.testing.{family}"))  # those that have checks


def checks(family: str) -> dict[str, Check]:
    """The checks of a family, by name, in the order in which they run.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        close = did_you_mean(family, FAMILIES)
        raise UserError(f"no family is called {family!r}{close}\nfamilies: {', '.join(FAMILIES)}")
    return {check.name: check for check in import_module(f"sslzoo.testing.{family}").CHECKS}


def examine(
    family: str,
    make: Callable[..., Any],
    keys: Mapping[str, Any] | None = None,
    *,
    only: str | None = None,
    fast: bool = False,
    limit: float = LIMIT,
    tell: Callable[[Result], object] = lambda _: None,
) -> Report:
    """Makes a part with `keys` and runs every check of its family; raises nothing if some fail.

    Args:
        family: its family, such as `masks`.
        make: the class.
        keys: what the recipe would give it.
        only: run this check alone, after those that it needs.
        fast: leave slow checks out.
        limit: seconds for all of it.
        tell: called with each result as soon as it is known.

    Raises:
        UserError: there is no such family, or no such check.
    """
    found = checks(family)
    if only is not None and only not in found:
        names = ", ".join(found)
        raise UserError(f"{family} have no check called {only!r}{did_you_mean(only, found)}\nchecks: {names}")
    chosen = tuple(found.values()) if only is None else needed(found[only], tuple(found.values()))
    part = f"{family} {getattr(make, '__name__', make)}"
    return run(part, chosen, partial(make, **(keys or {})), tell=tell, fast=fast, limit=limit)


def _check(family: str) -> Callable[..., Report]:
    def check(make: Callable[..., Any], **keys: Any) -> Report:
        report = examine(family, make, keys)
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
check_optimizers = _check("optimizers")
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
    "check_optimizers",
    "check_predictors",
    "check_probes",
    "check_targets",
    "check_views",
    "checks",
    "examine",
]
