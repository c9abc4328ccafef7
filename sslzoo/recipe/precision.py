"""In which numbers does a run compute, where its recipe leaves that open (`precision: auto`)?

The word is chosen once, by the device of the first start, and written into the run folder's recipe.yaml: a run that
goes on, wherever it does, goes on in the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sslzoo.recipe.recipe import Recipe
from sslzoo.run.folder import Folder
from sslzoo.run.processes import World, gather_objects

Say = Callable[[str], None]


def settled(recipe: Recipe, world: World, out: Path | None = None, say: Say = lambda _: None) -> Recipe:
    """The recipe with a precision in place of `auto`: that of the run in `out`, else bf16 where all ranks have it.

    Says what was chosen and why; and where a recipe's own word is slow. All ranks call this.
    """
    if recipe.run.precision != "auto":
        if recipe.run.precision == "bf16" and world.device.type == "cuda" and not (own := bf16_of(world.device))[1]:
            say(f"warning: run.precision: {own[0]} has no bf16 instructions and imitates them, slower than fp32 is")
        return recipe
    before = Folder(out).begun_with("run", "precision") if out is not None else None
    found = gather_objects((before, *bf16_of(world.device)), world)
    word, lacking = found[0][0], [name for _, name, able in found if not able]
    if word not in ("bf16", "fp32"):
        word = "fp32" if lacking else "bf16"
        why = f"{lacking[0]} has no" if lacking else f"{found[0][1]} has"
        say(f"precision auto: {word}, for {why} bf16 instructions")
    else:
        lacks = f", though {lacking[0]} has no bf16 instructions" if word == "bf16" and lacking else ""
        say(f"precision auto: {word}, as this run began{lacks}")
    return replace(recipe, run=recipe.run.model_copy(update={"precision": word}))


def bf16_of(device: torch.device) -> tuple[str, bool]:
    """What the device is called, and whether it computes bf16 in hardware: compute capability 8, AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device) >= (8, 0)
    found = sorted(name for name, on in torch.cpu.get_capabilities().items() if on and str(name).endswith("bf16"))
    return f"this CPU ({', '.join(found)})" if found else "this CPU", bool(found)
