"""What engine tests share: they load no installed plugin, only the toys."""

import pytest
from toy_recipes import write


@pytest.fixture(autouse=True)
def _only_toys(monkeypatch):
    monkeypatch.setenv("SSLZOO_PLUGINS", "optimizers")


@pytest.fixture
def toy(tmp_path):
    """Writes toy recipes into the test's folder."""
    return lambda method, name="toy": write(tmp_path, method, name)
