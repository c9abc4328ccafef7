"""What may a step cost on A100s? Arithmetic, bytes and messages counted from the real recipes, times estimated.

python benchmarks/budget.py            prints the tables of docs/performance.md
python benchmarks/budget.py --write    puts them there

Counted: everything about the recipe. Assumed, and named in the tables: what the hardware reaches. Estimated: all times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslzoo.progress import Progress
from sslzoo.recipe import build as parts
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.data import fake_batch
from sslzoo.run.optim import trainable
from sslzoo.step import compute_loss

DOC = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- made by: python benchmarks/budget.py --write -->", "<!-- end of what is made -->"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")  # what tensor cores do


# What an A100-80GB of the SXM form has (its maker's data sheet), and what is assumed to be reached of it.
PEAK, MEMORY = 312e12, 2.039e12  # FLOP/s in bf16; bytes/s
PRODUCT, STREAM = 0.70, 0.85  # of large matrix products; of reading and writing memory
FUSED = 0.45  # of the counted elementwise bytes that stay when blocks are compiled
LAUNCH = 6e-6  # seconds that the host takes to start an operation
# Bytes a second and direction between nodes of eight GPUs, and what is assumed to be reached of them; within a node.
NETWORKS = {"eight HDR": 8 * 25e9, "one HDR": 25e9, "25 Gb Ethernet": 3.125e9}
REACHED, NVLINK, NODE = 0.85, 230e9, 8
HIDDEN = 0.8  # of the backward that sending can hide behind
BACKWARD = 0.6  # of a step's compute; the teacher has a forward pass only
ADAMW, EMA = 28, 12  # bytes a parameter: 4 numbers read and 3 written; 2 and 1


@dataclass(frozen=True)
class Counts:
    """What a step does for some images on one device, forward and backward."""

    images: int
    flops: float  # mean over mask draws
    kernels: float  # operations that write something, in PyTorch's own form
    elementwise: float  # bytes that operations other than matrix products read and write, unfused
    learned: float  # parameters
    followed: float  # parameters of teachers

    def compute(self, remain: float = FUSED) -> float:
        """Estimated seconds on an A100, nothing sent."""
        products, stream = self.flops / (PRODUCT * PEAK), STREAM * MEMORY
        moved = self.elementwise * remain + ADAMW * self.learned + EMA * self.followed
        return max(products + moved / stream, self.kernels * LAUNCH)

    def of(self, images: int) -> Counts:
        """The same step for another number of images."""
        share = images / self.images
        return replace(self, images=images, flops=self.flops * share, elementwise=self.elementwise * share)

    def sending(self, gpus: int, network: float, width: int = 4) -> float:
        """Estimated seconds of an all-reduce of gradients of `width` bytes each: within nodes, then between them."""
        size, nodes = self.learned * width, gpus // NODE
        within, between = 2 * (NODE - 1) / NODE * size / NVLINK, 2 * (nodes - 1) / nodes * size / (network * REACHED)
        return within + between

    def together(self, gpus: int, network: float, width: int = 4) -> float:
        """Estimated seconds of a step on so many A100s: what the backward does not hide is waited for."""
        alone = self.compute()
        return alone + max(0.0, self.sending(gpus, network, width) - HIDDEN * BACKWARD * alone)


class _Fake(FakeTensorMode):
    """Tensors of shapes alone that say they are on a CPU: there, attention is one operation, as it is on a GPU."""

    def __deepcopy__(self, _memo: object) -> _Fake:
        return self  # a teacher is a copy, of the same mode


class _Bytes(TorchDispatchMode):
    """Counts operations and their bytes as PyTorch runs them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.elementwise = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or not written or name in ("detach", "empty", "empty_like", "_unsafe_view", "alias"):
            return out
        self.kernels += 1
        if not any(product in name for product in PRODUCTS):
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.elementwise += sum(x.numel() * x.element_size() for x in (*read, *written))
        return out


def counted(name: str, images: int, sets: tuple[str, ...] = ()) -> Counts:
    """A recipe's step in bf16 for so many images, with the masks of its first step; FLOPs are the mean over draws."""
    recipe, installed = load(name, sets)
    with torch.device("meta"):
        method, sources = parts.assemble(recipe, installed)
    batch = fake_batch(sources, method.student.encoder, images)
    with _Fake() as fake:
        method, batch = parts.build_method(recipe, installed), batch.map(fake.from_tensor)
        with _Bytes() as seen, mock.patch("sslzoo.nn.fused_is_slow", return_value=False):
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = compute_loss(method, batch, Progress(0, 1))
            loss.backward()
    learned = sum(parameter.numel() for _, parameter in trainable(method))
    followed = sum(x.numel() for target in method.targets.values() for x in target.parameters() if not x.requires_grad)
    flops = check(recipe, installed).flops * images
    return Counts(images, flops, seen.kernels, seen.elementwise, learned, followed)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


RECIPES = ("ijepa/vitb16_in1k", "ijepa/vitl16_in1k", "ijepa/vith14_in1k", "mae/vitl16_in1k")
MAIN = "ijepa/vith14_in1k"


def steps(found: Mapping[str, Counts]) -> str:
    """What a step of each recipe does, and would take on an A100."""
    head = ("128 images, bf16", "TFLOP", "operations", "elementwise GB, unfused", "parameters, M (teacher)")
    head += ("s compiled (eager), estimated", "images/s, estimated", "utilisation, estimated")
    return markdown(head, (_step(name, one) for name, one in found.items()))


def _step(name: str, one: Counts) -> tuple[str, ...]:
    seconds, eager = one.compute(), one.compute(1.0)
    return (
        name,
        f"{one.flops / 1e12:.1f}",
        f"{one.kernels:.0f}",
        f"{one.elementwise / 1e9:.0f}",
        f"{one.learned / 1e6:.0f} ({one.followed / 1e6:.0f})",
        f"{seconds:.3f} ({eager:.3f})",
        f"{one.images / seconds:.0f} ({one.images / eager:.0f})",
        f"{one.flops / seconds / PEAK:.0%} ({one.flops / eager / PEAK:.0%})",
    )


def parts_of(one: Counts) -> str:
    """Where the time of one step goes."""
    stream = STREAM * MEMORY
    rows = {
        "matrix products": (f"{one.flops / 1e12:.1f} TFLOP", one.flops / (PRODUCT * PEAK)),
        "elementwise, compiled": (f"{one.elementwise * FUSED / 1e9:.0f} GB", one.elementwise * FUSED / stream),
        "AdamW": (f"{ADAMW * one.learned / 1e9:.1f} GB", ADAMW * one.learned / stream),
        "the teacher follows": (f"{EMA * one.followed / 1e9:.1f} GB", EMA * one.followed / stream),
    }
    rows["a step"] = ("", one.compute())
    for network, rate in NETWORKS.items():
        rows[f"gradients between 2 nodes, {network}"] = (f"{one.learned * 4 / 1e9:.2f} GB", one.sending(16, rate))
        rows[f"the same in bf16, {network}"] = (f"{one.learned * 2 / 1e9:.2f} GB", one.sending(16, rate, 2))
    return markdown(("part", "counted", "ms, estimated"), ((a, b, f"{c * 1e3:.0f}") for a, (b, c) in rows.items()))


def scaling(one: Counts) -> str:
    """Images a second of each GPU beside those of one alone with 128 images."""
    head = ("A100s", "images on each", *(f"{name}, {kind}" for name in NETWORKS for kind in ("fp32", "bf16")))
    alone = 128 / one.of(128).compute()
    rows = []
    for gpus in (16, 64, 256):
        for images in dict.fromkeys((128, 2048 // gpus)):
            some = one.of(images)
            rates = [images / some.together(gpus, rate, width) for rate in NETWORKS.values() for width in (4, 2)]
            rows.append((str(gpus), str(images), *(f"{rate / alone:.0%}" for rate in rates)))
    return markdown(head, rows)


def made() -> str:
    """All tables, as they stand in docs/performance.md."""
    found = {name: counted(name, 128) for name in RECIPES}
    told = "\n".join(
        (
            "Counted: arithmetic (mean over mask draws), parameters, and operations and bytes of forward and backward",
            "as PyTorch runs them one by one. Estimated: times, without late data and ranks that wait for the slowest.",
            f"Assumed: matrix products reach {PRODUCT:.0%} of {PEAK / 1e12:.0f} TFLOP/s, memory {STREAM:.0%} of",
            f"{MEMORY / 1e12:.2f} TB/s; compiled blocks leave {FUSED:.0%} of the elementwise bytes; AdamW moves",
            f"{ADAMW} bytes a parameter, a teacher {EMA}; the host starts an operation in {LAUNCH * 1e6:.0f} us. Of",
            f"networks {REACHED:.0%} is reached, within nodes {NVLINK / 1e9:.0f} GB/s; sending hides",
            f"behind {HIDDEN:.0%} of the backward, which is {BACKWARD:.0%} of a step.\n",
        )
    )
    main = found[MAIN]
    return "\n".join(
        (
            told,
            steps(found),
            f"One step of {MAIN}, 128 images on each A100:\n",
            parts_of(main),
            "Rate of each A100 beside one alone, estimated, by network between nodes of eight and precision of the\n"
            "gradients that travel; 128 images on each, or a global batch of 2,048:\n",
            scaling(main),
        )
    )


def written(text: str) -> str:
    """A document with the tables of now between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--write", action="store_true", help="into docs/performance.md")
    if options.parse_args().write:
        DOC.write_text(written(DOC.read_text()))
    else:
        print(made())
