"""Odd environments and hostile names: told, or harmless; never a traceback, a wait for ever, or a file that is not ours."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import locale
import os
import random
import shutil
import stat
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from harness import Case, beyond, removed, tried

from sslzoo.cli import cli, main
from sslzoo.launch.work import work
from sslzoo.recipe.recipe import load
from sslzoo.run import processes
from sslzoo.run.stop import Stop

SETS = (
    "run.steps=2",
    "run.batch=4",
    "run.workers=0",
    "run.monitor=0",
    "run.device=cpu",
    "data.length=16",
    "evaluate=null",
)
ODD = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "1.5",
    "1e3",
    "two",
    "\u0664",
    "\u00b2",
    "9" * 4000,
    "1,2",
    "$(touch made)",
    "a\nb",
    "0x1",
    "nan",
)
ODD += ("4294967296", "+1", " 1", "True", "[a]", "/", "\udcff", "'", '"', "%s")
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")
LAUNCHER += (
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_RESTART_COUNT",
    "SSLZOO_PATIENCE",
)
OTHERS = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SSLZOO_PLUGINS",
    "COLUMNS",
    "LINES",
    "TERM",
    "NO_COLOR",
    "FORCE_COLOR",
)
OTHERS += (
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "TMPDIR",
    "LC_ALL",
    "LANG",
    "PYTHONIOENCODING",
    "SLURM_ARRAY_TASK_ID",
)
OTHERS += ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "NCCL_DEBUG", "TZ", "PATH", "USER", "EDITOR", "SOURCE_DATE_EPOCH")
OURS = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "7",
}
SRUN |= {"SLURM_STEP_NODELIST": "127.0.0.1"}


@functools.cache
def made() -> Path:
    """A finished run, for commands to look at; it lives as long as the session."""
    top = Path(tempfile.mkdtemp(prefix="sslzoo-fuzz-"))
    recipe, installed = load("tiny/ijepa", SETS, ())
    work(recipe, installed, top / "run", Stop(), evaluate=False)
    return top


_removed = removed(made)


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]):
    before = dict(os.environ)
    for name, value in changes.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        locale.setlocale(locale.LC_ALL, "C.UTF-8")


def launchers(rng: random.Random, folder: Path) -> Case:
    """What torchrun or srun left in the environment is incomplete, contradicts itself or holds no numbers."""
    said: dict[str, str | None] = dict.fromkeys(LAUNCHER) | dict(rng.choice([{}, OURS, SRUN, OURS | SRUN]))
    said["SSLZOO_PATIENCE"] = "1"  # the other process never comes
    for name in rng.sample(LAUNCHER, rng.choice([1, 1, 2, 3])):
        said[name] = (
            rng.choice([*ODD, None]) if name != "MASTER_ADDR" else rng.choice(["", "x y", "nowhere.invalid", None])
        )
    said["SSLZOO_PATIENCE"] = said["SSLZOO_PATIENCE"] if (said["SSLZOO_PATIENCE"] or "x")[:1] not in "x149" else "1"

    def join() -> None:
        with _environment(said), pytest.MonkeyPatch.context() as patched:
            patience = processes.patience
            patched.setattr(processes, "patience", lambda: min(patience(), timedelta(seconds=0.1)))
            world = processes.join("cpu")
        assert world.size == 1, world

    told = {name: value[:30] for name, value in said.items() if value is not None}
    return Case(f"environment {told}", call=join, codes=(2, 75))  # who does not come may come at another time


def surroundings(rng: random.Random, folder: Path) -> Case:
    """Odd values of everything else that libraries read, with a command that looks at a run or goes on with it."""
    said = {name: rng.choice([*ODD, None, "/dev/null/x", str(folder / "gone" / "x")]) for name in rng.sample(OTHERS, 3)}
    said = {name: value for name, value in said.items() if name != "PATH" or value != "-1"}
    shutil.copytree(made() / "run", run := folder / "run")
    words = rng.choice(
        [
            ("check", "tiny/ijepa"),
            ("status", str(folder)),
            ("logs", str(run)),
            ("plugins",),
            ("list", "recipes"),
            ("train", str(run), "--no-evaluate"),
            ("submit", "tiny/ijepa", "--cluster", "nobody", "--dry-run"),
        ]
    )

    def command() -> None:
        with _environment(said):
            cli.main(list(words), prog_name="sslzoo", standalone_mode=False)

    return Case(f"{words[0]} with {said}"[:300], call=command)


class _Broken(io.TextIOWrapper):
    """A standard output that can only be written for a while, or never, or that knows few letters."""

    def __init__(self, code: int | None, after: int, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")
        self.code, self.left = code, after
        self.elsewhere = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the case

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0 and self.code is not None:
            raise OSError(self.code, os.strerror(self.code))
        return super().write(text)

    def fileno(self) -> int:
        """One that a library may turn elsewhere, as rich does with a broken pipe's."""
        return self.elsewhere.fileno()


def outputs(rng: random.Random, folder: Path) -> Case:
    """Standard output is closed, full, a broken pipe, or of an old locale; a run that goes on is saved nevertheless."""
    shutil.copytree(made() / "run", run := folder / "run\u00e9\u2026")
    trains = rng.random() < 0.2
    words = (
        ("train", str(run), "--no-evaluate")
        if trains
        else rng.choice(
            [
                ("list", "masks"),
                ("show", "tiny/ijepa"),
                ("status", str(folder)),
                ("plugins",),
                ("logs", str(run)),
                ("--help",),
            ]
        )
    )
    if trains:
        shutil.rmtree(run / "checkpoints")
        for name in ("state.json", "attempts.jsonl", "metrics.jsonl"):
            (run / name).unlink()
    code, encoding = rng.choice(
        [
            (errno.EIO, "utf-8"),
            (errno.EPIPE, "utf-8"),
            (errno.ENOSPC, "utf-8"),
            (errno.EBADF, "utf-8"),
            (None, "ascii"),
            (None, "latin-1"),
        ]
    )

    def command() -> None:
        out = _Broken(code, rng.choice([0, 0, 30, 300]), encoding)
        try:
            with contextlib.redirect_stdout(out):
                main(list(words))
        except SystemExit as left:
            if left.code not in (0, None) and not (code == errno.EPIPE and left.code == 1):  # `| head` is no mistake
                raise

    def judge(kind: str, _: str) -> str:
        saved = list((run / "checkpoints").glob("*2.safetensors"))
        return "the run was not saved" if trains and not saved else ""

    what = encoding if code is None else errno.errorcode[code]
    return Case(f"{words[0]} to a {what} standard output", call=command, codes=(1, 2), judge=judge)


NAMES = (
    "$(touch made)",
    "`touch made`",
    "; touch made;",
    "a' ; touch made; '",
    'a" ; touch made; "',
    "a\nb",
    "a\0b",
    "a\rb",
    "\x1b[31mred",
    "x" * 300,
    "x" * 5000,
    "-x",
    "--out",
    "..",
    ".",
    "",
    " ",
    "../up",
    "a/../../up",
    "/",
    "/dev/null",
    "/dev/null/x",
    "/proc/self/mem",
    "~",
    "~nobody-here/x",
    "$HOME",
    "\u00e9\u4e2d\U0001f600",
    "\u202egnp.exe",
    "\udcff",
    "*",
    "%x%%s{0}",
    "[bold]x[/bold]",
    "[/]",
    "<script>alert(1)</script>",
    "a=b,c=d",
    "{a: 1}",
    "&a *a",
    "!!python/object:os.system",
    "null",
    "1e999",
    "CON",
    "a b\tc",
)
PLACES = ("name", "data", "data.root", "data.use", "masks.image", "views.image.size", "encoder.width", "run.save_every")
PLACES += ("losses.guess.target", "optim.groups", "targets", "evaluate.probes", "plugins", "run.device", "optim.lr")


def names(rng: random.Random, folder: Path) -> Case:
    """Hostile words wherever a command takes a name, a path or a value."""
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    kind = rng.choice([*_COMMANDS])
    words = [word.replace("\0", "") for word in _COMMANDS[kind](name, other, rng, folder)]  # no shell passes a NUL
    before = _listing(folder.parent, folder)

    def judge(_kind: str, said: str) -> str:
        new = _listing(folder.parent, folder) - before
        if new:
            return f"it made {sorted(new)} outside of where it works"
        raw = [letter for letter in said if letter in "\x1b\x00\x07"]
        return "it printed control characters of a name" if raw and "[3" in said and "\x1b[31mred" in said else ""

    return Case(f"{kind} {name[:40]!r} {other[:20]!r}", tuple(words), codes=(1, 2), judge=judge)


def _listing(top: Path, here: Path) -> set[str]:
    """Names beside a case's own folder, of cases not yet made."""
    return {path.name for path in top.iterdir() if not path.name.startswith(("names-", here.name, "runs", "masks.png"))}


def _below(name: str) -> str:
    """Not the whole file system: looking through that takes as long as it takes."""
    return name.replace("..", "up").lstrip("/") or "x"


def _profile(value: str, rng: random.Random, folder: Path) -> str:
    key = rng.choice(
        ["partition", "account", "time", "memory", "environment", "setup", "sbatch", "container", value[:50]]
    )
    tree = {"gpus_per_node": 1, key: rng.choice([value, {value: value}, [value], {"image": value}])}
    (folder / "profile.yaml").write_text(json.dumps(tree))
    return str(folder / "profile.yaml")


def _plugin(value: str, rng: random.Random, folder: Path) -> str:
    path = folder / "mine.py"
    odd = [
        b"",
        b"\xff\xfe",
        b"import nothing_of_this_name",
        b"raise SystemExit(3)",
        b"raise KeyboardInterrupt",
        b"x = (",
    ]
    odd += [b"1 / 0", b"\x00", b"from sslzoo import hookimpl\n@hookimpl\ndef sslzoo_maskz():\n    return {}\n"]
    odd += [b"from sslzoo import hookimpl\n@hookimpl\ndef sslzoo_masks():\n    return " + one for one in _RETURNS]
    path.write_bytes(rng.choice(odd))
    with contextlib.suppress(OSError, ValueError):
        path = path.rename(folder / f"{value}.py") if "/" not in value and value else path
    return str(path)


_RETURNS = (
    b"3",
    b"None",
    b"[]",
    b"{3: 4}",
    b"{'random': int}",
    b"{'': int}",
    b"{'a b': print}",
    b"{'x': 1}",
    b"{'[b]': dict}",
)
_COMMANDS = {
    "check": lambda a, b, rng, folder: ("check", a),
    "check name": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--set", f"name={json.dumps(a)}"),
    "set": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--set", f"{rng.choice(PLACES)}={a}"),
    "set data": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--set", f"data={{use: folder, root: {json.dumps(a)}}}"),
    "set place": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--set", f"{a}={b}"),
    "plugin": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--plugin", a),
    "plugin file": lambda a, b, rng, folder: ("check", "tiny/ijepa", "--plugin", _plugin(a, rng, folder)),
    "show": lambda a, b, rng, folder: ("show", rng.choice(["masks", "losses", b]), a),
    "list": lambda a, b, rng, folder: ("list", a),
    "status": lambda a, b, rng, folder: ("status", _below(a)),
    "logs": lambda a, b, rng, folder: ("logs", _below(a)),
    "cancel": lambda a, b, rng, folder: ("cancel", str(folder / a.replace("\0", "").strip("/."))),
    "eval": lambda a, b, rng, folder: ("eval", rng.choice([a, str(made() / "run")]), "--network", b),
    "resume": lambda a, b, rng, folder: ("resume", a),
    "doctor": lambda a, b, rng, folder: ("doctor", _below(a)),
    "compare": lambda a, b, rng, folder: ("compare", a, b),
    "submit": lambda a, b, rng, folder: ("submit", "tiny/ijepa", "--cluster", _profile(a, rng, folder), "--dry-run"),
    "cluster": lambda a, b, rng, folder: ("submit", "tiny/ijepa", "--cluster", a, "--dry-run"),
    "sweep": lambda a, b, rng, folder: ("submit", "tiny/ijepa", "--cluster", _profile("1h", rng, folder), "--dry-run", "--sweep", a),
    "then": lambda a, b, rng, folder: ("submit", "tiny/ijepa", "--cluster", _profile("1h", rng, folder), "--dry-run", "--then", a),
    "new": lambda a, b, rng, folder: ("new", rng.choice(["mask", a]), str(folder / b.replace("\0", "").strip("/.")[:200])),
    "verify": lambda a, b, rng, folder: ("verify", a),
    "draw": lambda a, b, rng, folder: ("draw", a, "--out", str(folder / "x.png")),
    "out": lambda a, b, rng, folder: ("train", str(made() / "run"), "--no-evaluate", "--out", str(folder / _below(a))),
    "command": lambda a, b, rng, folder: (a, b),
}  # fmt: skip


QUICK = {launchers: 60, surroundings: 8, outputs: 12, names: 50}
MANY = {launchers: 1500, surroundings: 600, outputs: 500, names: 3000}


def _tried(generator, seeds, tmp_path, monkeypatch):
    made()
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    told = tried(generator, seeds, here)
    assert not told.defects, str(told)
    for left in (here, tmp_path):
        assert not (left / "made").exists()
    assert not stat.S_IMODE(tmp_path.stat().st_mode) & 0o022


@pytest.mark.parametrize("generator", QUICK, ids=lambda one: one.__name__)
def test_odd_places(generator, tmp_path, monkeypatch):
    _tried(generator, range(QUICK[generator]), tmp_path, monkeypatch)


@pytest.mark.fuzz
@pytest.mark.parametrize("generator", MANY, ids=lambda one: one.__name__)
def test_many_odd_places(generator, tmp_path, monkeypatch):
    _tried(generator, beyond(QUICK[generator], MANY[generator]), tmp_path, monkeypatch)
