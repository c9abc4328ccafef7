"""Does an encoder keep its contract? Hidden patches stay hidden, indices follow the grid, other sizes work."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Encoder, Grid, Patches, Tokens, true_entries
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere, sums
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import (
    MANY,
    as_moved,
    elsewhere,
    equal,
    kept,
    near_in_bf16,
    restored,
    same_on_two_ranks,
    seeded,
    size_of,
    steady,
    stirred,
    unreached,
    untouched,
)

SIDES = (32, 28, 64, 48, 96, 112, 56, 224, 16, 40)
SMALL = 64  # of larger images a network takes thousands of times what it takes of the least: fewer rows


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
    pixels, where = _pixels(size), f"2 images of {size[0]} x {size[1]}"
    with untouched(pixels=pixels):
        said = _said(part, pixels)
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
    pixels, context = _pixels(size), _some(grid)
    with untouched(pixels=pixels, context=context):
        said = _said(part, pixels, context)
    every = torch.arange(grid[0] * grid[1]).expand(2, -1)
    if not (torch.equal(said.index, context.index) or torch.equal(said.index, every)):
        raise Violation("index: the context's, or all patches", str(said.index[0].tolist()), f"grid {grid}, half seen")
    if tuple(said.patches.shape) != (*said.index.shape, part.width):
        came = str(list(said.patches.shape))
        raise Violation(f"patches {[*said.index.shape, part.width]}", came, f"grid {grid}, half seen")


@check(returns, seen)
def hidden(make: Make) -> None:
    """What is hidden has no influence: other pixels there, the same tokens, whether it is training or not."""
    part = _part(make)
    size, grid = _takes_masks(part)
    for share, training in product((0.5, 0.25), (False, True)):
        pixels, context = _pixels(size), _some(grid, share)
        part.train(training)
        once, again = (_all(part, given, context) for given in (pixels, _hidden_changed(pixels, context, grid)))
        if found := equal(once, again, 1e-5):
            smallest = f"grid {grid}, {context.index.shape[1]} seen, in {'training' if training else 'eval'} mode"
            raise Violation("the same tokens when hidden pixels change", found, smallest)


def _all(part: Any, pixels: Tensor, context: Patches) -> dict[str, Tensor]:
    """All that it gives: tokens, summary, prefix, and those of its last block."""
    with seeded():
        said = _said(part, pixels, context, 1)
    layers = {"a layer": said.layers, "a layer's prefix": said.prefixes, "prefix": (said.prefix,)}
    return _parts(said) | {name: x[0] for name, x in layers.items() if x and x[0] is not None}


def _hidden_changed(pixels: Tensor, context: Patches, grid: Grid) -> Tensor:
    high, wide = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    changed = pixels.clone()
    for row in range(len(pixels)):
        for index in set(range(grid[0] * grid[1])) - set(context.index[row].tolist()):
            top, left = index // grid[1] * high, index % grid[1] * wide
            changed[row, :, top : top + high, left : left + wide] += 5.0
    return changed


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
    for many in (5, MANY) if size[0] <= SMALL else (17,):
        pixels = _pixels(size, many)
        whole = _parts(_said(part, pixels))
        for rows in (slice(0, 1), slice(many - 1, many), slice(0, 2), slice(many - 3, many)):
            found = equal(_parts(_said(part, pixels[rows])), {name: x[rows] for name, x in whole.items()}, 1e-4)
            if found:
                came = f"{found} among {rows.stop - rows.start}"
                raise Violation(f"the tokens an image gets among {many}", came, f"image {rows.start} of {many}")


@check(returns)
def positions(make: Make) -> None:
    """Positions matter, on oblong grids too: two patches that change places give other tokens than changed tokens."""
    part = _part(make)
    size, grid = _size(part)
    high, wide = size[0] // grid[0], size[1] // grid[1]
    for rows, columns in (grid, (grid[0], grid[1] + 1), (grid[0] + 1, grid[1])):
        pixels, where = _pixels((rows * high, columns * wide), 1), f"grid {rows} x {columns}"
        if not _serves(part, pixels, (rows, columns)):
            continue
        pairs = list(combinations(range(rows * columns), 2))
        wanted = 100 if size[0] <= SMALL else 6
        pairs = [(0, 1), (0, columns), *pairs[:: max(1, len(pairs) // wanted)]]  # in a row, in a column, anywhere
        order = torch.arange(rows * columns).repeat(len(pairs), 1)
        for row, (one, other) in zip(order, pairs, strict=True):
            row[one], row[other] = other, one
        plain, moved = _said(part, pixels), _said(part, _moved(pixels, order, (rows, columns)))
        for pair, row, x in zip(pairs, order, moved.patches, strict=True):
            if not equal({"patches": x}, {"patches": plain.patches[0, row]}, 1e-5):
                came = f"the same after patches {pair[0]} and {pair[1]} changed places"
                raise Violation("tokens that know their position", came, where)


def _serves(part: Any, pixels: Tensor, grid: Grid) -> bool:
    """Whether it has a token for each patch of this grid there."""
    try:
        return part.grid(tuple(pixels.shape[2:])) == grid and _said(part, pixels).patches.shape[1] == grid[0] * grid[1]
    except ValueError:
        return False


def _moved(pixels: Tensor, order: Tensor, grid: Grid) -> Tensor:
    """An image [1 3 H W] with its patches in other orders [n N]: [n 3 H W]."""
    high, wide = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    cells = pixels[0].unflatten(1, (grid[0], high)).unflatten(3, (grid[1], wide))  # 3 h p w q
    cells = cells.permute(1, 3, 0, 2, 4).flatten(0, 1)[order]  # n N 3 p q
    return cells.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


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
    for count, way in product((1, min(2, len(part.blocks))), ways):  # of `layers`, the last stands last
        asked = ", ".join([f"layers={count}", *way])
        said = _said(part, _pixels(size), None, count, **way)
        if len(said.layers) != count or any(layer.shape != said.patches.shape for layer in said.layers):
            came = f"{len(said.layers)} of {[list(layer.shape) for layer in said.layers]}"
            raise Violation(f"{count} layers {list(said.patches.shape)}", came, asked)
        found = equal({"patches": said.patches}, {"patches": _said(part, _pixels(size)).patches}, 1e-5)
        if found:
            raise Violation("the same tokens with and without layers", found, asked)
        last = _said(part, _pixels(size), None, 1, **way).layers[0]
        if found := equal({"the last layer": said.layers[-1]}, {"the last layer": last}, 1e-5):
            raise Violation("layers whose last is the one that layers=1 gives", f"{found}: mind their order", asked)
        if count == 2 and not equal({"layers": said.layers[0]}, {"layers": said.layers[1]}, 0):
            raise Violation("a layer of each block", "the same for both blocks", asked)


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
def bf16(make: Make) -> str:
    """Under bfloat16 autocast it says nearly what it says in float32."""
    with seeded():
        part = make().eval()  # not stirred: many layers would multiply what that adds, and the rounding with it
    size, _ = _size(part)
    return near_in_bf16(lambda: _parts(_said(part, _pixels(size))), f"2 images of {size[0]} x {size[1]}")


@check(returns, alone, slow=True)
def ranks(make: Make) -> None:
    """Two ranks, each with half of the images, give the gradient of one process with all."""
    part = _part(make).train()
    size, _ = _size(part)
    pixels = _pixels(size, 4)
    with seeded(1), torch.no_grad():
        one, other = (_parts(part(pixels, None, 0)) for _ in range(2))
    if equal(one, other, 0):
        raise Skip("draws by chance in training")
    where = f"4 images of {size[0]} x {size[1]}"
    same_on_two_ranks(part, lambda rows: _parts(part(pixels[rows], None, 0)), make, where)


@check(returns)
def repeats(make: Make) -> None:
    """In eval mode it says the same of the same, however often it is called."""
    part = _part(make)
    size, _ = _size(part)
    times = 20 if size[0] <= SMALL else 5
    steady(lambda: _parts(_said(part, _pixels(size))), f"2 images of {size[0]} x {size[1]}", times)


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


@check(made)
def published(make: Make) -> None:
    """If it knows names of released code, its own pass as they are."""
    part = _part(make)
    if not hasattr(part, "published"):
        raise Skip("knows none")
    own = part.state_dict()
    named = part.published(dict(own))
    if named.keys() != own.keys():
        raise Violation("its own names", f"others: {sorted(named.keys() ^ own.keys())[:6]}", "published(state_dict())")
    for name, value in own.items():
        if not torch.equal(named[name], value):
            raise Violation("its own weights", f"{name} is another", "published(state_dict())")


@check(returns, repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    part = _part(make)
    return {**sums(part.state_dict())} | _parts(_said(part, _pixels(_size(part)[0])))


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
CHECKS += (sizes, layered, ragged, learns, bf16, published, processes, ranks)
