"""Run folders that something befell, and the commands that go on with them or look at them."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from sslzoo import UserError
from sslzoo.cli import cli
from sslzoo.recipe.recipe import find

SHORT = ("run.steps=2", "run.batch=4", "run.workers=0", "run.monitor=0", "run.device=cpu", "data.length=16")
SHORT += ("run.save_every=1",)
SHORT += ("encoder.width=48", "encoder.depth=1", "targets.teacher.layers=1", "evaluate=null")


def train(folder, *sets):
    words = ["train", "tiny/ijepa", *(word for one in (*SHORT, *sets) for word in ("--set", one))]
    return CliRunner().invoke(cli, [*words, "--out", str(folder)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder).exit_code == 0
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.mark.parametrize("damage", ["a folder", "a ring", "without a number", "empty"])
def test_what_the_data_were_may_be_lost_and_the_run_goes_on(run, damage):
    path = run / "data.jsonl"
    text = path.read_text()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a ring":
        path.symlink_to(path)
    else:
        path.write_text(text.replace('"images": 16', '"images": null') if damage == "without a number" else "")
    told = train(run)
    assert told.exit_code == 0, told.output
    assert "whether the training data are those of before is not known" in told.output
    assert str(path) in told.output


def test_what_tensorboard_cannot_write_is_not_worth_a_run(run):
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("mine")
    (run / "checkpoints" / "step-000000002.safetensors").unlink()
    with pytest.warns(UserWarning, match="tensorboard gets no more numbers"):
        told = train(run)
    assert told.exit_code == 0, told.output
    assert (run / "checkpoints" / "step-000000002.safetensors").is_file()


@pytest.mark.parametrize("odd", [Path.mkdir, os.mkfifo, lambda log: log.symlink_to("/nowhere/at/all")])
def test_a_log_that_cannot_be_written_is_not_worth_a_run(run, odd):
    (run / "log.txt").unlink()
    odd(run / "log.txt")
    (run / "checkpoints" / "step-000000002.safetensors").unlink()
    told = train(run)
    assert told.exit_code == 0, told.output
    assert f"warning: {run / 'log.txt'} cannot be written" in told.output
    assert (run / "checkpoints" / "step-000000002.safetensors").is_file()


def test_a_refused_command_leaves_a_damaged_state_as_it_was(run):
    (run / "state.json").write_text("garbage")
    told = train(run, "data.length=12")
    assert isinstance(told.exception, UserError)
    assert (run / "state.json").read_text() == "garbage"
    assert not (run / "failure.txt").exists()


def test_a_resume_writes_no_recipe_that_is_the_same(run):
    before = (run / "recipe.yaml").stat()
    text = (run / "recipe.yaml").read_text()
    assert text.startswith("# Resolved from ")
    told = CliRunner().invoke(cli, ["resume", str(run)])
    assert told.exit_code == 0, told.output
    assert (run / "recipe.yaml").read_text() == text
    assert (run / "recipe.yaml").stat().st_ino == before.st_ino


def test_a_run_of_which_the_log_alone_is_left_begins_again_with_a_word(run):
    shutil.rmtree(run / "checkpoints")
    for name in ("data.jsonl", "state.json", "attempts.jsonl", "metrics.jsonl"):
        (run / name).unlink()
    told = train(run)
    assert told.exit_code == 0
    assert "warning: its log tells of an earlier start, and nothing else does" in told.output
    assert "its log" not in train(run.with_name("new")).output


def test_a_folder_where_a_checkpoint_belongs_is_told_before_the_run_goes_on(run):
    path = run / "checkpoints" / "step-000000002.safetensors"
    path.unlink()
    path.mkdir()
    before = {one: one.read_bytes() for one in run.iterdir() if one.is_file() and one.name != "log.txt"}
    told = train(run)
    assert isinstance(told.exception, UserError)
    assert f"{path} is a folder" in str(told.exception)
    assert {one: one.read_bytes() for one in before} == before


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"new\nline: [\x1b[31m"])
def test_a_recipe_may_lie_under_any_name_and_a_run_under_any_that_is_text(tmp_path, odd):
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + odd))
    home.mkdir()
    plugin, data = home / "mine.py", home / "data"
    plugin.write_text("from sslzoo import hookimpl\n\n\n@hookimpl\ndef sslzoo_masks():\n    return {}\n")
    for name in "a/0.png", "b/1.png":
        (data / name).parent.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(data / name)
    recipe = home / "mine.yaml"
    recipe.write_text(find("tiny/ijepa").read_text())
    run = home / "run" if odd.isascii() else tmp_path / "run"
    words = ["train", str(recipe), "--plugin", str(plugin), "--out", str(run)]
    words += [word for one in SHORT if not one.startswith("data.") for word in ("--set", one)]
    words += ["--set", "data={use: folder, root: '${ODD_DATA}'}", "--set", "run.batch=2"]
    first = CliRunner().invoke(cli, words, env={"ODD_DATA": str(data)})
    assert first.exit_code == 0, first.output
    (run / "checkpoints" / "step-000000002.safetensors").unlink()
    again = CliRunner().invoke(cli, ["train", str(run)], env={"ODD_DATA": str(data)})
    assert again.exit_code == 0, again.output
    assert "resumed from step-000000001" in again.output
    if not odd.isascii():  # safetensors would write weights there, and not read them again
        refused = CliRunner().invoke(cli, [*words[:5], str(home / "run")])
        assert "holds bytes that are no UTF-8; choose another folder" in str(refused.exception)
        assert not (home / "run").exists()


def test_a_folder_that_is_no_run_is_told_as_one(tmp_path):
    told = CliRunner().invoke(cli, ["train", str(tmp_path)])
    assert str(told.exception) == f"{tmp_path} is a folder that holds no recipe.yaml"


def test_control_characters_of_a_path_reach_no_terminal(run):
    odd = run.rename(run.with_name("\x1b[31mred"))
    for told in (train(odd), CliRunner().invoke(cli, ["status", str(odd.parent)])):
        assert told.exit_code == 0
        assert "\x1b" not in told.output
        assert "\\x1b[31mred" in told.output


def test_a_process_that_has_the_number_of_one_that_was_killed_is_left_alone(run):
    path = run / "state.json"
    with subprocess.Popen(["sleep", "60"]) as other:
        now = json.loads(path.read_text()) | {"state": "running", "pid": other.pid, "host": socket.gethostname()}
        path.write_text(json.dumps(now))
        told = CliRunner().invoke(cli, ["cancel", str(run)])
        assert isinstance(told.exception, UserError)
        assert f"process {other.pid} is another by now" in str(told.exception)
        assert other.poll() is None
        other.kill()
