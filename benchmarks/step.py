"""How fast is a step of I-JEPA on this CPU, beside the published code's? Both in one process, turn by turn.

python benchmarks/step.py CHECKOUT [--sizes tiny small base] [--rounds 7] [--threads 1]

CHECKOUT is a copy of the published code (facebookresearch/ijepa). Its step is that of its src/train.py: teacher,
student, predictor, loss, backward, AdamW, statistics of gradients, moving average. Ours is the training loop's own.
Both see the same pixels and masks, and have the same sizes. Told are the CPU seconds of a step (of all threads: on a
machine that others use they are steadier than the wall clock's) and the wall clock's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from sslzoo.contracts import Batch
from sslzoo.progress import Progress
from sslzoo.recipe.build import build_method, build_optimizer
from sslzoo.recipe.recipe import load
from sslzoo.run import optim
from sslzoo.run.data import Sources, Views, fake_batch
from sslzoo.run.folder import Folder
from sslzoo.run.guard import Guard
from sslzoo.run.processes import World
from sslzoo.run.stop import Stop
from sslzoo.train import Learner

# side of the image, of a patch, images in a batch, predictor's width; depth 6 as published
SIZES = {"tiny": (32, 4, 128, 192), "small": (32, 4, 64, 384), "base": (224, 16, 8, 384)}
HEADS = {"tiny": 3, "small": 6, "base": 12}
DRAWS = 3  # batches of unlike masks
AT = Progress(10, 1000)

Step = Callable[[int], None]


def ours(size: str, precision: str, sets: tuple[str, ...] = ()) -> tuple[Step, list[Batch]]:
    """A step of the training loop, and the batches that it takes."""
    side, patch, images, width = SIZES[size]
    changed = (f"views.image.size={side}", f"encoder.size={size}", f"encoder.patch={patch}", f"run.micro={images}")
    changed += (f"predictor.width={width}", "predictor.depth=6", f"predictor.heads={HEADS[size]}")
    changed += (f"run.batch={images}", f"run.precision={precision}", "run.compile=false", "data.root=.", *sets)
    recipe, installed = load("ijepa/vitb16_in1k", changed)
    recipe = replace(recipe, data={})
    method = build_method(recipe, installed).train()
    view = installed.parts["views"]["crop"].make(size=side)
    sampler = {key: value for key, value in recipe.masks["image"].items() if key != "use"}
    masks = installed.parts["masks"][recipe.masks["image"]["use"]].make(**sampler)
    sources = Sources((), {"image": Views(view)}, {"image": masks})  # type: ignore[arg-type]
    torch.manual_seed(0)
    pixels = torch.randn(1, images, 3, side, side)
    batches = [fake_batch(sources, method.student.encoder, images, at=step) for step in range(DRAWS)]
    batches = [replace(one, groups={"image": replace(one.groups["image"], pixels=pixels)}) for one in batches]
    guard = Guard(Folder(Path(tempfile.mkdtemp())), World(), Stop())
    optimizer = build_optimizer(recipe, installed, method)
    optim.set_schedules(optimizer, recipe.optim_keys, AT)
    learner = Learner(recipe.run, recipe.optim_keys, method, method, optimizer, guard, World())
    return lambda turn: (learner.step([batches[turn % DRAWS]], AT), None)[1], batches


def published(size: str, batches: list[Batch], bf16: bool) -> Step:
    """A step of the published code on the same batches."""
    from src.models import vision_transformer as vit  # type: ignore[import-not-found]
    from src.utils.logging import grad_logger  # type: ignore[import-not-found]
    from src.utils.tensors import repeat_interleave_batch  # type: ignore[import-not-found]

    apply_masks = vit.apply_masks
    side, patch, images, width = SIZES[size]
    encoder = getattr(vit, f"vit_{size}")(patch_size=patch, img_size=[side])
    shape = {"num_patches": encoder.patch_embed.num_patches, "embed_dim": encoder.embed_dim}
    predictor = vit.vit_predictor(**shape, predictor_embed_dim=width, depth=6, num_heads=HEADS[size])
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-4, weight_decay=0.04)

    def step(turn: int) -> None:
        group = batches[turn % DRAWS].groups["image"]
        pixels, mask = group.pixels[0], group.mask
        assert mask is not None
        seen, asked = [mask.context.index], list(mask.target.index.unbind(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                h = teacher(pixels)
                h = apply_masks(F.layer_norm(h, (h.size(-1),)), asked)
                h = repeat_interleave_batch(h, images, repeat=len(seen))
            loss = F.smooth_l1_loss(predictor(encoder(pixels, seen), seen, asked), h)
        loss.backward()
        optimizer.step()
        grad_logger(encoder.named_parameters())
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, its in zip(encoder.parameters(), teacher.parameters(), strict=True):
                its.mul_(0.996).add_((1.0 - 0.996) * mine)
        loss.item()

    return step


def timed(steps: dict[str, Step], rounds: int, least: float = 0.5) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of a step, by name, of each round; every round goes through all of them."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for step in steps.values():
        step(0)
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu, count = time.perf_counter(), time.process_time(), 0
            while count < DRAWS or (count % DRAWS or time.process_time() - cpu < least):
                step(count)
                count += 1
            found[name].append(((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count))
    return found


def table(size: str, images: int, found: dict[str, list[tuple[float, float]]], base: str) -> str:
    """Milliseconds a step, best and median, and how many times faster than `base`."""
    lines = [f"ViT-{size}, batch {images}: CPU ms best, median (times {base}); wall ms best, median"]
    for name, rounds in found.items():
        row = f"  {name:<16}"
        for which in (0, 1):
            mine, theirs = ([one[which] for one in some] for some in (rounds, found[base]))
            for pick in (min, statistics.median):
                row += f"{1000 * pick(mine):9.1f} ({pick(theirs) / pick(mine):.2f})"
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    sys.path.insert(0, str(given.checkout))
    torch.set_num_threads(given.threads)
    write: Any = sys.stdout.write
    write(f"torch {torch.__version__}, {given.threads} threads, {given.rounds} rounds, turn by turn\n")
    for size in given.sizes:
        own, batches = ours(size, "fp32")
        steps = {"published fp32": published(size, batches, bf16=False), "ours fp32": own}
        steps |= {"published bf16": published(size, batches, bf16=True), "ours bf16": ours(size, "bf16")[0]}
        write(table(size, SIZES[size][2], timed(steps, given.rounds), "published fp32") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
