"""Files of run folders: written whole, read whatever befell them; and what is told of a run whose files are damaged."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from sslzoo import RunError, files
from sslzoo.cli.status_ import table
from sslzoo.launch.follow import Row, folders, rows
from sslzoo.run.folder import Folder
from sslzoo.run.metrics import Lines
from sslzoo.run.state import State

RECIPE = "# sslzoo 0\nname: a\nrun: {steps: 4, batch: 8}\n"
STATE = {"state": "done", "step": 4, "steps": 4, "saved": 4, "host": "elsewhere", "pid": 77, "time": 1.0, "loss": 0.5}


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, checkpoints aside."""
    folder = tmp_path / "runs" / "good"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder / "attempts.jsonl").write_text('{"from": 0, "repeats": 0}\n')
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": 0.5}}\n' for n in range(1, 5)))
    return folder


def test_a_whole_file_is_replaced_at_once_and_only_if_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, "one")
    before = path.stat().st_ino
    files.write_whole(path, "one")
    assert path.stat().st_ino == before

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="file could not be written: No space left on device"):
        files.write_whole(path, "two")
    assert path.read_text() == "one"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_by_file():
    with pytest.raises(RunError, match="/dev/full could not be written: No space left on device"):
        files.append(Path("/dev/full"), [{"step": 1}])


def test_a_line_after_a_torn_one_stands_alone(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1, "loss": 0.5})
    with lines.path.open("a") as file:
        file.write('{"step": 2, "lo')
    lines.write({"step": 3, "loss": float("nan")})
    found, fault = lines.found()
    assert found == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": None}]
    assert "line 2 cannot be read" in fault


@pytest.mark.parametrize("name", ["state.json", "attempts.jsonl", "metrics.jsonl", "recipe.yaml"])
def test_a_pipe_of_a_files_name_is_told_and_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    faults = [*State(run).faults, Folder(run).fault, Folder(run).metrics.found()[1]]
    assert [one for one in faults if one] == [f"{run / name} cannot be read: it is no file"]


def test_metrics_that_need_no_cutting_are_not_written(run):
    path = run / "metrics.jsonl"
    before = path.stat().st_ino
    Lines(path).rewind(4)
    assert path.stat().st_ino == before
    Lines(path).rewind(2)
    assert [line["step"] for line in Lines(path).read()] == [1, 2]


@pytest.mark.parametrize("name", ["state.json", "launch.json", "attempts.jsonl", "metrics.jsonl", "recipe.yaml"])
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_told_by_name_and_hides_no_other_run(run, name, seed):
    other = run.with_name("other")
    other.mkdir()
    whole = {"launch.json": json.dumps({"asked": {"cluster": "x"}, "top": "t", "code": "c", "logs": "l"})}.get(name)
    text = (whole or (run / name).read_text()).encode()
    rng = random.Random(f"{name} {seed}")
    bad = [
        b"",
        text[: rng.randrange(1, len(text) - 4)],
        bytes(rng.randrange(256) for _ in range(60)),
        b"[" * 100_000,
        b"null",
        text.replace(b":", b"\0"),
    ][seed % 6]
    for file in run.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (run / name).write_bytes(bad)
    good, damaged = sorted(rows(folders(run.parent)), key=lambda row: row.run.endswith("good"))
    assert (good.run, good.state, good.reason) == (str(other), "done", "")
    told = name in damaged.reason
    tolerated = name.endswith(".jsonl") and not bad.strip()  # a file without lines
    assert told or tolerated, damaged
    State(run).begin(4)  # a run with a checkpoint goes on
    Folder(run).prepare(RECIPE, lambda _text: None)
    assert (run / "recipe.yaml").read_text() == RECIPE
    Folder(run).metrics.rewind(4)
    assert not Folder(run).metrics.found()[1]


def test_values_of_other_types_are_damage_too(run):
    for bad in ({"step": "four"}, {"pid": -1}, {"pid": 0}, {"loss": []}, {"state": 3}, {"time": {}}):
        (run / "state.json").write_text(json.dumps(STATE | bad))
        assert "state.json is damaged" in rows([run])[0].reason
        assert State(run).now == {}  # a pid of -1 would mean every process of the machine


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(RunError, match=r"was saved at step 4 of 4 and is done, but its checkpoints are gone"):
        State(run).begin(0)
    (run / "state.json").write_text("")
    with pytest.raises(RunError, match=r"state.json is damaged.*and there is no checkpoint"):
        State(run).begin(0)
    (run / "state.json").write_bytes(before["state.json"])
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    State(run).begin(2)  # an older checkpoint will do
    ended = State(run).attempts[-1]["before"]
    assert (ended["state"], ended["step"]) == ("done", 4)  # how the start before ended


def test_a_run_that_never_saved_begins_again(run):
    (run / "state.json").write_text(json.dumps(STATE | {"state": "running", "saved": 0}))
    State(run).begin(0)


def test_a_torn_recipe_is_kept_and_written_anew_and_another_is_refused(run):
    whole = RECIPE + "evaluate: {batch: 8}\n"
    (run / "recipe.yaml").write_text("name: a\nrun: {ste")
    told = []
    Folder(run).prepare(whole, told.append)
    assert "recipe.yaml is damaged" in told[0]
    assert (run / "recipe.damaged.yaml").read_text() == "name: a\nrun: {ste"
    (run / "recipe.yaml").write_text("# sslzoo 1\nname: a\nrun: {steps: 4, batch: 8}\n")
    differs = lambda _had: ["run.steps: 4 there, 5 asked for"]  # noqa: E731 - as recipe.resuming tells it
    Folder(run).refuse(whole + "optim: {lr: 1}\n", differs)  # what is there is the beginning of what is asked for
    with pytest.raises(RunError, match="run.steps: 4 there, 5 asked for"):
        Folder(run).refuse(whole.replace("steps: 4", "steps: 5"), differs)


def test_status_fits_80_columns_and_tells_runs_apart_by_their_ends():
    def row(name):
        told = [f"runs/a-long-sweep/optim.lr=0.001,optim.weight_decay=0.05,{name}", "running", "", "4242_11"]
        return Row(*told, "gpu[001-128]", 123456, 300000, 12345.6, 360000.0, 3, 120, 1.2345, 99.9)

    found = [row("run.seed=0"), row("run.seed=1")]
    for width in (60, 80, 120, 200):
        lines = table(found, Path("runs"), width).splitlines()
        assert all(len(line) <= width for line in lines)
        assert "run.seed=0" in lines[1]
        assert "run.seed=1" in lines[2]
        assert "running" in lines[1]
        assert "123456/300000" in lines[1]
    assert "repeated" in table(found, Path("runs"), 200)


def test_files_of_others_stay_whatever_they_are_called(run):
    mine = ("my.json.writing", "x.writing", "recipe.mine.yaml.writing")
    for name in (*mine, "state.json.77.writing", "recipe.yaml.8.writing"):
        (run / name).write_text("x")
    files.remove_torn(run)
    assert {path.name for path in run.glob("*.writing")} == set(mine)


@pytest.mark.parametrize("gone", [(), ("attempts.jsonl",), ("metrics.jsonl",)])
def test_a_past_is_seen_in_any_file_that_is_left(run, gone):
    """Neither checkpoints nor state.json: what remains says that there was a run."""
    for name in ("state.json", *gone):
        (run / name).unlink()
    with pytest.raises(RunError, match=r"state\.json is gone, and there is no checkpoint"):
        State(run).refuse_vanished(0)


def test_a_number_that_is_not_finite_keeps_no_file_from_being_read(run):
    State(run).tell("running", loss=float("nan"), rate=float("inf"))
    assert "NaN" not in (run / "state.json").read_text()
    assert State(run).now["loss"] is None
    (run / "state.json").write_text('{"state": "running", "left": Infinity}')
    assert "state.json is damaged" in State(run).faults[0]


@pytest.mark.parametrize(
    "row",
    [{"saved": True}, {"step": -1}, {"steps": 10**30}, {"left": -5.0}, {"left": 1e308}],
    ids=str,
)
def test_numbers_without_sense_are_damage(run, row):
    (run / "state.json").write_text(json.dumps(STATE | row))
    assert "state.json is damaged" in State(run).faults[0]


def test_lines_that_go_back_are_left_out_and_told(run):
    lines = Lines(run / "metrics.jsonl")
    with lines.path.open("a") as file:
        file.write('{"step": 2, "loss": 9.0}\n{"step": 5, "loss": 0.5}\n')
    found, fault = lines.found()
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert "1 lines repeat a step or go back" in fault


def test_metrics_are_known_by_a_digest_of_their_beginning(run):
    lines = Lines(run / "metrics.jsonl")
    before = lines.digest(3)
    lines.rewind(3)
    assert lines.digest_of_all() == before
    lines.write({"step": 4, "loss": float("nan")})
    assert lines.digest_of_all() == lines.digest(4) == Lines(lines.path).digest_of_all()
    lines.write({"step": 5, "loss": 0.1})
    assert lines.digest_of_all() == lines.digest(5)
    lines.rewind(4)
    assert lines.digest_of_all() == lines.digest(4)
    assert lines.digest(3) == before
    lines.path.write_text(lines.path.read_text().replace("0.5", "0.25", 1))
    assert lines.digest(3) != before


def test_a_damaged_run_is_a_sentence_to_the_doctor_and_hides_no_other(run, capsys):
    from sslzoo.cli import cli

    shutil.copytree(run, run.parent / "bad")
    (run.parent / "bad" / "recipe.yaml").write_bytes(b"\xff\x00garbage")
    (run / "eval").mkdir()
    (run / "eval" / "4-student-0.json").write_text('{"network": "student", "step": 4, "figures": [1]}')
    (run / "recipe.yaml").write_text(RECIPE.replace("batch: 8", "batch: 8, seed: 0") + "optim: {lr: 1.0e-3}\n")
    with pytest.raises(SystemExit):
        cli.main(["doctor", str(run.parent)], standalone_mode=False)
    told = capsys.readouterr()
    assert f"{run}: healthy" in told.out
    assert "bad/recipe.yaml is damaged" in told.err
    assert "4-student-0.json is damaged" in told.err
