"""Does a predictor keep its contract? Declared outputs, gradients everywhere, rows that do not touch one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.contracts import Patches, Predictor, Tokens, true_entries
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere, sums
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import (
    AT,
    LATE,
    MANY,
    Encoder,
    as_moved,
    declared,
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
    targets,
    tokens,
    unreached,
    untouched,
)


def _part(make: Make) -> Any:
    with seeded():
        return stirred(make(Encoder()).eval())


def _said(part: Any, seen: Tokens, asked: Patches | None) -> dict[str, Tensor]:
    return dict(part(seen, asked, AT))


def _whole(part: Any) -> tuple[Tokens, Patches, str]:
    """Tokens and targets the predictor can work on: of visible patches, or of all where it reads hidden patches."""
    asked = targets(3, 2, 4)
    for seen in (tokens(3, 7), tokens(3, 16)):
        try:
            _said(part, seen, asked)
        except ValueError:
            continue
        return seen, asked, f"{seen.patches.shape[1]} of 16 patches seen, 2 blocks of 4 asked for"
    return tokens(3, 7), asked, "7 of 16 patches seen, 2 blocks of 4 asked for"


made = offers(Predictor, _part, module=True)


@check(made)
def outputs(make: Make) -> str:
    """It returns the outputs it declares: patch signals [t e], image signals [s e]; its inputs stay as they were."""
    part = _part(make)
    seen, asked, where = _whole(part)
    seen, asked = tokens(3, seen.index.shape[1]), targets(3, 2, 4)  # as new: `_whole` has called it with the others
    with untouched(tokens=seen, target=asked):
        said = _said(part, seen, asked)
    declared(part.outputs, said, asked.count, (3,), where)
    return size_of(part)


@check(outputs)
def stored(make: Make) -> str:
    """Its state is parameters and buffers, all of it saved: loaded into a new one, it says the same."""
    part = _part(make)
    kept(part)
    seen, asked, where = _whole(part)
    with seeded(9):
        other = make(Encoder()).eval()
    return restored(part, other, lambda one: _said(one, seen, asked), where)


@check(made)
def unmasked(make: Make) -> None:
    """Without targets it returns its image signals only."""
    part = _part(make)
    images = {name for name, signal in part.outputs.items() if signal.kind == "image"}
    said = set(_said(part, tokens(3, 16), None))
    if said != images:
        raise Violation(f"{sorted(images) or 'nothing'}", str(sorted(said)), "target None")


@check(outputs)
def learns(make: Make) -> None:
    """A gradient reaches every parameter, and through the tokens the encoder."""
    part = _part(make).train()
    seen, asked, where = _whole(part)
    seen = replace(seen, patches=seen.patches.requires_grad_(True), summary=seen.summary.requires_grad_(True))
    said = _said(part, seen, asked)
    missed = unreached(part, sum((x.float() * torch.randn_like(x.float())).sum() for x in said.values()))  # type: ignore[arg-type]
    if missed:
        raise Violation("a gradient in every parameter", f"none in {', '.join(missed[:5])}", where)
    if all(x.grad is None or not x.grad.any() for x in (seen.patches, seen.summary)):
        came = "none in tokens.patches and tokens.summary: were they detached?"
        raise Violation("a gradient in the tokens, else no encoder learns", came, where)


@check(outputs)
def alone(make: Make) -> None:
    """A sequence's rows do not depend on the other sequences."""
    part = _part(make)
    _, _, where = _whole(part)
    for many, at in ((3, AT), (3, LATE), (MANY, AT)):
        seen, asked = tokens(many, 7 if where.startswith("7") else 16), targets(many, 2, 4)
        whole = dict(part(seen, asked, at))
        for rows in (slice(0, 1), slice(2, 3), slice(0, 2), slice(many - 2, many)):
            some = dict(part(_rows(seen, rows), Patches(asked.index[rows]), at))
            cut = {name: x.unflatten(0, (many, -1))[rows].flatten(0, 1) for name, x in whole.items()}
            if found := equal(some, cut, 1e-4):
                came = f"{found} among {rows.stop - rows.start}"
                smallest = f"{where}, sequence {rows.start} of {many}, step {at.step} of {at.steps}"
                raise Violation("the rows a sequence gets among others", came, smallest)


@check(outputs)
def repeats(make: Make) -> None:
    """In eval mode it says the same of the same, however often it is called."""
    part = _part(make)
    seen, asked, where = _whole(part)
    steady(lambda: _said(part, seen, asked), where)


@check(outputs)
def moves(make: Make) -> None:
    """It runs on the device that it is moved to."""
    part = _part(make)
    seen, asked, _ = _whole(part)
    there = as_moved(seen), as_moved(asked)
    elsewhere(part, lambda moved: moved(*there, AT), make)


@check(outputs, repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    part = _part(make)
    seen, asked, _ = _whole(part)
    with torch.no_grad():
        return {**sums(part.state_dict())} | _said(part, seen, asked)


@check(outputs, alone, repeats, slow=True)
def ranks(make: Make) -> None:
    """Two ranks, each with half of the sequences, give the gradient of one process with all."""
    part = _part(make).train()
    _, _, where = _whole(part)
    seen, asked = tokens(4, 7 if where.startswith("7") else 16), targets(4, 2, 4)
    with seeded(1), torch.no_grad():
        if equal(_said(part, seen, asked), _said(part, seen, asked), 0):
            raise Skip("draws by chance in training")
    same_on_two_ranks(part, lambda rows: _said(part, _rows(seen, rows), Patches(asked.index[rows])), make, where)


@check(outputs, alone)
def order(make: Make) -> str:
    """Target blocks in another order give the same rows (required if it declares `blocks_apart = True`)."""
    part = _part(make)
    seen, asked, where = _whole(part)
    swapped = Patches(asked.index.flip(1))
    there = {name: x.unflatten(0, (3, 2, 4)).flip(1).flatten(0, 2) for name, x in _patches(part, seen, swapped).items()}
    found = equal(_patches(part, seen, asked), there, 1e-4)
    if found and getattr(part, "blocks_apart", False):
        raise Violation("the same rows in another order", found, f"{where}, blocks swapped")
    return "blocks read one another" if found else "blocks are guessed apart"


@check(outputs, alone)
def indices(make: Make) -> None:
    """A token goes with its index, and a guess with that of its target: their order in a row does not matter."""
    part = _part(make)
    seen, asked, where = _whole(part)
    turned = replace(seen, patches=seen.patches.flip(1), index=seen.index.flip(1))
    if where.startswith("7"):  # else all patches are there, in the grid's order
        found = equal(_said(part, seen, asked), _said(part, turned, asked), 1e-4)
        if found:
            came = f"{found}: does it take positions from the order, or the first token for another?"
            raise Violation("the same of the context in another order", came, f"{where}, context reversed")
    there = _patches(part, seen, Patches(asked.index.flip(2)))
    there = {name: x.unflatten(0, (3, 2, 4)).flip(2).flatten(0, 2) for name, x in there.items()}
    found = equal(_patches(part, seen, asked), there, 1e-4)
    if found:
        came = f"{found}: does it take positions from the order?"
        raise Violation("the same rows, of a block in another order", came, f"{where}, blocks reversed")


@check(outputs, alone)
def ragged_context(make: Make) -> None:
    """A short context in a rectangular row gives what it gives alone."""
    part = _part(make)
    asked = targets(2, 2, 4)
    length = torch.tensor([7, 4])
    seen = tokens(2, 7, length=length)
    try:
        both = _said(part, seen, asked)
    except ValueError as error:
        raise Skip(f"refuses dropped patches: {str(error)[:60]}") from error
    short = Tokens(seen.patches[1:, :4], seen.index[1:, :4], seen.summary[1:], seen.grid)
    alone_ = _said(part, short, Patches(asked.index[1:]))
    found = equal(alone_, {name: x[len(x) // 2 :] for name, x in both.items()}, 1e-4)
    if found:
        came = f"{found}: padding is read; mask keys beyond tokens.length"
        raise Violation("the rows of the short context alone", came, "lengths 7 and 4, sequence 1")


@check(outputs, alone)
def ragged_target(make: Make) -> None:
    """Short target rows, and empty ones, give a row for each true patch, as they do alone."""
    part = _part(make)
    seen, asked, where = _whole(part)
    length = torch.tensor([[4, 2], [0, 0], [1, 3]])
    short = Patches(torch.where(true_entries(length, 4), asked.index, asked.index[..., :1]), length)
    rows = _patches(part, seen, short)
    for name, x in rows.items():
        if len(x) != short.count:
            raise Violation(
                f"{name} with {short.count} rows",
                f"{len(x)}: use target.flat",
                "target lengths " + str(length.tolist()),
            )
    for name, x in _patches(part, seen, Patches(asked.index, 0 * length)).items():
        if len(x):
            raise Violation(f"no row of {name}", str(len(x)), "nothing asked of any sequence")
    block = Patches(asked.index[2:, :1, :1])
    try:
        one = _patches(part, _rows(seen, slice(2, 3)), block)
    except ValueError:
        return
    if _patches(part, seen, asked) and getattr(part, "blocks_apart", False):
        found = equal(one, {name: x[-4:-3] for name, x in rows.items()}, 1e-4)
        if found:
            raise Violation("the row of a block of one patch alone", found, f"{where}, lengths {length.tolist()}")


@check(outputs, repeats)
def bf16(make: Make) -> str:
    """Under bfloat16 autocast it says nearly what it says in float32."""
    part = _part(make)
    seen, asked, where = _whole(part)
    return near_in_bf16(lambda: _said(part, seen, asked), where)


@check(outputs)
def places(make: Make) -> str:
    """Other grids, oblong ones too, are served or refused with a ValueError; each patch gets a guess of its own."""
    part = _part(make)
    seen_of = 0.5 if _whole(part)[2].startswith("7") else 1.0
    served = []
    for rows, columns in ((5, 7), (7, 5), (2, 9)):
        whole = rows * columns
        seen = tokens(2, int(whole * seen_of), (rows, columns))
        asked = Patches(torch.stack([torch.arange(whole)[None]] * 2))
        try:
            said = _patches(part, seen, asked)
        except ValueError:
            continue
        for name, x in said.items():
            apart = torch.pdist(x[:whole].double())
            if not apart.min() > 1e-6 * x.abs().max():
                one, other = torch.triu_indices(whole, whole, 1)[:, int(apart.argmin())].tolist()
                came = f"{name} alike for patches {one} and {other}: does its table of positions end before the grid?"
                raise Violation("another guess for each target patch", came, f"grid {rows} x {columns}, all asked for")
        served.append(f"{rows} x {columns}")
    return f"grids served besides: {', '.join(served) or 'none'}"


@check(outputs, repeats, slow=True)
def compiles(make: Make) -> str:
    """Each of its blocks compiles without a graph break."""
    part = _part(make)
    if not len(part.blocks):
        raise Skip("it has no blocks")
    seen, asked, where = _whole(part)
    before = _said(part, seen, asked)
    torch._dynamo.reset()
    for number, block in enumerate(part.blocks):
        part.blocks[number] = _Compiled(torch.compile(block, backend="eager", fullgraph=True, dynamic=None), block)
    try:
        after = _said(part, seen, asked)
    except TorchDynamoException as error:
        raise Violation("no graph break", f"{type(error).__name__}: {str(error).splitlines()[0]}", where) from error
    found = equal(before, after, 1e-5)
    if found:
        raise Violation("the same outputs compiled", found, where)
    return f"{len(part.blocks)} blocks"


@check(outputs)
def arithmetic(make: Make) -> str:
    """What a forward pass costs."""
    part = _part(make)
    seen, asked, where = _whole(part)
    with FlopCounterMode(display=False) as counter:
        _said(part, seen, asked)
    return f"{counter.get_total_flops() / 3 / 1e6:.2f} MFLOP a sequence; {where}"


CHECKS: tuple[Check, ...] = (made, outputs, unmasked, stored, moves, learns, alone, repeats, order, indices, places)
CHECKS += (ragged_context, ragged_target, bf16, arithmetic, processes, ranks, compiles)


class _Compiled(nn.Module):
    def __init__(self, call: Any, block: nn.Module) -> None:
        super().__init__()
        self.call, self.block = call, block

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.call(*given, **named)


def _patches(part: Any, seen: Tokens, asked: Patches) -> dict[str, Tensor]:
    said = _said(part, seen, asked)
    return {name: said[name] for name, signal in part.outputs.items() if signal.kind == "patch"}


def _rows(seen: Tokens, rows: slice) -> Tokens:
    return Tokens(seen.patches[rows], seen.index[rows], seen.summary[rows], seen.grid)
