"""Does a predictor keep its contract? Declared outputs, gradients everywhere, rows that do not touch one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.contracts import Patches, Predictor, Tokens, true_entries
from sslzoo.testing.first import offers
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import (
    AT,
    Encoder,
    as_moved,
    as_two_ranks,
    declared,
    elsewhere,
    equal,
    kept,
    restored,
    seeded,
    size_of,
    steady,
    stirred,
    targets,
    tokens,
    unreached,
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
    """It returns the outputs it declares: patch signals [t e], image signals [s e]."""
    part = _part(make)
    seen, asked, where = _whole(part)
    declared(part.outputs, _said(part, seen, asked), asked.count, (3,), where)
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
    """A gradient reaches every parameter."""
    part = _part(make).train()
    seen, asked, where = _whole(part)
    said = _said(part, seen, asked)
    missed = unreached(part, sum((x.float() * torch.randn_like(x.float())).sum() for x in said.values()))  # type: ignore[arg-type]
    if missed:
        raise Violation("a gradient in every parameter", f"none in {', '.join(missed[:5])}", where)


@check(outputs)
def alone(make: Make) -> None:
    """A sequence's rows do not depend on the other sequences."""
    part = _part(make)
    seen, asked, where = _whole(part)
    whole = _said(part, seen, asked)
    for rows in (slice(0, 1), slice(2, 3), slice(0, 2), slice(1, 3)):
        some = _said(part, _rows(seen, rows), Patches(asked.index[rows]))
        cut = {name: x.unflatten(0, (3, -1))[rows].flatten(0, 1) for name, x in whole.items()}
        found = equal(some, cut, 1e-4)
        if found:
            came = f"{found} among {rows.stop - rows.start}"
            raise Violation("the rows a sequence gets among others", came, f"{where}, sequence {rows.start} of 3")


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


@check(outputs, alone, repeats, slow=True)
def ranks(make: Make) -> None:
    """Two ranks, each with half of the sequences, give the gradient of one process with all."""
    part = _part(make).train()
    _, _, where = _whole(part)
    seen, asked = tokens(4, 7 if where.startswith("7") else 16), targets(4, 2, 4)

    def gradients(rows: slice) -> dict[str, Any]:
        part.zero_grad()
        said = _said(part, _rows(seen, rows), Patches(asked.index[rows]))
        torch.stack([_pull(x, rows) for x in said.values()]).sum().backward()
        # Arrays: a tensor would share memory with a process that ends.
        return {name: p.grad.numpy() for name, p in part.named_parameters() if p.grad is not None}

    whole = {name: torch.from_numpy(x.copy()) for name, x in gradients(slice(0, 4)).items()}
    halves = as_two_ranks(lambda rank: gradients(slice(2 * rank, 2 * rank + 2)), make)
    both = {name: (torch.from_numpy(halves[0][name]) + torch.from_numpy(halves[1][name])) / 2 for name in whole}
    found = equal(whole, both, 1e-5)
    if found:
        raise Violation("the gradient of one process", f"{found}; use gather, all_mean and all_sum of sslzoo", where)


def _pull(x: Tensor, rows: slice) -> Tensor:
    """A mean over sequences in which each pulls its rows another way."""
    mine = x.float().unflatten(0, (rows.stop - rows.start, -1)).flatten(1)
    way = torch.randn(4, mine.shape[1], generator=torch.Generator().manual_seed(6))
    return (mine * way[rows]).sum() / len(mine)


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
def ragged_context(make: Make) -> None:
    """A short context in a rectangular row gives what it gives alone."""
    part = _part(make)
    asked = targets(2, 2, 4)
    length = torch.tensor([7, 4])
    seen = tokens(2, 7, length=length)
    try:
        both = _patches(part, seen, asked)
    except ValueError as error:
        raise Skip(f"refuses dropped patches: {str(error)[:60]}") from error
    short = Tokens(seen.patches[1:, :4], seen.index[1:, :4], seen.patches[1:, :4].mean(1), seen.grid)
    alone_ = _patches(part, short, Patches(asked.index[1:]))
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
    full = _said(part, seen, asked)
    with torch.autocast("cpu", torch.bfloat16):
        half = _said(part, seen, asked)
    gaps = [(half[k].float() - x).norm() / x.norm().clamp(min=1e-6) for k, x in full.items()]
    worst = torch.stack(gaps).max().item()  # nan, if any is
    if not worst < 0.05:
        raise Violation("within 5 % of float32", f"{worst:.1%} off", where)
    return f"{worst:.1%} off"


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


CHECKS: tuple[Check, ...] = (made, outputs, unmasked, stored, moves, learns, alone, repeats, order)
CHECKS += (ragged_context, ragged_target, bf16, arithmetic, ranks, compiles)


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
