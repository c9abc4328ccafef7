"""benchmarks/gpu.sh, rehearsed: every part of the GPU study runs, at sizes that mean nothing, and gives its rows."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"vitb16", "vitl16", "vith14", "mae-vitl16", "ddp", "fsdp"}


@pytest.mark.slow
def test_the_gpu_study_runs_whole_and_prints_a_table(tmp_path):
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", "--rehearse", "--out", tmp_path], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    assert len({len(row) for row in rows}) == 1
    assert {row[0] for row in rows[2:]} == PARTS
    assert [row[2] for row in rows if row[0] == "vitb16"] == ["no", "yes"], "compile off, and on"
    assert {row[3] for row in rows[2:]} == {"none", "ddp", "fsdp"}
    for name in PARTS:
        for one in json.loads((tmp_path / f"{name}.json").read_text()):
            assert one["rate"] > 0
            assert one["recipe"].startswith("mae" if "mae" in name else "ijepa")


def test_the_parts_together_stay_under_nine_minutes():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    budgets = [int(found) for found in re.findall(r"^ *(?:bench|part) [\w-]+ +(\d+) ", script, re.M)]
    assert len(budgets) == len(PARTS) + 1
    assert sum(budgets) <= 9 * 60 - 10


def test_a_part_that_fails_is_told_and_fails_the_study(tmp_path):
    """And what lies in the folder beside the study's own files stays: all JSON and logs were removed."""
    mine = [tmp_path / "out" / name for name in ("mine.json", "mine.log", "vitb16.json")]
    mine[0].parent.mkdir()
    for one in mine:
        one.write_text("{}")
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    broken.chmod(0o755)
    env = os.environ | {"PATH": f"{broken.parent}:{os.environ['PATH']}"}
    words = [ROOT / "benchmarks" / "gpu.sh", "--rehearse", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("MISSING: exit code 3") == len(PARTS)
    assert done.stderr.count("no such luck") == len(PARTS) + 1  # and of the table
    assert [one.exists() for one in mine] == [True, True, False]
