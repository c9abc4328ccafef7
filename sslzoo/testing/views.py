"""Does a view keep its contract? Its size, its box, and chance that comes from the engine's seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.contracts import View
from sslzoo.rng import seed_shared
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere
from sslzoo.testing.report import Check, Make, Violation, check
from sslzoo.testing.scene import as_workers

LARGE = 30.0  # of normalized pixels: beyond it none lies but one that was never divided by 255


def _images(seed: int = 0) -> Iterator[tuple[str, Any]]:
    rng = torch.Generator().manual_seed(seed)
    for height, width in ((64, 64), (40, 90), (300, 200)):
        x = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng)
        yield f"a uint8 tensor of {height} x {width}", x
        yield f"a PIL image of {height} x {width}", Image.fromarray(x.permute(1, 2, 0).numpy())


def _seen(view: Any, image: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    seed_shared(seed)
    return view(image)


made = offers(View, lambda make: make())


@check(made)
def shapes(make: Make) -> None:
    """Pixels [3 H W] of its declared size, float32 or bytes, and a box of 4 numbers, from tensors and PIL images."""
    view = make()
    for where, image in _images():
        pixels, box = _seen(view, image)
        if tuple(pixels.shape) != (3, *view.size) or pixels.dtype not in (torch.float32, torch.uint8):
            wanted = f"[3 {view.size[0]} {view.size[1]}] float32 or uint8"
            raise Violation(wanted, f"{list(pixels.shape)} {pixels.dtype}", where)
        if pixels.dtype == torch.uint8 and not (hasattr(view, "mean") and hasattr(view, "std")):
            raise Violation("`mean` and `std` of a view that gives bytes", "none", where)
        if tuple(box.shape) != (4,) or not box.is_floating_point():
            raise Violation("a box [4]: top, left, height, width", f"{list(box.shape)} {box.dtype}", where)
        if not pixels.isfinite().all():
            raise Violation("finite pixels", "nan or inf", where)
        if pixels.dtype == torch.float32 and (most := pixels.abs().max().item()) > LARGE:
            came = f"{most:.4g}: are they from 0 to 255? Divide by 255, or give bytes with `mean` and `std`"
            raise Violation(f"normalized pixels, none beyond {LARGE}", came, where)


@check(shapes)
def boxes(make: Make) -> None:
    """The box lies in the image, as fractions of it."""
    view = make()
    for where, image in _images():
        for seed in range(8):
            top, left, height, width = _seen(view, image, seed)[1].tolist()
            inside = top >= -1e-6 and left >= -1e-6 and top + height <= 1 + 1e-6 and left + width <= 1 + 1e-6
            if not inside or height <= 0 or width <= 0:
                raise Violation("a box inside [0, 1]", f"{[top, left, height, width]}", f"{where}, seed {seed}")


@check(shapes)
def unchanged(make: Make) -> None:
    """The image itself stays as it was: it is read once for all views."""
    view = make()
    for where, image in _images():
        before = _plain(image).copy()
        _seen(view, image)
        if not np.array_equal(before, _plain(image)):
            raise Violation("the image as it was", "changed in place", where)


def _plain(image: Any) -> np.ndarray:
    return image.numpy() if isinstance(image, Tensor) else np.asarray(image)


@check(unchanged)
def repeats(make: Make) -> None:
    """The same seeds give the same view, whatever was seen before."""
    view = make()
    for where, image in _images():
        first = _seen(view, image, 7)
        _seen(view, image, 8)
        fresh = make()
        _seen(fresh, image, 8)
        for again in (_seen(view, image, 7), _seen(fresh, image, 7)):
            if not torch.equal(first[0], again[0]):
                came = "another: chance that is not torch's, random's or numpy's, or something kept between calls"
                raise Violation("the same view", came, f"{where}, seed 7")


@check(repeats)
def alike(make: Make) -> None:
    """A PIL image and a tensor of the same pixels give nearly the same view: data sets give either."""
    view, images = make(), list(_images())
    for (_, tensor), (where, image) in zip(images[::2], images[1::2], strict=True):
        one, other = (_seen(view, x, 7)[0].float() for x in (tensor, image))
        gap, spread = (one - other).abs().mean().item(), max(one.std().item(), other.std().item())
        if gap > 0.25 * spread + 1e-3:
            came = f"others: {gap:.3g} off in the mean, of a deviation of {spread:.3g}"
            raise Violation("the view that the tensor gives", came, f"{where}, seed 7")


@check(repeats)
def steady(make: Make) -> None:
    """It keeps nothing between calls: after many, the same seed gives the same view."""
    view, (where, image) = make(), next(_images())
    first = _seen(view, image, 7)[0]
    for time in range(2, 101):
        if not torch.equal(first, _seen(view, image, 7)[0]):
            raise Violation("the same view", f"another in call {time}", f"{where}, seed 7")


@check(repeats)
def looks(make: Make) -> None:
    """It shows the image that it is given: of another one of that size, another view."""
    view, images, others = make(), list(_images()), list(_images(1))
    for (where, image), (_, other) in zip(images, others, strict=True):
        if all(torch.equal(_seen(view, image, seed)[0], _seen(view, other, seed)[0]) for seed in range(8)):
            came = "the same: does it keep an image for each size?"
            raise Violation("other views of other images", came, f"{where}, and another")


@check(repeats)
def workers(make: Make) -> None:
    """The same views come from a worker process, forked after it was made."""
    view, (where, image) = make(), next(_images())
    wanted = _seen(view, image, 7)[0]
    found = as_workers(lambda _: _seen(view, image, 7)[0].numpy(), make)[0]
    if not torch.equal(wanted, torch.from_numpy(found)):
        raise Violation("the same view in a worker process", "another", f"{where}, seed 7")


@check(repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    view, given = make(), list(_images())[::2]
    seen = {f"view of {where}, seed {seed}": _seen(view, image, seed) for where, image in given for seed in range(6)}
    return {name: pixels for name, (pixels, _) in seen.items()} | {
        f"box of the {n}": box for n, (_, box) in seen.items()
    }


@check(boxes, repeats)
def cut(make: Make) -> None:
    """The box says where the view was cut: views of what lies low in the image have boxes that lie low."""
    view, ramp = make(), torch.linspace(0, 255, 96).to(torch.uint8)
    for axis, name in enumerate(("top", "left")):
        image = (ramp[:, None] if axis == 0 else ramp).expand(3, 96, 96).contiguous()
        found, said, widest = [], [], 0.1
        for seed in range(48):
            (one, box), (other, _) = _seen(view, image, seed), _seen(view, 255 - image, seed)
            one, other = one.float(), other.float()  # bytes, or normalized
            found.append((one.mean() - other.mean()).item())  # colors changed alike in both fall out
            widest = max(widest, (one.max() - one.min()).item())
            said.append((box[axis] + box[axis + 2] / 2).item() - 0.5)
        moved, claimed = torch.tensor(found), torch.tensor(said)
        if moved.std() < 0.1 * widest:
            continue  # it shows always the same
        agree = max(_together(moved, claimed), _together(moved.abs(), claimed.abs()))
        if agree < 0.5:
            came = f"{name} that goes with it by {agree:.2f} only"
            raise Violation(f"a box whose {name} goes with what is seen", came, "a ramp of 96 x 96, 48 seeds")


def _together(one: Tensor, other: Tensor) -> float:
    """Their correlation; 0 where one of them never changes."""
    if min(one.std(), other.std()) < 1e-6:
        return 0.0
    return torch.corrcoef(torch.stack([one, other]))[0, 1].item()


CHECKS: tuple[Check, ...] = (made, shapes, boxes, unchanged, repeats, looks, alike, steady, cut, workers, processes)
