"""Parts of one method in another: each cross trains, every weight and teacher of it, or is refused where it does not fit.

A cross is a tiny recipe, made very small, with a few sections of others; or two recipes side by side on one encoder.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness import Case, beyond, tried

from sslzoo import Signal, UserError, catalogue
from sslzoo.recipe import fit, recipe
from sslzoo.recipe.build import assemble, build, signals_of
from sslzoo.run import processes
from sslzoo.run.folder import Folder
from sslzoo.run.optim import trainable
from sslzoo.train import Watch, train

Tree = dict[str, Any]
QUICK, MANY = 16, 600
PARTS = ("views", "masks", "encoder", "predictor", "targets", "losses", "optim")
MOST = {"hidden": 32, "depth": 1, "prototypes": 16, "clusters": 16, "codes": 16, "guess": 16, "embed": 24, "layers": 2}
OTHERWISE = ({"norm": "image"}, {"norm": "none"}, {"layers": 1}, {"layers": 2, "read": "mlp"}, {"renorm": True})
OTHERWISE += ({"sees": "targets"}, {"project": True}, {"project": True, "center": 0.9})
OTHERWISE += ({"project": True, "project_patches": True, "layers": 0},)
OF_IMAGES, OF_PATCHES = ("invariance", "sigreg", "nt_xent", "assign"), ("cross_entropy", "soft_cross_entropy")
FILLED = ("linear", "patches: true")  # what reads hidden patches in the encoder's tokens
RUN = {"steps": 2, "batch": 8, "precision": "fp32", "workers": 0, "monitor": 0, "log_every": 1, "device": "cpu"}


@functools.cache
def methods() -> dict[str, Tree]:
    """Every tiny recipe, so small that a step takes milliseconds: images of 32 pixels, grids of 8 x 8."""
    known = recipe.names(catalogue())
    return {name[5:]: small(yaml.safe_load(known[name].read_text())) for name in sorted(known) if name[:5] == "tiny/"}


def small(tree: Tree) -> Tree:
    tree.pop("evaluate", None)
    tree |= {"name": "cross", "data": {"use": "scenes", "length": 16, "size": 32}, "run": dict(RUN)}
    for view in tree["views"].values():
        view["size"] //= 2
    tree["encoder"] |= {"width": 24, "depth": 2, "patch": 4} | ({"image": 32} if "image" in tree["encoder"] else {})
    for part in (tree["predictor"], *tree.get("targets", {}).values(), *tree["losses"].values()):
        part |= {key: min(most, part[key]) for key, most in MOST.items() if key in part}
        part |= {"width": 16 if part["use"] == "head" else 24} if "width" in part else {}
        part |= {"momentum": 0.9} if part.get("momentum") else {}
    tree["optim"] |= {"lr": 1e-3, "groups": {}}
    return tree


def crossed(rng: random.Random, tree: Tree) -> list[str]:
    """One to three sections of other methods."""
    told = []
    for part in rng.sample(PARTS, rng.choice((1, 2, 2, 3))):
        donor = rng.choice(sorted(methods()))
        if part in methods()[donor]:
            tree[part] = copy.deepcopy(methods()[donor][part])
        else:
            tree.pop(part, None)
        told.append(f"{part} of {donor}")
    return told


def joined(rng: random.Random, tree: Tree) -> list[str]:
    """Another method beside this one: predictors in `join`, the other's targets and losses under names of their own."""
    donor = rng.choice(sorted(methods()))
    other = copy.deepcopy(methods()[donor])
    tree["predictor"] = {"use": "join", "parts": {"a": tree["predictor"], "b": other["predictor"]}}
    tree["targets"] = tree.get("targets", {}) | {f"{n}-b": part for n, part in other.get("targets", {}).items()}
    for name, part in tree["targets"].items():
        part |= {"project": "b" if name.endswith("-b") else "a"} if part.get("project") else {}
    tree["losses"] |= {f"{name}-b": part for name, part in other["losses"].items()}
    if len(other["views"]) > len(tree["views"]) or rng.random() < 0.2:  # most losses of images compare two views
        tree["views"] = other["views"]
    masks = rng.choice([one["masks"] for one in methods().values() if "masks" in one])
    tree["masks"] = {"none yet": next(iter(masks.values()))}
    return [f"joined with {donor}"]


def spread(rng: random.Random, tree: Tree) -> None:
    """Masks on views that there are."""
    roles = {name: view.get("role", "both") for name, view in tree["views"].items()}
    groups = [name for name, role in roles.items() if role == "both"] or [n for n, r in roles.items() if r != "target"]
    sampler = next(iter(tree["masks"].values()))
    tree["masks"] = {name: dict(sampler) for name in (groups if rng.random() < 0.8 else groups[:1])}


def wired(rng: random.Random, tree: Tree, place: Path) -> None:
    """Losses that read signals which there are, of kinds and widths that agree; without any, one of moments stands in."""
    place.write_text(yaml.safe_dump(tree | {"losses": {"any": {"use": "mean", "predict": "encoder.context"}}}))
    with torch.device("meta"):
        method, _ = assemble(*recipe.load(str(place)))
    signals = signals_of(method.student, dict(method.targets.items()))
    guesses = [name for name in signals if name.startswith("predictor.")]
    rights = [name for name in signals if not name.startswith(("predictor.", "encoder."))]
    for name, loss in list(tree["losses"].items()):
        kind = (
            "image" if loss["use"] in OF_IMAGES else "patch" if loss["use"] in OF_PATCHES or "average" in loss else ""
        )
        able = [guess for guess in guesses if kind in ("", signals[guess].kind)]
        ids = loss["use"] == "cross_entropy"
        pairs = [(guess, right) for guess in able for right in rights if agree(signals[guess], signals[right], ids)]
        if loss["use"] == "mean" and rights:
            loss["predict"] = rng.choice(rights)
        elif "target" in loss and pairs:
            loss["predict"], loss["target"] = rng.choice(pairs)
        elif "target" not in loss and (able or loss["predict"] in signals):
            loss["predict"] = loss["predict"] if loss["predict"] in signals else rng.choice(able)
        else:
            tree["losses"][name] = {"use": "covariance", "predict": rng.choice(guesses)}


def agree(guess: Signal, right: Signal, ids: bool) -> bool:
    """Whether a loss may compare them; one of classes reads class ids, and no other does."""
    return (guess.kind, guess.width, ids) == (right.kind, right.width, right.ids)


def cross(rng: random.Random, folder: Path) -> Case:
    """A recipe that nobody wrote."""
    base = rng.choice(sorted(methods()))
    tree, place = copy.deepcopy(methods()[base]), folder / "cross.yaml"
    told = [base, *(joined if rng.random() < 0.3 else crossed)(rng, tree)]
    if tree.get("masks") and (set(tree["masks"]) - set(tree["views"]) or rng.random() < 0.3):
        spread(rng, tree)
    encoder, said = tree["encoder"], yaml.safe_dump(tree["predictor"])
    if encoder["use"] == "vit":
        fill = any(word in said for word in FILLED) if rng.random() < 0.9 else rng.random() < 0.5
        encoder |= {"hidden": "fill" if fill else "drop"}
        encoder |= rng.choice(({}, {}, {}, {"class_token": True}, {"registers": 2}, {"drop_path": 0.3}))
    for teacher in tree.get("targets", {}).values():
        if teacher["use"] == "ema" and rng.random() < 0.3:
            teacher |= rng.choice(OTHERWISE)
    if rng.random() < 0.1:
        tree["run"]["micro"] = 4
    if rng.random() < 0.9:
        try:
            wired(rng, tree, place)
        except UserError:
            told.append("as they were wired")
    place.write_text(yaml.safe_dump(tree, sort_keys=False))
    sections = tuple(f"{part}" for part in (*PARTS, "run.micro"))
    return Case("; ".join(told), call=lambda: learns(place, folder / "run"), names=sections, judge=judge)


def judge(kind: str, said: str) -> str:
    """A refusal is in words for a person."""
    return "a refusal that tells of code" if kind == "clean" and "failed in a rehearsed step" in said else ""


def learns(place: Path, out: Path) -> None:
    """Refuses before the run, or every weight that a gradient reaches has moved, and so has every teacher."""
    read, installed = recipe.load(str(place))
    flow = fit.check(read, installed)
    start, said = build(read, installed)[0].state_dict(), []
    try:
        method = train(read, installed, flow, out, processes.join("cpu"), Watch(said.append))
    except UserError as late:
        raise AssertionError(f"refused only in the run: {late}") from late
    assert all(math.isfinite(line["loss"]) for line in Folder(out).metrics.read())
    assert {f"warning: {remark}" for remark in flow.remarks} <= set(said)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, start[name])}
    for name, _ in trainable(method):
        assert name in flow.unused or moved & {name, f"student.{name}"}, f"{name} has not moved"
    for name, target in method.targets.items():
        for key, _ in target.encoder.named_parameters() if read.targets[name].get("momentum") else ():
            followed = f"targets.{name}.encoder.{key}" in moved
            assert followed == (f"student.encoder.{key}" in moved), f"{key} of {name} does not follow"
        read_by = {term.target for term in method.terms.values()}
        if getattr(target, "center", None) is not None and f"{name}.image" in read_by:
            assert f"targets.{name}.center.mean" in moved, f"the center of {name} has not moved"
        owners = {one.split(".")[0] for term in method.terms.values() for one in (term.predict, term.target) if one}
        assert (name in owners) != any(f"targets.{name}:" in remark for remark in flow.remarks)


def test_crosses_of_methods_train_or_are_refused(tmp_path):
    found = tried(cross, range(QUICK), tmp_path)
    assert not found.defects, found
    assert found.count["valid"] >= QUICK / 3, found


@pytest.mark.fuzz
def test_many_crosses_of_methods(tmp_path):
    found = tried(cross, beyond(QUICK, MANY), tmp_path)
    assert not found.defects, found
