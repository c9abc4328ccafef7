"""A whole study: cells trained and probed once, the page written, an edited study refused."""

import io
import json

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from sslzoo.cli.compare_ import command
from sslzoo.compare import cells, evaluation, study, worker
from sslzoo.errors import UserError

SMALL = ["run.workers=0", "run.steps=4", "run.batch=8", "data.length=40", "data.cache=false", "run.log_every=2"]
SMALL += ["run.monitor=8", "evaluate.train.length=40", "evaluate.test.length=40", "evaluate.probes={knn: {use: knn}}"]
VARIANTS = {"multiblock": [], "random": ["masks.image={use: random, hide: 0.6}"]}


def run(path, out, *words):
    return CliRunner().invoke(command, [str(path), "--out", str(out), *words], catch_exceptions=False)


@pytest.mark.slow
def test_a_study_from_its_file_to_its_page(tmp_path):
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    study = {"study": "trial", "base": "tiny/ijepa", "set": SMALL, "variants": VARIANTS, "seeds": 1}
    path.write_text(yaml.safe_dump(study))

    told = run(path, out, "--dry-run").output
    assert "2 cells" in told
    assert not out.exists()

    first = run(path, out, "--json")
    assert first.exit_code == 0
    found = json.loads(first.stdout)
    assert set(found["figures"]) == {"multiblock", "random"}
    assert {what.split(" ")[0] for what in found["figures"]["random"]} == {"teacher", "student"}
    assert "at least 3" in found["differences"]["random"]["teacher knn/count"]["why"]
    assert [one["what"] for one in found["fairness"]["question"]] == ["masks.image.use"]
    page = (out / "report" / "index.html").read_text()
    assert "What may be said" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )

    evaluated = sorted(out.glob("*/*/eval/*.json"))
    stamps = [one.stat().st_mtime_ns for one in (*evaluated, *out.glob("*/*/metrics.jsonl"))]
    assert len(evaluated) == 4  # teacher and student of two cells
    run(path, out)
    assert [one.stat().st_mtime_ns for one in (*evaluated, *out.glob("*/*/metrics.jsonl"))] == stamps
    assert run(path, out, "--strict").exit_code == 1  # the teacher of four steps is still its start

    path.write_text(yaml.safe_dump(study | {"set": [*SMALL, "optim.clip=1.0"]}))
    with pytest.raises(UserError, match="was edited after 2 of its 2 cells"):
        run(path, out)


def test_a_cell_is_probed_by_the_process_that_trained_it_as_another_would(tmp_path, monkeypatch):
    own = {"study": "trial", "base": "tiny/ijepa", "set": [*SMALL, "encoder.depth=1", "predictor.depth=1"], "seeds": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(own | {"variants": {"one": ["targets.teacher.layers=1"]}}))
    read = study.read(tmp_path / "study.yaml", tmp_path / "out")
    (cell,) = cells.prepare(read)
    monkeypatch.setattr(worker.Stop, "listen", lambda _: None)
    worker.cell(cell.folder, "all", read.features)
    assert cells.is_done(cell)
    figures = {one.name: json.loads(one.read_text())["figures"] for one in cell.folder.glob("eval/*.json")}
    assert len(figures) == 2  # teacher and student

    said = Console(file=io.StringIO())
    assert evaluation.evaluate(read, said) == []
    assert said.file.getvalue() == ""  # nothing was left to do
    for one in (*cell.folder.glob("eval/*"), *read.features.glob("*")):
        one.unlink()
    assert evaluation.evaluate(read, said) == []
    assert said.file.getvalue().splitlines() == ["probing one, seed 0: teacher", "probing one, seed 0: student"]
    assert {one.name: json.loads(one.read_text())["figures"] for one in cell.folder.glob("eval/*.json")} == figures
