"""Does a probe keep its contract? Figures that repeat, all on what is plain to see and chance on noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Features, Probe
from sslzoo.evaluate.drawn import drawn
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere
from sslzoo.testing.report import Check, Make, Skip, Violation, check


def _plain(rows: int, seed: int, *, clear: bool) -> Features:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (rows,), generator=rng)
    x = torch.randn(rows, 16, generator=rng)
    x = x * 0.1 + torch.eye(4, 16)[y] * 3 if clear else x
    x[:, -1] = 1.0  # a channel may be dead
    return drawn(x, y, 4)


def _plainly(found: Mapping[str, float | Tensor]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in found.items()}


_BLIND = "60 and 40 images, 4 classes"
made = offers(Probe, lambda make: make())


@check(made)
def figures(make: Make) -> str:
    """It returns finite numbers by name, TASK/FIGURE; and if TASK/correct, a truth for each test image."""
    found = make()(_plain(200, 0, clear=False), _plain(100, 1, clear=False), 0)
    shown = "200 and 100 images, task kind"
    for name, value in found.items():
        if isinstance(value, Tensor):
            shares = value.is_floating_point() and bool(((value >= 0) & (value <= 1)).all())
            if name != "kind/correct" or not (value.dtype == torch.bool or shares) or value.shape != (100,):
                came = f"{name!r}: {value.dtype} {list(value.shape)}"
                wanted = "tensors named TASK/correct, bool or shares of draws [n] of the test images"
                raise Violation(wanted, came, shown)
        elif not name.startswith("kind/") or not math.isfinite(value):
            raise Violation("finite numbers named TASK/FIGURE", f"{name!r}: {value!r}", shown)
    if not found:
        raise Violation("at least one figure", "none", shown)
    if {"kind/correct", "kind/top1"} <= set(found):
        share = float(torch.as_tensor(found["kind/correct"]).float().mean()) * 100
        if abs(share - float(found["kind/top1"])) > 1e-3:
            raise Violation(f"kind/top1 of {share:.2f}, the share of kind/correct", f"{found['kind/top1']:.2f}", shown)
    return ", ".join(name.removeprefix("kind/") for name in found)


@check(figures)
def repeats(make: Make) -> None:
    """The same features and seed give the same figures, whatever the global generators hold or it has seen before."""
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = make()(_plain(200, 0, clear=False), _plain(100, 1, clear=False), 0)
        answers.append(_plainly(found))
    if answers[0] != answers[1]:
        raise Violation("the same figures", "others under another global seed", "200 and 100 images")
    used = make()
    used(_plain(40, 2, clear=True), _plain(20, 3, clear=True), 0)
    if _plainly(used(_plain(200, 0, clear=False), _plain(100, 1, clear=False), 0)) != answers[0]:
        came = "others of a probe that has seen other features: one probe reads the trained and the untrained encoder"
        raise Violation("the same figures", came, "200 and 100 images, after 40 and 20 others")


@check(repeats)
def blind(make: Make) -> None:
    """What it answers does not depend on the test's labels, which are for the score alone."""
    train, test = _plain(60, 0, clear=False), _plain(40, 1, clear=False)
    turned = [drawn(test.x, (test.labels["kind"] + turn) % 4, 4) for turn in range(4)]
    found = [make()(train, one, 0) for one in turned]
    name = next((name for name in ("kind/correct", "kind/top1") if name in found[0]), None)
    if name is None:
        raise Skip("it gives neither correct nor top1")
    right = sum(torch.as_tensor(one[name]).double() for one in found) / (1 if name == "kind/correct" else 100)
    if (most := float(torch.as_tensor(right).max())) > 1.0001:  # an answer is right under one of the four, or none
        came = f"{most:.2f}: answers that follow the test's labels"
        raise Violation(f"{name} of 1 at most, summed over four turns of the test's labels", came, _BLIND)


@check(figures)
def reads(make: Make) -> str:
    """It tells classes that are plain to see, and only chance on noise."""
    clear = make()(_plain(400, 0, clear=True), _plain(400, 1, clear=True), 0)
    if "kind/top1" not in clear:
        raise Skip("it gives no top1")
    noise = make()(_plain(400, 0, clear=False), _plain(400, 1, clear=False), 0)
    on_clear, on_noise = float(clear["kind/top1"]), float(noise["kind/top1"])
    if on_clear < 95:
        raise Violation("at least 95 of four classes far apart", f"{on_clear:.1f}", "400 and 400 images")
    if on_noise >= 40:
        raise Violation("about 25 on noise", f"{on_noise:.1f}: does it see the test's labels?", "400 and 400 images")
    return f"{on_clear:.0f} on what is plain, {on_noise:.0f} on noise"


@check(figures)
def unchanged(make: Make) -> None:
    """Features, labels and the encoder stay as they were: other probes read them too."""
    given = _plain(200, 0, clear=False), _plain(100, 1, clear=False)
    make()(*given, 0)
    for which, after, before in zip(
        ("train", "test"), given, (_plain(200, 0, clear=False), _plain(100, 1, clear=False)), strict=True
    ):
        if not torch.equal(after.x, before.x) or not torch.equal(after.labels["kind"], before.labels["kind"]):
            raise Violation(f"{which} features and labels as they were", "changed in place", "200 and 100 images")
        theirs = [one.images.encoder.state_dict() for one in (after, before) if one.images is not None]
        if wrong := [name for name in theirs[0] if not torch.equal(theirs[0][name], theirs[1][name])]:
            raise Violation("the encoder as it was", f"{wrong[0]} changed: train a copy", "200 and 100 images")


@check(figures)
def alone(make: Make) -> None:
    """What it says of a test image does not depend on the other test images."""
    train, test = _plain(200, 0, clear=False), _plain(100, 1, clear=False)
    whole = make()(train, test, 0).get("kind/correct")
    if not isinstance(whole, Tensor):
        raise Skip("it gives no correct")
    few = slice(30, 60)
    part = make()(train, drawn(test.x[few], test.labels["kind"][few], 4), 0)["kind/correct"]
    if not torch.equal(whole[30:60], torch.as_tensor(part)):
        raise Violation(
            "the same answers",
            f"{int((whole[30:60] != part).sum())} others of 30",
            "30 of 100 test images, asked alone",
        )


@check(figures)
def tasks(make: Make) -> None:
    """Each task is read by itself: beside another one its figures are the same."""
    train, test = _plain(200, 0, clear=False), _plain(100, 1, clear=False)
    single = _plainly(make()(train, test, 0))
    other = {"half": 2}
    both = [
        replace(one, tasks=other | {"kind": 4}, labels={"half": (one.x[:, 0] > 0).long(), **one.labels})
        for one in (train, test)
    ]
    found = _plainly(make()(*both, 0))
    shown = "200 and 100 images, tasks half and kind"
    if wrong := [name for name, value in single.items() if found.get(name) != value]:
        raise Violation(f"{wrong[0]} as without the task half", f"{found.get(wrong[0])}"[:80], shown)
    if not any(name.startswith("half/") for name in found):
        raise Violation("figures of both tasks", ", ".join(found), shown)


@check(figures)
def few(make: Make) -> None:
    """Few images, classes without an image, and features that are all alike are no error, and no nan."""
    train, test = _plain(4, 0, clear=True), _plain(5, 1, clear=True)
    train.labels["kind"].clamp_(max=2)
    _finite(make, train, test, "4 and 5 images, none of class 3 among the first")
    train, test = (drawn(torch.ones(one.x.shape), one.labels["kind"], 4) for one in (train, test))
    _finite(make, train, test, "4 and 5 images, features all 1, as of an encoder that collapsed")
    test.labels["kind"].fill_(2)
    _finite(make, train, test, "4 and 5 images, the latter all of class 2")


def _finite(make: Make, train: Features, test: Features, shown: str) -> None:
    for name, value in make()(train, test, 0).items():
        if not isinstance(value, Tensor) and not math.isfinite(value):
            raise Violation("finite figures", f"{name}: {value!r}", shown)


@check(reads)
def absent(make: Make) -> None:
    """A class without a training image does not shift the others: those are told as before."""
    parts = (_plain(270, 0, clear=True), _plain(100, 1, clear=True))
    train, test = (drawn(x.x[keep], x.labels["kind"][keep], 4) for x in parts for keep in [x.labels["kind"] != 1])
    found = make()(train, test, 0).get("kind/top1")
    if found is None:
        raise Skip("it gives no top1")
    if float(found) < 95:
        came = f"{float(found):.1f}: are classes numbered by those that were met?"
        raise Violation("at least 95 of three classes far apart", came, "200 and 75 images, none of class 1")


@check(repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    found = make()(_plain(60, 0, clear=False), _plain(40, 1, clear=False), 0)
    return {name: torch.as_tensor(value) for name, value in found.items()}


CHECKS: tuple[Check, ...] = (made, figures, repeats, reads, blind, unchanged, alone, tasks, few, absent, processes)
