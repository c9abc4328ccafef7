"""The wheel holds engine, plugins and recipes, and works in a fresh environment."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_everything_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    shipped = {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}
    assert tops == {"sslzoo", *shipped}
    recipes = {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")}
    home = "sslzoo_recipes/recipes/"
    assert {name.removeprefix(home) for name in names if name.startswith(home)} == recipes
    assert {name for name in names if name.endswith((".yaml", ".html")) and name.startswith("sslzoo/")} == {
        str(path.relative_to(ROOT)) for kind in ("yaml", "html") for path in (ROOT / "sslzoo").rglob(f"*.{kind}")
    }


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    # The heavy packages come from this environment by path; sslzoo itself only from the wheel.
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({site!r}); from sslzoo.cli import main; main()"

    def sslzoo(*words):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(python), "-c", code, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    listed = sslzoo("plugins", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)
    checked = sslzoo("check", "tiny/ijepa")
    assert checked.returncode == 0, checked.stderr
    trained = sslzoo("train", "tiny/ijepa", "--set", "run.steps=2", "--set", "run.batch=8", "--no-evaluate")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs").is_dir()
    where = subprocess.run(
        [str(python), "-c", f"import sys; sys.path.append({site!r}); import sslzoo; print(sslzoo.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert str(tmp_path / "venv") in where
