"""Does an encoder keep its contract? Hidden patches stay hidden, indices follow the grid, other sizes work."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Encoder, Grid, Patches, Tokens, true_entries
from sslzoo.testing.first import offers
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import as_moved, elsewhere, equal, kept, restored, seeded, size_of, steady, stirred, unreached

SIDES = (32, 28, 64, 48, 96, 112, 56, 224, 16, 40)


def _part(make: Make) -> Any:
    with seeded():
        return stirred(make().eval())


def _size(part: Any) -> tuple[tuple[int, int], Grid]:
    """The smallest image it takes whose grid has at least 2 x 2 patches."""
    for side in sorted(SIDES):
        try:
            grid = part.grid((side, side))
        except ValueError:
            continue
        if min(grid) >= 2:
            return (side, side), grid
    raise Violation("a grid of at least 2 x 2 for some image", f"none for sides {sorted(SIDES)}", "grid((side, side))")


def _pixels(size: tuple[int, int], rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(1))


def _some(grid: Grid, share: float = 0.5, rows: int = 2) -> Patches:
    whole = grid[0] * grid[1]
    rng = torch.Generator().manual_seed(2)
    kept = max(1, int(whole * share))
    return Patches(torch.stack([torch.randperm(whole, generator=rng)[:kept] for _ in range(rows)]))


@torch.no_grad()
def _said(part: Any, pixels: Tensor, context: Patches | None = None, layers: int = 0, **how: Any) -> Tokens:
    return part(pixels, context, layers, **how)


def _takes_masks(part: Any) -> tuple[tuple[int, int], Grid]:
    size, grid = _size(part)
    try:
        _said(part, _pixels(size), _some(grid))
    except (ValueError, NotImplementedError) as error:  # refused; any other error is a finding
        raise Skip(f"takes no masks: {error}") from error
    return size, grid


def _parts(said: Tokens) -> dict[str, Tensor]:
    return {"patches": said.patches, "summary": said.summary}


made = offers(Encoder, _part, module=True)


@check(made)
def returns(make: Make) -> str:
    """All patches without a context: [s N d], a summary [s d], the grid it said it has."""
    part = _part(make)
    size, grid = _size(part)
    said, where = _said(part, _pixels(size)), f"2 images of {size[0]} x {size[1]}"
    if not isinstance(said, Tokens):
        raise Violation("sslzoo.Tokens", type(said).__name__, where)
    whole = grid[0] * grid[1]
    for name, x, shape in (("patches", said.patches, (2, whole, part.width)), ("index", said.index, (2, whole))):
        if tuple(x.shape) != shape:
            raise Violation(f"{name} {list(shape)}", str(list(x.shape)), where)
    if said.summary.ndim != 2 or len(said.summary) != 2 or said.grid != grid:
        raise Violation(f"summary [2 d], grid {grid}", f"{list(said.summary.shape)}, {said.grid}", where)
    if not torch.equal(said.index, torch.arange(whole).expand(2, -1)):
        raise Violation(f"index 0 to {whole - 1} without a context", str(said.index[0].tolist()), where)
    return f"grid {grid[0]} x {grid[1]} of {size[0]} x {size[1]} pixels; {size_of(part)}"


@check(returns)
def seen(make: Make) -> None:
    """Of a context it returns the patches it was given, with their indices (or all patches, hidden ones filled)."""
    part = _part(make)
    size, grid = _takes_masks(part)
    context = _some(grid)
    said = _said(part, _pixels(size), context)
    every = torch.arange(grid[0] * grid[1]).expand(2, -1)
    if not (torch.equal(said.index, context.index) or torch.equal(said.index, every)):
        raise Violation("index: the context's, or all patches", str(said.index[0].tolist()), f"grid {grid}, half seen")
    if tuple(said.patches.shape) != (*said.index.shape, part.width):
        came = str(list(said.patches.shape))
        raise Violation(f"patches {[*said.index.shape, part.width]}", came, f"grid {grid}, half seen")


@check(returns, seen)
def hidden(make: Make) -> None:
    """What is hidden has no influence: other pixels there, the same tokens."""
    part = _part(make)
    size, grid = _takes_masks(part)
    pixels, context = _pixels(size), _some(grid)
    once = _said(part, pixels, context)
    high, wide = size[0] // grid[0], size[1] // grid[1]
    changed = pixels.clone()
    for row in range(2):
        for index in set(range(grid[0] * grid[1])) - set(context.index[row].tolist()):
            top, left = index // grid[1] * high, index % grid[1] * wide
            changed[row, :, top : top + high, left : left + wide] += 5.0
    again = _said(part, changed, context)
    found = equal(_parts(once), _parts(again), 1e-5)
    if found:
        raise Violation(
            "the same tokens when hidden pixels change", found, f"grid {grid}, {context.index.shape[1]} seen"
        )


@check(returns, seen)
def order(make: Make) -> None:
    """The order of a context's patches does not matter: a token goes with its index."""
    part = _part(make)
    size, grid = _takes_masks(part)
    pixels, context = _pixels(size), _some(grid)
    once, turned = _said(part, pixels, context), _said(part, pixels, Patches(context.index.flip(1)))
    keeps_order = once.patches.shape[1] == context.index.shape[1]  # else it returns all patches, in the grid's order
    there = turned.patches.flip(1) if keeps_order else turned.patches
    found = equal({"patches": once.patches}, {"patches": there}, 1e-4)
    if found:
        raise Violation("the same tokens in the other order", found, f"grid {grid}, context reversed")


@check(returns)
def alone(make: Make) -> None:
    """An image's tokens do not depend on the other images, in eval mode."""
    part = _part(make)
    size, _ = _size(part)
    pixels = _pixels(size, 5)
    whole = _parts(_said(part, pixels))
    for rows in (slice(0, 1), slice(4, 5), slice(0, 2), slice(2, 5)):
        found = equal(_parts(_said(part, pixels[rows])), {name: x[rows] for name, x in whole.items()}, 1e-4)
        if found:
            came = f"{found} among {rows.stop - rows.start}"
            raise Violation("the tokens an image gets among 5", came, f"image {rows.start} of 5")


@check(returns)
def positions(make: Make) -> None:
    """Positions matter: moving the patches of an image gives other tokens than moving its tokens."""
    part = _part(make)
    size, grid = _size(part)
    pixels = _pixels(size)
    high = size[0] // grid[0]
    rolled = pixels.roll(high, 2)
    once, moved = _said(part, pixels), _said(part, rolled)
    if once.patches.shape[1] != grid[0] * grid[1]:
        raise Skip("gives other tokens than patches")
    back = moved.patches.unflatten(1, grid).roll(-1, 1).flatten(1, 2)
    if not equal({"patches": once.patches}, {"patches": back}, 1e-5):
        raise Violation("tokens that know their position", "the same after patches moved down a row", f"grid {grid}")


@check(returns)
def sizes(make: Make) -> str:
    """Other sizes, oblong ones too, are served or refused with a ValueError."""
    part = _part(make)
    size, grid = _size(part)
    high, wide = size[0] // grid[0], size[1] // grid[1]
    served = []
    for rows, columns in ((grid[0] * 2, grid[1] * 2), (grid[0], grid[1] + 1), (grid[0] + 2, grid[1])):
        other = (rows * high, columns * wide)
        try:
            found, said = part.grid(other), _said(part, _pixels(other))
        except ValueError:
            continue
        if said.grid != found or said.patches.shape[1] != found[0] * found[1]:
            came = f"{said.patches.shape[1]} tokens, grid {said.grid}"
            raise Violation(f"{found[0] * found[1]} tokens, grid {found}", came, f"images of {other[0]} x {other[1]}")
        served.append(f"{found[0]} x {found[1]}")
    return f"grids served besides: {', '.join(served) or 'none'}"


@check(returns)
def layered(make: Make) -> None:
    """Asked for n layers, it gives the outputs of its last n blocks (or what MLPs add); the tokens do not change."""
    part = _part(make)
    size, _ = _size(part)
    ways: list[dict[str, Any]] = [{}, {"mlp": True}] if getattr(part, "gives_mlp", False) else [{}]
    for count, way in product((1, min(2, len(part.blocks))), ways):
        asked = ", ".join([f"layers={count}", *way])
        said = _said(part, _pixels(size), None, count, **way)
        if len(said.layers) != count or any(layer.shape != said.patches.shape for layer in said.layers):
            came = f"{len(said.layers)} of {[list(layer.shape) for layer in said.layers]}"
            raise Violation(f"{count} layers {list(said.patches.shape)}", came, asked)
        found = equal({"patches": said.patches}, {"patches": _said(part, _pixels(size)).patches}, 1e-5)
        if found:
            raise Violation("the same tokens with and without layers", found, asked)


@check(returns, seen, alone)
def ragged(make: Make) -> None:
    """If it declares `ragged = True`, a short context in a rectangular row gives what it gives alone."""
    part = _part(make)
    size, grid = _takes_masks(part)
    if not part.ragged:
        raise Skip("declares ragged = False")
    full = _some(grid, 0.75).index
    length = torch.tensor([full.shape[1], max(1, full.shape[1] * 2 // 3)])
    short = torch.where(true_entries(length, full.shape[1]), full, full[:, :1])
    pixels = _pixels(size)
    both = _said(part, pixels, Patches(short, length))
    lone = _said(part, pixels[1:], Patches(full[1:, : int(length[1])]))
    count = lone.patches.shape[1]  # all patches, where hidden ones are filled
    found = equal(_parts(lone), {"patches": both.patches[1:, :count], "summary": both.summary[1:]}, 1e-4)
    if found:
        raise Violation(
            "the tokens of the short context alone", f"{found}: padding is read", f"lengths {length.tolist()}"
        )


@check(returns)
def learns(make: Make) -> None:
    """A gradient reaches every parameter."""
    part = _part(make).train()
    try:
        size, grid = _takes_masks(part)
        context = _some(grid)
    except Skip:
        (size, grid), context = _size(part), None
    said = part(_pixels(size), context)
    value = (said.patches * torch.randn_like(said.patches)).sum() + (
        said.summary * torch.randn_like(said.summary)
    ).sum()
    missed = unreached(part, value)
    if missed:
        raise Violation("a gradient in every parameter", f"none in {', '.join(missed[:5])}", f"grid {grid}, half seen")


@check(returns)
def repeats(make: Make) -> None:
    """In eval mode it says the same of the same, however often it is called."""
    part = _part(make)
    size, _ = _size(part)
    steady(lambda: _parts(_said(part, _pixels(size))), f"2 images of {size[0]} x {size[1]}")


@check(returns)
def stored(make: Make) -> str:
    """Its state is parameters and buffers, all of it saved: loaded into a new one, it says the same."""
    part = _part(make)
    kept(part)
    size, _ = _size(part)
    with seeded(9):
        other = make().eval()
    pixels = _pixels(size)
    return restored(part, other, lambda one: _parts(_said(one, pixels)), f"2 images of {size[0]} x {size[1]}")


@check(returns)
def moves(make: Make) -> None:
    """It runs on the device that it is moved to."""
    part = _part(make)
    size, grid = _size(part)
    contexts = [None]
    try:
        _takes_masks(part)
        contexts.append(as_moved(_some(grid)))
    except Skip:
        pass
    for context in contexts:
        elsewhere(part, lambda moved, context=context: moved(as_moved(_pixels(size)), context, 0), make)


CHECKS: tuple[Check, ...] = (made, returns, seen, hidden, order, positions, stored, moves, alone, repeats)
CHECKS += (sizes, layered, ragged, learns)
