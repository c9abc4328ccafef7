"""Damaged recipes: each is told, with its place, or is a recipe after all; none ends in a traceback or never."""

from __future__ import annotations

import copy
import random

import pytest
import yaml
from harness import METHOD, Case, beyond, tried

GOOD = (
    METHOD
    + """\
optim:
  lr: {warmup: {epochs: 1, from: 1.0e-4, to: 1.0e-3, then: {cosine: 1.0e-5}}}
  weight_decay: 0.05
  betas: [0.9, 0.95]
  clip: 1.0
  groups: {"*.bias": {weight_decay: 0}}
run: {steps: 2, batch: 4, precision: fp32, workers: 0, seed: 0, save_every: 1 epochs, monitor: 4, device: cpu}
evaluate:
  train: {use: scenes, split: train, length: 16, size: 32}
  test: {use: scenes, split: test, length: 8, size: 32}
  view: {use: center, size: 32, resize: 32}
  probes:
    knn: {use: knn, k: [3]}
"""
)
TREE = yaml.safe_load(GOOD)
NUMBERS = (-1, 0, 1, 2, -0.5, 0.5, 1.5, 1e9, -1e9, 1e300, 10**12, 10**40, float("inf"), float("-inf"), float("nan"))
WORDS = (
    "",
    " ",
    "x",
    "true",
    "null",
    "../x",
    "a/b",
    "/tmp",
    "$HOME",
    "${NOPE}",
    "~",
    "~nobody-here/x",
    "a\0b",
    "é" * 40,
)
WORDS += ("x" * 300, "[bold]", "$(touch made)", "`touch made`", "a\nb", "predictor.patch", "1 epochs", "2020-01-01")
OTHERS = (
    [],
    {},
    None,
    True,
    False,
    [1],
    [[1, 2], [3]],
    {"use": "x"},
    {"use": ["x"]},
    {"use": {"a": 1}},
    {"a": {"b": {}}},
)
RAW = (
    "\xff\xfe\x00",
    "\t- x",
    "{[}",
    "!!python/object/apply:os.system [true]",
    "!mine x",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!int x",
    "2020-01-01",
    "2020-13-45 99:99",
    "&a [*a, *a]",
    "*nothing",
    "<<: {a: 1}",
    "? [a, b]\n: c",
    "1" * 5000,
    "0x" + "f" * 5000,
    "1e9999",
    ".inf",
    ".nan",
    "1_000",
    "0777",
    "1:30:00",
    "[" * 2000,
    "{a: " * 200 + "1" + "}" * 200,
    "|\n" + "x" * 1000,
    "\x07",
    "--- a\n--- b",
    "@x",
    "%x",
    "=",
)
# Places that must be refused with these values: accepting one of them would be silent.
REFUSED = {
    "optim.lr": (-1, True, float("nan"), {"warmup": {"steps": 9, "from": 0, "to": 1}}, {"linear": [1e-3, -1]}),
    "optim.weight_decay": (-0.1, float("inf"), "[1"),
    "optim.betas": ([0.9, 1.0], [-0.1, 0.9], [True, 0.9], [0.9]),
    "optim.clip": (-1, 0, True),
    "optim.eps": (-1e-8, float("nan"), 0, 1e-320, 1e30),
    "optim.momentum": (1.0, -0.1, True),
    "optim.groups": ({"*.nothing": {"lr": 0}}, {"*.bias": {"lrr": 0}}, {"*.bias": {"lr": -1}}, {"*.bias": 3}),
    "run.steps": (0, -1, True, 1.5, 10**12),
    "run.batch": (0, True, 10**9),
    "run.workers": (10**6, -1, True),
    "run.save_every": (-1, "-1 epochs", float("inf"), ".", {"epochs": float("nan")}, {"years": 1}),
    "run.monitor": (-1, 10**9),
    "run.epochs": (0, -1),
    "views.image.count": (0, 10**6, True),
    "views.image.size": (0, True, -32, 33),
    "views.image.scale": ([0, 1], [0.5, 0.3], [0.3, float("inf")], [True, 1]),
    "encoder.width": (0, -24, 10**9, True),
    "encoder.depth": (0, -1, 10**6, True),
    "encoder.heads": (0, 10**6),
    "encoder.registers": (-1, 10**6, True),
    "encoder.patch": (0, -8, 10**6),
    "encoder.init": (-1, float("nan")),
    "predictor.width": (0, 10**9, True),
    "predictor.depth": (0, 10**6, True),
    "predictor.heads": (0, -1),
    "predictor.init": (-1,),
    "targets.teacher.momentum": (1.5, -0.1, True, {"linear": [0.9, 1.1]}),
    "targets.teacher.layers": (-1, 5, True),
    "losses.guess.target": ("predictor.patch", "teacher", "teacher.image", "nobody.patch", None),
    "losses.guess.beta": (-1, True, float("inf"), 1e9, 1e-300),
    "losses.guess.weight": (1e-300, 1e300),
    "masks.image.targets": (0, 10**6, True),
    "masks.image.min_keep": (0, 500),
    "masks.image.keep": (0, 1.5, True),
    "masks.image.multiple": (0, 1000),
    "masks.image.target_aspect": ([100, 1000], [20, 30], [1.5], [1, 2, 3], [0, 1], [2, 1]),
    "masks.image.target_scale": ([1e-9, 1e-9], [1e-300, 0.2], [0.2], [0.2, 0.1]),
    "views.image.ratio": ([1e-9, 1e9], [1], [4, 3]),
    "name": ("../x", "a/b", "", "x" * 300, "a\0b", None, [], {"a": 1}, True, "..", "-x", "$(touch made)"),
    "evaluate": ("x", [], 3, {}, {"train": None}),
    "evaluate.layers": (-1, 10**6, True),
    "evaluate.probes": ({}, None, {"knn": None}),
    "evaluate.view.size": (0, -1),
}
SHOWN_LATE = {
    "views.image.size",
    "evaluate.view.size",
    "evaluate",
    "evaluate.probes",
}  # told at a place around or in it


def _places(tree, place=()):
    for key, value in tree.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from _places(value, (*place, key))


def _around(tree, place):
    for key in place[:-1]:
        tree = tree[key]
    return tree


def _write(folder, text):
    path = folder / "r.yaml"
    path.write_bytes(text.encode("latin-1") if "\xff" in text else text.encode("utf-8", "surrogatepass"))
    return str(path)


def _check(folder, tree, told, **more):
    text = tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False)
    return Case(told, ("check", _write(folder, text)), **more)


def _misspelt(rng, word):
    i = rng.randrange(len(word))
    return rng.choice(
        [word[:i] + word[i + 1 :], word[:i] + "x" + word[i:], word[:i] + word[i] + word[i:], word.upper()]
    )


def mutated(rng: random.Random, folder) -> Case:
    """One to three changes of the tree: a key gone, renamed, moved, of another type, extreme."""
    tree, told = copy.deepcopy(TREE), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(tree))
        place = rng.choice(places)
        here, name = _around(tree, place), place[-1]
        kind = rng.choice(["gone", "renamed", "moved", "number", "word", "other", "wrapped", "copied"])
        told.append(f"{kind} {'.'.join(place)}")
        if kind == "gone":
            del here[name]
        elif kind == "renamed":
            here[_misspelt(rng, name)] = here.pop(name)
        elif kind == "moved":
            value = here.pop(name)
            _around(tree, rng.choice(list(_places(tree))))[name] = value
        elif kind == "wrapped":
            here[name] = rng.choice([[here[name]], {name: here[name]}, str(here[name])])
        elif kind == "copied":
            here[name] = copy.deepcopy(_around(tree, other := rng.choice(places)).get(other[-1]))
        else:
            here[name] = copy.deepcopy(rng.choice({"number": NUMBERS, "word": WORDS, "other": OTHERS}[kind]))
    return _check(folder, tree, "; ".join(told))


def refused(rng: random.Random, folder) -> Case:
    """A number or word without sense, at a place where it must be told."""
    place = rng.choice(sorted(REFUSED))
    value = rng.choice(REFUSED[place])
    tree = copy.deepcopy(TREE)
    _around(tree, place.split("."))[place.rpartition(".")[2]] = value
    if place == "run.epochs":
        del tree["run"]["steps"]
    names = (place.split(".")[0],) if place in SHOWN_LATE else (place.rpartition(".")[0] or place,)
    return _check(folder, tree, f"{place} is {value!r}"[:200], wrong=True, names=names)


def text(rng: random.Random, folder) -> Case:
    """Tricks of YAML and bytes: put for a value, after a line, or for a part of the text."""
    lines = GOOD.splitlines()
    number = rng.randrange(len(lines))
    raw = rng.choice(RAW)
    kind = rng.choice(["value", "line", "section", "cut", "swap", "bomb"])
    if kind == "value":
        key = lines[number].split(":")[0]
        lines[number] = f"{key}: {raw}"
    elif kind == "line":
        lines.insert(number, raw)
    elif kind == "section":
        lines.append(f"{rng.choice(['extra', 'evaluate', 'masks', 'plugins'])}: {raw}")
    elif kind == "cut":
        whole = "\n".join(lines)
        lines = [whole[: rng.randrange(len(whole))]]
    elif kind == "swap":
        letters = list("\n".join(lines))
        for _ in range(3):
            letters[rng.randrange(len(letters))] = rng.choice("{}[]:,&*!|>%@#'\"\t\n \\-")
        lines = ["".join(letters)]
    else:
        width, depth = rng.choice([(9, 9), (2, 40), (100, 4)])
        lines.append("bomb0: &b0 [x]")
        lines += [f"bomb{n + 1}: &b{n + 1} [{', '.join([f'*b{n}'] * width)}]" for n in range(depth)]
    return _check(folder, "\n".join(lines) + "\n", f"{kind} {raw[:30]!r} at line {number + 1}")


def sets(rng: random.Random, folder) -> Case:
    """Changes from the command line, hostile ones among them, to `check` and `show`."""
    places = [".".join(place) for place in _places(TREE)] + [
        "",
        ".",
        "a..b",
        "run",
        "name.x",
        "views.image.scale.0",
        "x" * 300,
    ]
    words = [rng.choice(["check", "show"]), _write(folder, GOOD)]
    for _ in range(rng.choice([1, 1, 2])):
        value = rng.choice([*map(str, NUMBERS), *WORDS, *RAW, "{use: random}", "[1, 2]", "{}", "null"]).replace(
            "\0", ""
        )
        words += ["--set", rng.choice([f"{rng.choice(places)}={value}", rng.choice(places), f"={value}", value])]
    return Case(f"--set {words[3::2]}"[:200], tuple(words))


def names(rng: random.Random, folder) -> Case:
    """Hostile names where a command takes the name of a recipe or part."""
    name = rng.choice(
        [*WORDS, "tiny/ijpea", ".", "..", "/", "/etc/passwd", "/dev/null", "-", "tiny/", "\udcff"]
    ).replace("\0", "")
    words = rng.choice(
        [
            ("check", name),
            ("show", name),
            ("show", "masks", name),
            ("show", name, "ring"),
            ("verify", name),
            ("list", name),
        ]
    )
    return Case(f"the name {name[:40]!r}", words, wrong=True)


QUICK, MANY = 16, 1500


@pytest.mark.parametrize(
    "seeds", [range(QUICK), pytest.param(beyond(QUICK, MANY), marks=pytest.mark.fuzz)], ids=["quick", "many"]
)
@pytest.mark.parametrize("generator", [mutated, refused, text, sets, names], ids=lambda one: one.__name__)
def test_damaged_recipes_are_told(generator, seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOPE", raising=False)
    told = tried(generator, seeds, tmp_path)
    assert not told.defects, str(told)
    assert not (tmp_path / "made").exists()


def test_what_passes_check_trains(tmp_path, monkeypatch):
    """A sample of mutated recipes that `check` calls right takes its two steps, or is told by its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    valid = tried(mutated, range(1000, 1012), tmp_path / "made").valid[:3]
    assert valid

    def trained(_rng, folder):
        _, case = valid[int(folder.name.rpartition("-")[2])]
        short = ("--set", "run.steps=2", "--set", "run.batch=4", "--set", "run.device=cpu", "--set", "run.workers=0")
        return Case(case.told, ("train", case.words[1], *short, "--no-evaluate", "--out", str(folder / "run")))

    told = tried(trained, range(len(valid)), tmp_path)
    assert not told.defects, str(told)
