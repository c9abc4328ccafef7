"""What does a compiler make of a method? Blocks alone, and few graphs: each list of blocks has its own.

The blocks of a list differ in weights only, and share their graphs. torch.compile keeps graphs by code object, so each
list gets one of its own: with one for all, a teacher, which always sees all patches, would be compiled for the changing
number that the student sees. For every list but a target generator's, the number of tokens is marked as one that
changes; the compiler would find that out too, but only by compiling each graph a second time.
"""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from sslzoo.errors import RunError
from sslzoo.run.parallel import block_lists


def refuse_uncompilable(device: torch.device) -> None:
    """Sees that blocks can be compiled for a device; raises RunError if not, before minutes of a start are gone.

    For a GPU, Triton builds a little C of its own, against Python's headers.
    """
    if device.type != "cuda" or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return
    raise RunError(
        f"run.compile: there is no C compiler on {socket.gethostname()}, and torch.compile wants one for GPUs: load a "
        "module with gcc (in a cluster profile: setup), name one in CC, or train with --set run.compile=false"
    )


def compile_blocks(method: nn.Module) -> None:
    """Compiles every block of a method, before it is distributed."""
    torch._dynamo.config.optimize_ddp = (
        False  # it would cut each block's graph at DDP's buckets, which hold many blocks
    )
    for name, blocks in block_lists(method):
        called = _compiled(name, changing=not name.startswith("targets."))
        for block in blocks:
            block.forward = partial(called, type(block).forward, block)


def eager() -> AbstractContextManager[Any]:
    """Runs blocks as they were written: what is run seldom, or at other sizes, flips no compiled graph."""
    return torch.compiler.set_stance("force_eager")


def _compiled(name: str, changing: bool) -> Any:
    def call(forward: Any, block: nn.Module, *given: Any, **named: Any) -> Any:
        return forward(block, *given, **named)

    call.__code__ = call.__code__.replace(co_name=f"blocks of {name}")
    compiled = torch.compile(call, dynamic=None)

    def marked(forward: Any, block: nn.Module, *given: Any, **named: Any) -> Any:
        for x in (*given, *named.values()):
            if isinstance(x, torch.Tensor) and x.ndim == 3:  # tokens, [s k d]
                torch._dynamo.maybe_mark_dynamic(x, 1)
        return compiled(forward, block, *given, **named)

    return marked if changing else compiled
