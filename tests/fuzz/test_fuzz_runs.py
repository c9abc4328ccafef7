"""Damaged run folders: a run resumes and ends bit for bit as the unbroken one, or tells by name what is wrong.

One tiny run is made once a session, unbroken and stopped on its way; each case damages a copy and tries a command on it.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import METHOD, Case, beyond, removed, tried
from matplotlib.figure import Figure
from safetensors.torch import load_file

from sslzoo.cli import cli
from sslzoo.launch.work import work
from sslzoo.recipe.recipe import load
from sslzoo.run.clock import TIMING
from sslzoo.run.stop import Stop, Stopped

RECIPE = (
    METHOD
    + """\
optim: {lr: 1.0e-3}
run: {steps: 6, batch: 4, precision: fp32, workers: 0, seed: 0, save_every: 2, keep: 2, log_every: 1, monitor: 0,
  device: cpu}
evaluate:
  train: {use: scenes, split: train, length: 40, size: 32}
  test: {use: scenes, split: test, length: 30, size: 32}
  view: {use: center, size: 32, resize: 32}
  probes: {knn: {use: knn, k: [3]}}
"""
)
STEPS, STOPPED = 6, 4
OWN = ("recipe.yaml", "data.jsonl", "state.json", "attempts.jsonl", "metrics.jsonl", "launch.json")
# Files of somebody else's, in places and with names that are near to sslzoo's own.
FOREIGN = ("notes.txt", "my.json.writing", "code/mine.py", "checkpoints/mine.safetensors", "checkpoints/mine.writing")
FOREIGN += ("checkpoints/step-best.safetensors", "eval/mine.csv", "nonfinite.txt", "recipe.mine.yaml")
WHOLE = ("empty", "garbage", "folder")  # nothing of the file can be read: it must be told by name


class _StopAt(Stop):
    """Asks to stop when the loop has looked so many times."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def __getattribute__(self, name: str):
        if name != "asked":
            return super().__getattribute__(name)
        self.left -= 1
        return "SIGTERM" if self.left <= 0 else ""


@functools.cache
def made() -> Path:
    """The folder of runs that cases copy: unbroken, stopped, and another run stopped at the same step."""
    top = Path(tempfile.mkdtemp(prefix="sslzoo-fuzz-"))
    (top / "recipe.yaml").write_text(RECIPE)
    _carry_out(top, "unbroken", Stop())
    shutil.copytree(top / "unbroken", top / "sibling")  # a run to be compared with, of another learning rate
    recipe = (top / "sibling" / "recipe.yaml").read_text()
    (top / "sibling" / "recipe.yaml").write_text(recipe.replace("lr: 0.001", "lr: 0.002"))
    _carry_out(top, "stopped", _StopAt(STOPPED))
    _carry_out(top, "other", _StopAt(STOPPED), "run.seed=1")
    return top


def _carry_out(top: Path, name: str, stop: Stop, *sets: str) -> None:
    recipe, installed = load(str(top / "recipe.yaml"), sets, ())
    try:
        work(recipe, installed, top / name, stop, evaluate=True)
    except Stopped:
        assert name != "unbroken"


_removed = removed(made)


def _lines(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def _weights(folder: Path):
    return load_file(folder / "checkpoints" / f"step-{STEPS:09d}.safetensors")


def _equal(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


# ---- what may befall a file -------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    known = [folder / name for name in OWN]
    return [path for path in known if path.exists()] + sorted((folder / "checkpoints").glob("step-0*"))


def _results(folder: Path) -> list[Path]:
    """What a run leaves beside its own files: figures, kept features, its page, its log."""
    found = [*(folder / "eval").rglob("*"), *(folder / "report").glob("*"), folder / "log.txt", folder / "lock"]
    return sorted(path for path in found if path.is_file() and path.name != "mine.csv")


def _features(folder: Path) -> list[Path]:
    """Features that an evaluation would not extract again."""
    return sorted((folder / "eval" / "features").glob("*"))


def _retyped(rng: random.Random, text: str) -> str:
    """One value of a line of JSON of another type or size; or a key gone, or one more."""
    lines = text.splitlines() if text.count("\n") < 12 and not text.startswith("{\n") else [text]
    at = rng.randrange(len(lines))
    row = json.loads(lines[at])
    key = rng.choice(sorted(row))
    odd = [None, True, -1, 0, 10**30, 1e308, "x", "", [], {}, [1, 2], {"a": 1}, float("nan"), float("inf"), -0.5]
    kind = rng.choice(["value", "value", "value", "gone", "more", "list"])
    if kind == "value":
        row[key] = rng.choice(odd)
    elif kind == "gone":
        del row[key]
    elif kind == "more":
        row["x" * rng.choice([1, 300])] = rng.choice(odd)
    lines[at] = json.dumps([row] if kind == "list" else row)
    return "\n".join(lines) + "\n"


def _befall(rng: random.Random, folder: Path, path: Path) -> tuple[str, str]:
    """Damages one file; returns what was done, for a person, and its kind."""
    content, other = path.read_bytes(), made() / "other" / path.relative_to(folder)
    kinds = ["empty", "garbage", "torn", "bytes", "gone", "folder", "dangling", "linked", "ring", "other", "swap"]
    kinds += ["twice", "tail", "zeros", "windows", "unreadable"]
    kinds += ["retyped"] * 6 if path.suffix in (".json", ".jsonl") else []
    kinds += ["renamed", "copied"] * 2 if path.parent.name == "checkpoints" else []
    kinds += ["renamed", "swap"] * 2 if "eval" in path.parts else []
    kind = rng.choice(kinds)
    if kind in ("folder", "dangling", "linked", "ring", "gone", "renamed"):
        aside = path.rename(folder.parent / f"aside-{path.name}")
        if kind == "folder":
            path.mkdir()
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "linked":
            path.symlink_to(aside)
        elif kind == "ring":
            path.symlink_to(path)
        elif kind == "renamed" and "eval" in path.parts:
            like = [one for one in path.parent.iterdir() if one.suffix == path.suffix]
            aside.rename(rng.choice(like or [path.with_name(f"7-teacher-00000000{path.suffix}")]))
        elif kind == "renamed":
            aside.rename(path.with_name(f"step-{rng.choice([0, 1, 5, 6, 7, 999_999_999]):09d}.safetensors"))
    elif kind == "copied":
        shutil.copy(path, path.with_name(f"step-{rng.choice([0, 1, 5, 7, 999_999_999]):09d}.safetensors"))
    elif kind == "swap":
        those = next(some for some in (_features(folder), _results(folder), _files(folder)) if path in some)
        with_ = rng.choice([one for one in those if one != path and one.is_file()])
        path.write_bytes(with_.read_bytes())
        with_.write_bytes(content)
        kind = f"swap with {with_.name}"
    elif kind == "unreadable":
        path.chmod(0)
    else:
        at = rng.randrange(len(content)) if content else 0
        path.write_bytes(
            {
                "empty": lambda: b"",
                "garbage": lambda: rng.randbytes(rng.choice([1, 50, 3000])),
                "torn": lambda: content[:at],
                "bytes": lambda: content[:at] + rng.randbytes(rng.choice([1, 4])) + content[at + 1 :],
                "other": lambda: other.read_bytes() if other.is_file() else b"",
                "twice": lambda: content + content,
                "tail": lambda: content + rng.choice([b"{", b"\x00" * 100, b"\xff\xfe", b'{"step": ']),
                "zeros": lambda: b"\x00" * len(content),
                "windows": lambda: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
                "retyped": lambda: _retyped(rng, content.decode()).encode(),
            }[kind]()
        )
    return f"{path.relative_to(folder)}: {kind}", kind


LEFT = ("recipe.yaml.77.writing", "state.json.77.writing", "attempts.jsonl.77.writing", "failure.txt", "lock")
LEFT += ("checkpoints/step-000000006.writing", "barren.txt", "unreadable.jsonl", "nonfinite/step-1-rank-0.txt")


def _copy(rng: random.Random, folder: Path, base: str) -> tuple[Path, dict[str, bytes]]:
    """A copy of a run, with files of somebody else's and some that a kill leaves; and what the former hold."""
    run = folder / "run"
    shutil.copytree(made() / base, run)
    foreign = {name: rng.randbytes(30) for name in FOREIGN}
    for name, content in foreign.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content)
    for name in rng.sample(LEFT, 2):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(rng.choice([b"", b"torn", b'{"pid": 77}\n']))
    return run, foreign


def _harmed(
    rng: random.Random, run: Path, files: Callable[[Path], list[Path]] | None = None
) -> tuple[str, dict[str, str]]:
    """One to three damages of different files, or a whole part gone; what was done, and the kind by file."""
    told, kinds = [], {}
    if rng.random() < 0.15:
        parts: list[list[str]] = [
            ["checkpoints"],
            ["checkpoints", "state.json"],
            ["state.json", "attempts.jsonl"],
            ["metrics.jsonl"],
        ]
        parts += [["checkpoints", "metrics.jsonl"], ["recipe.yaml", "data.jsonl"], ["checkpoints", *OWN[1:]]]
        parts = parts if files is None else [["eval"], ["report"], ["eval/features"], ["log.txt", "lock"]]
        for name in rng.choice(parts):
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
            told.append(f"{name}: gone")
            kinds[name] = "gone"
        kinds |= {name: "gone" for name in FOREIGN if Path(name).parts[0] in kinds}
        return "; ".join(told), kinds
    for path in rng.sample((files or _files)(run), rng.choice([1, 1, 1, 2, 3])):
        if path.is_file() and not path.is_symlink():
            what, kind = _befall(rng, run, path)
            told.append(what)
            kinds[str(path.relative_to(run))] = kind.split()[0]
            kinds |= {kind.split()[-1]: "swap"} if kind.startswith("swap") else {}
    return "; ".join(told), kinds


def _lost(run: Path, foreign: dict[str, bytes], kinds: dict[str, str]) -> str:
    """Which file of somebody else's is not what it was."""
    for name, content in foreign.items():
        if name not in kinds and not ((run / name).is_file() and (run / name).read_bytes() == content):
            return f"{name}, which sslzoo did not write, is gone or changed"
    return ""


def _contents(run: Path) -> dict[str, bytes]:
    names = ("recipe.yaml", "data.jsonl", "state.json", "metrics.jsonl", "launch.json")
    found = (
        [run / name for name in names] + [*(run / "checkpoints").glob("*.safetensors")] + [*(run / "eval").rglob("*")]
    )
    return {str(path.relative_to(run)): path.read_bytes() for path in found if path.is_file()}


# ---- commands, and what is right --------------------------------------------------------------------------------


def _undrawn(words: tuple[str, ...]) -> Callable[[], object]:
    """The command, without drawing its charts: that takes most of the time, and reads no file of the run."""

    def command() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Figure, "savefig", lambda _figure, out, **_: out.write("<svg></svg>"))
            cli.main(list(words), prog_name="sslzoo", standalone_mode=False)

    return command


def resumed(rng: random.Random, folder: Path) -> Case:
    """A stopped run is damaged and goes on: as if never stopped, or refused and left as it was, or told."""
    run, foreign = _copy(rng, folder, "stopped")
    told, kinds = _harmed(rng, run)
    before = _contents(run)
    recipe = rng.choice([str(made() / "recipe.yaml"), str(run)])
    words = ("resume", str(run)) if rng.random() < 0.2 else ("train", recipe, "--out", str(run), "--no-evaluate")

    def judge(kind: str, said: str) -> str:
        lost = _lost(run, foreign, kinds)
        if lost:
            return lost
        if kind == "clean":
            after = _contents(run)
            changed = [name for name, content in before.items() if after.get(name) != content]
            return f"it was refused, but changed {', '.join(changed)}" if changed else ""
        if not _equal(_weights(run), _weights(made() / "unbroken")):
            return "it does not end with the weights of the unbroken run"
        if "warning: " not in said and "steps 0 to" in said:
            return "it began at step 0 without a word"
        if _lines(run) != _lines(made() / "unbroken") and "metrics.jsonl" not in said:
            return "its metrics are not those of the unbroken run"
        bare = [name for name, one in kinds.items() if one in WHOLE and Path(name).name not in said]
        newest = f"checkpoints/step-{STOPPED:09d}.safetensors"
        bare = [name for name in bare if newest in kinds or not name.startswith("checkpoints/")]  # others are not read
        return f"nothing is said of {', '.join(bare)}" if bare else ""

    return Case(told, words, call=_undrawn(words), names=(str(run), "recipe.yaml"), judge=judge)


def looked_at(rng: random.Random, folder: Path) -> Case:
    """A run is damaged and looked at; a good one beside it is shown whatever befell it, and nothing is changed."""
    run, foreign = _copy(rng, folder, rng.choice(["unbroken", "stopped"]))
    shutil.copytree(made() / "unbroken", folder / "good")
    told, kinds = _harmed(rng, run)
    before = _contents(run)
    command = rng.choice(["status", "status", "logs", "doctor", "status one", "cancel", "submit", "draw"])
    words: tuple[str, ...] = {
        "status": ("status", str(folder), *rng.choice([(), ("--json",)])),
        "status one": ("status", str(run)),
        "logs": ("logs", str(run)),
        "doctor": ("doctor", rng.choice([str(run), str(folder)])),
        "cancel": ("cancel", rng.choice([str(run), str(folder)])),
        "submit": ("submit", str(run), "--cluster", "a100-80gb", "--gpus", "1", "--out", str(run), "--dry-run"),
        "draw": ("draw", str(run), "--images", "1", "--out", str(folder / "masks.png")),
    }[command]

    def judge(kind: str, said: str) -> str:
        changed = [name for name, content in before.items() if _contents(run).get(name) != content]
        if changed or _lost(run, foreign, kinds):
            return f"looking changed {', '.join(changed) or _lost(run, foreign, kinds)}"
        if command == "status" and (kind != "valid" or "good" not in said):
            return "status hides the good run beside it"
        if command == "status" and "--json" in words:
            rows = {Path(row["run"]).name: row for row in json.loads(said, parse_constant=_refuse)}
            if rows["good"]["state"] != "done":
                return "the good run is shown as another"
        bare = [name for name, one in kinds.items() if one in ("empty", "garbage") and Path(name).name not in said]
        bare = [name for name in bare if name in OWN and name != "data.jsonl" and command.startswith("status")]
        return f"nothing is said of {', '.join(bare)}" if bare else ""

    codes = (1, 2) if command == "doctor" else (2,)  # a run that is ill
    return Case(told, words, names=(str(run), str(folder), "recipe.yaml"), codes=codes, judge=judge)


def reported(rng: random.Random, folder: Path) -> Case:
    """Figures, pages or files of a finished run are damaged, and it is shown: true figures, or none and a word why."""
    run, foreign = _copy(rng, folder, "unbroken")
    told, kinds = _harmed(rng, run, _results) if rng.random() < 0.7 else _harmed(rng, run)
    before = _contents(run)
    words = ("report", str(run))
    if rng.random() < 0.3:
        words = (rng.choice(["compare", "report"]), str(made() / "sibling"), str(run), "--out", str(folder / "table"))

    def judge(kind: str, said: str) -> str:
        changed = [name for name, content in before.items() if _contents(run).get(name) != content]
        if changed or _lost(run, foreign, kinds):
            return f"showing changed {', '.join(changed) or _lost(run, foreign, kinds)}"
        page = run / "report"
        if kind == "valid" and words == ("report", str(run)):
            shown = (page / "figures.csv").read_text() if (page / "figures.csv").is_file() else ""
            if shown and shown != (made() / "unbroken" / "report" / "figures.csv").read_text():
                return "other figures than those of the unbroken run"
            if not shown and not any(name in said for name in kinds) and "checkpoint" not in said:
                return "no figures, and not a word"
        return ""

    return Case(told, words, call=_undrawn(words), names=(str(run), "recipe.yaml"), judge=judge)


def evaluated(rng: random.Random, folder: Path) -> Case:
    """A damaged run is probed: with the right weights and features, or refused."""
    run, foreign = _copy(rng, folder, "unbroken")
    for path in (run / "eval").glob("*-*"):
        path.unlink()
    told, kinds = _harmed(rng, run) if rng.random() < 0.5 else _harmed(rng, run, _features)
    before = {name: content for name, content in _contents(run).items() if "features" not in name}

    def judge(kind: str, said: str) -> str:
        changed = [name for name, content in before.items() if _contents(run).get(name) != content]
        if changed or _lost(run, foreign, kinds):
            return f"probing changed {', '.join(changed) or _lost(run, foreign, kinds)}"
        if kind == "valid":
            (path,) = (run / "eval").glob("*.json")
            had = json.loads(next((made() / "unbroken" / "eval").glob("*.json")).read_text())
            figures = json.loads(path.read_text())
            if figures["step"] == STEPS and figures["figures"][f"step {STEPS}"] != had["figures"]["trained"]:
                return "other figures than those of the unbroken run"
            if figures["step"] != STEPS and f"step-{figures['step']:09d}" not in said:
                return "figures of another step, and not a word"
        return ""

    return Case(told, ("eval", str(run)), names=(str(run), "recipe.yaml"), judge=judge)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


QUICK: dict[Callable, int] = {resumed: 8, looked_at: 40, evaluated: 6, reported: 3}
MANY: dict[Callable, int] = {resumed: 1200, looked_at: 1500, evaluated: 900, reported: 500}


@pytest.fixture(autouse=True)
def login_node(tmp_path_factory, monkeypatch):
    """A machine where jobs could be submitted, so that `submit --dry-run` looks at the run."""
    tools = tmp_path_factory.mktemp("tools")
    for name in ("sbatch", "srun"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)


@pytest.mark.parametrize("generator", QUICK, ids=lambda one: one.__name__)
def test_damaged_run_folders(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = tried(generator, range(QUICK[generator]), tmp_path)
    assert not told.defects, str(told)


@pytest.mark.fuzz
@pytest.mark.parametrize("generator", MANY, ids=lambda one: one.__name__)
def test_many_damaged_run_folders(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = tried(generator, beyond(QUICK[generator], MANY[generator]), tmp_path)
    assert not told.defects, str(told)
