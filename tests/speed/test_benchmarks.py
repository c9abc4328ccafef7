"""The programs of benchmarks/ still run, at sizes that mean nothing; what they measure is told in docs/performance.md."""

import importlib.util
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _threads():
    held = torch.get_num_threads()
    yield
    torch.set_num_threads(held)


def run(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def module(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_beside_the_published_code_is_the_training_loops_own(precision):
    step = module("step")
    step.SIZES = {"tiny": (32, 8, 4, 192)}
    ours, batches = step.ours("tiny", precision, ("encoder.depth=1", "predictor.depth=1"))
    ours(0)
    assert [one.groups["image"].pixels.shape for one in batches] == [(1, 4, 3, 32, 32)] * step.DRAWS
    places = [one.groups["image"].mask.context.index for one in batches]
    assert not any(a.equal(b) for a, b in pairwise(places)), "masks of unlike steps"


def test_loading_is_told_beside_an_image_folder(monkeypatch, tmp_path, capsys):
    for i in range(100):
        path = tmp_path / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), i, np.uint8)).save(path)
    run(monkeypatch, "data.py", tmp_path, "--side", 32, "--rounds", 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 4
    assert all("images a second" in line for line in lines[1:])


def test_an_index_is_listed_and_opened(monkeypatch, capsys):
    run(monkeypatch, "data.py", "--names", 2000)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "2,000 names listed",
        "2,000 names cached",
    ]


def test_probes_are_timed(monkeypatch, capsys):
    run(monkeypatch, "probes.py", "--rows", 200, "--test", 50, "--width", 8, "--classes", 3, "--device", "cpu")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["knn", "linear"]


def test_a_save_is_timed_in_place_and_aside(monkeypatch, capsys):
    run(monkeypatch, "checkpoint.py", 0.07)
    assert "in place" in (told := capsys.readouterr().out)
    assert told.count("aside") == 2
