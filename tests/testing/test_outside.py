"""Plugins from outside: what `sslzoo new` writes, and a third party's package, really installed by pip in a fresh environment."""

import fcntl
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sslzoo import UserError, catalogue, testing
from sslzoo.scaffold import KINDS, write

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Environment:
    """A fresh virtual environment: sslzoo and plugins installed by pip, heavy packages seen from this one."""

    def __init__(self, folder):
        self.folder, self.python = folder, folder / "bin" / "python"

    def make(self):
        folder = self.folder
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # As site-packages of the new environment, but after its own; .pth files there (ours) are not followed.
        here = next(path for path in sys.path if path.endswith("site-packages"))
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "heavy.pth").write_text(f"{here}\n")
        self.install(ROOT)
        return self

    def install(self, *packages):
        command = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--force-reinstall",
        ]
        done = subprocess.run([*command, *map(str, packages)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, *words, cwd, fails=False):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSLZOO"))}
        done = subprocess.run(
            [str(self.python), "-m", *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Makes a folder once for all of pytest's workers."""

    def once(name, make):
        root = tmp_path_factory.getbasetemp()
        root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
        with (root / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not (root / name / "made").exists():
                make(root / name)
                (root / name / "made").touch()
        return root / name

    return once


@pytest.fixture(scope="module")
def written(shared):
    """A package of each kind, written by `sslzoo new`, and an environment with all of them installed."""
    return shared("written", write_and_install)


@pytest.fixture(scope="module")
def fresh(written):
    return Environment(written / "venv")


def write_and_install(into):
    into.mkdir(exist_ok=True)
    fresh = Environment(into / "venv").make()
    for kind in KINDS:
        fresh.run("sslzoo", "new", kind, f"my-{kind}", "--into", into, cwd=into)
    fresh.install(*(into / f"sslzoo-my-{kind}" for kind in KINDS))
    told = {one["name"]: one for one in json.loads(fresh.run("sslzoo", "plugins", "--json", cwd=into))}
    assert all(told[f"my-{kind}"]["from"] == f"sslzoo-my-{kind}" for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_its_own_test_and_trains_ten_steps(fresh, written, kind):
    top = written / f"sslzoo-my-{kind}"
    told = fresh.run("pytest", "-v", "-p", "no:cacheprovider", top, cwd=top)
    assert re.search(rf"test_sslzoo_my_{kind}_keeps_its_contract\[\w+\] PASSED", told)
    assert fresh.run("sslzoo", "check", "recipes/tiny.yaml", cwd=top).endswith("ok\n")
    evaluate = "--evaluate" if kind in ("probe", "encoder") else "--no-evaluate"
    out = fresh.run("sslzoo", "train", "recipes/tiny.yaml", "--out", "run", evaluate, cwd=top)
    assert "step 10/10" in out
    assert f"# plugin my-{kind} 0.1.0" in (top / "run" / "recipe.yaml").read_text() or kind == "probe"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_lone_file_keeps_its_contract(kind, tmp_path):
    (path,) = write(kind, "my-own", tmp_path, lone=True, installed=catalogue())
    part = catalogue([path]).parts[KINDS[kind]]["my-own"]
    report = testing.examine(KINDS[kind], part.make)
    assert report.ok, report
    with pytest.raises(UserError, match="nothing is written over"):
        write(kind, "my-own", tmp_path, lone=True, installed=catalogue())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("maks", "x"), "did you mean mask?"),
        (("mask", "Not A Name"), "small letters"),
        (("mask", "multiblock"), "the plugin ijepa already offers a mask called 'multiblock'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(words, says, tmp_path):
    with pytest.raises(UserError) as caught:
        write(*words, tmp_path, lone=False, installed=catalogue())
    assert says in str(caught.value)


OUTSIDE = '''
"""A mask, a predictor and a command from outside."""
import click
from sslzoo import hookimpl
from sslzoo.scaffold.parts.masks import Example as Stripes
from sslzoo.scaffold.parts.predictors import Example as Guess

@hookimpl
def sslzoo_masks():
    return {"outside-stripes": Stripes}

@hookimpl
def sslzoo_predictors():
    return {"outside-guess": Guess}

@hookimpl
def sslzoo_commands(cli):
    @cli.command("outside")
    def outside():
        """Greets."""
        click.echo("greetings from outside")
'''


def package(folder, version):
    folder.mkdir(exist_ok=True)
    (folder / "outside.py").write_text(OUTSIDE)
    (folder / "pyproject.toml").write_text(
        textwrap.dedent(f"""\
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "outside"
        version = "{version}"
        [project.entry-points.sslzoo]
        outside = "outside"
        [tool.hatch.build.targets.wheel]
        only-include = ["outside.py"]
        """)
    )
    return folder


def test_a_third_party_is_used_by_name_recorded_and_watched(fresh, tmp_path):
    fresh.install(package(tmp_path / "package", "1.2.3"))
    assert "greetings from outside" in fresh.run("sslzoo", "outside", cwd=tmp_path)
    sets = ["--set", "masks.image={use: outside-stripes}", "--set", "predictor={use: outside-guess}", "--no-evaluate"]
    for change in ("run.steps=4", "run.batch=8", "run.monitor=8", "data.length=40"):
        sets += ["--set", change]
    train = ["sslzoo", "train", "tiny/ijepa", "--out", "run", *sets]
    fresh.run(*train, cwd=tmp_path)
    assert "# plugin outside 1.2.3" in (tmp_path / "run" / "recipe.yaml").read_text()
    fresh.install(package(tmp_path / "package", "1.3.0"))
    told = fresh.run(*train, cwd=tmp_path, fails=True)
    assert "plugin outside was 1.2.3 and is 1.3.0" in told
    assert "resumed from" in fresh.run(*train, "--allow-upgrade", cwd=tmp_path)
    assert "# plugin outside 1.3.0" in (tmp_path / "run" / "recipe.yaml").read_text()
