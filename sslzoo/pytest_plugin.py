"""One pytest test for each check of a part's contract.

    @pytest.mark.sslzoo("masks", Corner, where=3)
    def test_corner(sslzoo_check):
        sslzoo_check()

runs as `test_corner[legal]`, `test_corner[reaches]` and so on: failures are told apart; checks that do not apply, or
need a contract that is broken, are skipped with their reason; `-k` and `-n` work. Installed with sslzoo, and loads
nothing before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker."""
    config.addinivalue_line("markers", "sslzoo(family, make, **keys): check the contract of the part made with keys")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes one test of each check of the marked part's family."""
    if "sslzoo_check" in metafunc.fixturenames:
        from sslzoo.testing import checks

        marker = metafunc.definition.get_closest_marker("sslzoo")
        if marker is None or len(marker.args) != 2:
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: mark it with sslzoo(FAMILY, CLASS, key=value)")
        metafunc.parametrize("sslzoo_check", list(checks(marker.args[0])), indirect=True)


@pytest.fixture
def sslzoo_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Runs one check of the marked part; raises ContractError with what was expected and what came."""
    from sslzoo.testing import ContractError, examine

    marker = next(request.node.iter_markers("sslzoo"))
    family, make = marker.args

    def check() -> None:
        result = examine(family, make, marker.kwargs, only=request.param).results[-1]
        if result.state in ("skipped", "left out"):
            pytest.skip(result.remark)
        if result.state != "ok":
            raise ContractError(str(result))

    return check
