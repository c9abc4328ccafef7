"""Does a probe keep its contract? Figures that repeat, all on what is plain to see and chance on noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo.contracts import Features, Probe
from sslzoo.testing.report import Check, Make, Skip, Violation, check, offers


def _plain(rows: int, seed: int, *, clear: bool) -> Features:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (rows,), generator=rng)
    x = torch.randn(rows, 16, generator=rng)
    x = x * 0.1 + torch.eye(4, 16)[y] * 3 if clear else x
    return Features(x, {"kind": y}, {"kind": 4})


made = offers(Probe, lambda make: make())


@check(made)
def figures(make: Make) -> str:
    """It returns finite numbers by name, TASK/FIGURE; and if TASK/correct, a truth for each test image."""
    found = make()(_plain(200, 0, clear=True), _plain(100, 1, clear=True), 0)
    shown = "200 and 100 images, task kind"
    for name, value in found.items():
        if isinstance(value, Tensor):
            if name != "kind/correct" or value.dtype != torch.bool or value.shape != (100,):
                came = f"{name!r}: {value.dtype} {list(value.shape)}"
                raise Violation("tensors named TASK/correct, bool [n] of the test images", came, shown)
        elif not name.startswith("kind/") or not math.isfinite(value):
            raise Violation("finite numbers named TASK/FIGURE", f"{name!r}: {value!r}", shown)
    if not found:
        raise Violation("at least one figure", "none", "200 and 100 images, task kind")
    return ", ".join(name.removeprefix("kind/") for name in found)


@check(figures)
def repeats(make: Make) -> None:
    """The same features and seed give the same figures, whatever the global generators hold."""
    told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = make()(_plain(200, 0, clear=False), _plain(100, 1, clear=False), 0)
        told.append({name: value.tolist() if isinstance(value, Tensor) else value for name, value in found.items()})
    if told[0] != told[1]:
        raise Violation("the same figures", "others under another global seed", "200 and 100 images")


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
    if not 10 < on_noise < 40:
        raise Violation("about 25 on noise", f"{on_noise:.1f}: does it see the test's labels?", "400 and 400 images")
    return f"{on_clear:.0f} on what is plain, {on_noise:.0f} on noise"


CHECKS: tuple[Check, ...] = (made, figures, repeats, reads)
