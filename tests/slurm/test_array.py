"""A study as one array on a real SLURM: a cell that is killed goes on, and what is finished never runs again."""

import json
import subprocess

import pytest
import yaml
from conftest import finish, reach, sslzoo, tell, wait

pytestmark = pytest.mark.slurm

SETS = ["run.steps=60", "run.save_every=10", "run.batch=8", "run.workers=0", "run.monitor=0", "run.log_every=1"]
SETS += ["data.length=64", "evaluate.train.length=60", "evaluate.test.length=40", "evaluate.probes={knn: {use: knn}}"]
VARIANTS = {"multiblock": [], "random": ["masks.image={use: random, hide: 0.6}"]}


def test_a_study_is_one_array_and_no_finished_cell_runs_twice(cluster, tmp_path):
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    keys = {"study": "trial", "base": "tiny/ijepa", "set": SETS, "variants": VARIANTS, "seeds": 2}
    path.write_text(yaml.safe_dump(keys))

    def compare(profile):
        words = ["--plugin", cluster / "slow.py", "--cluster", cluster / f"{profile}.yaml"]
        return sslzoo("compare", path, "--out", out, *words)

    def launched():
        return {cell: json.loads((cell / "launch.json").read_text())["job"] for cell in sorted(out.glob("*/seed-*"))}

    def probed(cell):
        finish(cell)
        wait(cell, lambda row: not row["reason"])  # as long as its probing waits or runs, the reason tells of it
        assert len(list((cell / "eval").glob("*.json"))) == 2, tell(cell)

    assert "submitted 4 cells as job" in compare("slow")
    first = launched()
    cells = list(first)
    assert len(cells) == 4
    assert len({job.split("_")[0] for job in first.values()}) == 1
    assert (out / "code").is_dir()  # one snapshot, beside the cells of both variants

    killed = cells[0]
    reach(killed, 15)
    subprocess.run(["scancel", first[killed]], check=True)
    assert "queued, running or being probed: job" in compare("slow")
    assert launched() == first  # nothing was submitted
    for cell in cells[1:]:
        probed(cell)
    wait(killed, lambda row: row["state"] not in ("running", "pending", "starting"))

    assert "submitted 1 cells as job" in compare("quick")
    second = launched()
    assert [cell for cell in cells if second[cell] != first[cell]] == [killed]
    assert finish(killed)["restarts"] == 1, tell(killed)
    probed(killed)

    lines = {cell: (cell / "metrics.jsonl").read_text() for cell in cells}
    steps = [json.loads(line)["step"] for line in lines[killed].splitlines()]
    assert steps == list(range(1, 61)) or steps == list(range(60))  # went on where it was saved: no step is missing
    told = compare("quick")
    assert "page:" in told
    assert "probing" not in told  # each cell was probed by a job of its own, teacher and student
    assert (out / "report" / "index.html").is_file()
    assert launched() == second
    assert {cell: (cell / "metrics.jsonl").read_text() for cell in cells} == lines
    assert all(len((cell / "attempts.jsonl").read_text().splitlines()) == 1 + (cell == killed) for cell in cells)
