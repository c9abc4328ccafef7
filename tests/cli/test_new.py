"""`sslzoo new` refuses names with which no plugin could work. (What it writes is tried in tests/testing/test_outside.py.)"""

import pytest

from sslzoo import UserError, catalogue
from sslzoo.scaffold import KINDS, write

INSTALLED = catalogue()


@pytest.mark.parametrize("lone", [True, False])
@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("mask", "mask", "its class Mask would hide a name"),
        ("mask", "patches", "its class Patches would hide a name"),
        ("loss", "none", "its class None would hide a name"),
        ("loss", "f", "its class F would hide a name"),
        ("loss", "contrast", "a plugin is called so, of sslzoo"),
        ("loss", "join", "a plugin is called so, of sslzoo"),
    ],
)
def test_a_name_with_which_no_plugin_could_work_is_refused(kind, name, says, lone, tmp_path):
    with pytest.raises(UserError, match=says):
        write(kind, name, tmp_path, lone=lone, installed=INSTALLED)
    assert not list(tmp_path.iterdir())


def test_a_module_that_is_there_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "sslzoo_mine.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="its module sslzoo_mine would hide one"):
        write("mask", "mine", tmp_path / "new", lone=True, installed=INSTALLED)


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_written(kind, tmp_path):
    (path,) = write(kind, "true-color", tmp_path, lone=True, installed=INSTALLED)
    compile(path.read_text(), path, "exec")
    assert "class TrueColor" in path.read_text()
