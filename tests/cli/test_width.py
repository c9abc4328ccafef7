"""What commands print is read at 80 columns: no line is longer, and no word is cut."""

import json
import re
from itertools import pairwise

import pytest

from sslzoo import catalogue
from sslzoo.cli import main
from sslzoo.recipe.recipe import names

WIDTH = 80


@pytest.fixture
def lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(map(str, words)))
        assert not left.value.code
        found = capsys.readouterr().out.splitlines()
        assert max(map(len, found)) <= WIDTH
        assert words[0] == "status" or "\u2026" not in "".join(found)  # a path may lose its beginning
        return [line.rstrip() for line in found]

    return run


def test_every_recipe_is_one_line_with_what_it_is_and_what_it_costs(lines):
    head, *rows = lines("list", "recipes")
    assert head.split() == ["recipes", "method", "network", "data", "FLOPs"]
    found = {row.split()[0]: row for row in rows if row}
    paths = names(catalogue())
    assert set(found) == set(paths)
    for name, row in found.items():
        told = re.search(r"^# Cost: +(\S+) FLOPs, counted", paths[name].read_text(), flags=re.M)
        assert told, name
        assert row.split()[-1] == told[1]


def test_summaries_of_parts_are_whole(lines):
    words = set(" ".join(lines("list", "masks")).split())
    for part in catalogue().parts["masks"].values():
        assert {part.name, *part.summary.split()} <= words


@pytest.mark.parametrize(("family", "name"), [("views", "crop"), ("encoders", "vit"), ("targets", "ema")])
def test_keys_of_a_part_are_whole(lines, family, name):
    words = set(" ".join(lines("show", family, name)).split())
    assert set((catalogue().parts[family][name].make.__doc__ or "").split()) - {"Args:"} <= words


def test_the_docstring_of_a_name_fills_the_lines(lines):
    """It is written for lines of 120 letters: folded one by one, every other line would be a few words long."""
    said = lines("show", "Signal")
    start = next(n for n, line in enumerate(said) if line.startswith("A `patch` signal"))
    paragraph = said[start : said.index("", start)]
    assert all(len(f"{line} {after.split()[0]}") > WIDTH for line, after in pairwise(paragraph))


def test_runs_are_told_apart_by_the_end_of_their_path(lines, tmp_path):
    long = tmp_path / ("a-folder-with-a-long-name" * 4)
    for name, word in (("ijepa-seed-0", "done"), ("ijepa-seed-1", "failed")):
        run = long / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text("name: ijepa\nrun: {steps: 9876543}\n")
        now = {"state": word, "job": "4711", "step": 1234567, "steps": 9876543, "left": 360_000.0, "saved": 1234000}
        (run / "state.json").write_text(json.dumps(now))
        figures = {"step": 1234567, "loss": 0.12345, "images_per_second": 12345.6, "rankme": 123.4}
        (run / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    head, *rows = lines("status", tmp_path)[:3]
    assert {"run", "state", "step", "loss"} <= set(head.split())
    assert [row.split()[0].rpartition("/")[2] for row in rows] == ["ijepa-seed-0", "ijepa-seed-1"]
    assert "1234567/9876543" in rows[0]
    assert "failed" in rows[1].split()
