"""How fast is a step of the published I-JEPA code here? Its own models and masks, timed as `sslzoo bench` times ours.

python benchmarks/published_ijepa.py CHECKOUT [--model vit_base] [--patch 16] [--images 256] [--out FILE]

CHECKOUT is a clone of the authors' repository. Batches are ready-made, as those of `sslzoo bench`, and travel to the
device in each step; the arithmetic is done in the order of their training loop.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import layer_norm, smooth_l1_loss

from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.speed import STAGES, Result, matmul_rate

READY = 4


def stepper(given: argparse.Namespace, device: torch.device) -> Callable[[], float]:
    """One step of the published code as a function."""
    sys.path.insert(0, given.checkout)
    from src.helper import init_model  # type: ignore[import-not-found]
    from src.masks.multiblock import MaskCollator  # type: ignore[import-not-found]
    from src.masks.utils import apply_masks  # type: ignore[import-not-found]
    from src.utils.tensors import repeat_interleave_batch  # type: ignore[import-not-found]

    logging.disable(logging.INFO)
    size = {"patch_size": given.patch, "model_name": given.model, "crop_size": 224}
    student, predictor = init_model(device, pred_depth=given.depth, pred_emb_dim=384, **size)
    teacher = copy.deepcopy(student).requires_grad_(False)
    collate = MaskCollator(
        input_size=224,
        patch_size=given.patch,
        enc_mask_scale=(0.85, 1.0),
        pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5),
        nenc=1,
        npred=4,
        min_keep=1 if given.rehearse else 10,
        allow_overlap=False,
    )
    pictures = [torch.randn(3, 224, 224) for _ in range(given.images)]
    ready = [collate(pictures) for _ in range(READY)]
    if device.type == "cuda":  # as its loader does
        ready = [(x.pin_memory(), *([mask.pin_memory() for mask in some] for some in rest)) for x, *rest in ready]
    batches = cycle(ready)
    learned = [*student.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW([parameter for parameter in learned if parameter.requires_grad])
    bf16 = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=bf16)

    def step() -> float:
        images, contexts, blocks = next(batches)
        images = images.to(device, non_blocking=True)
        contexts, blocks = ([mask.to(device, non_blocking=True) for mask in some] for some in (contexts, blocks))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                seen = teacher(images)
                wanted = apply_masks(layer_norm(seen, (seen.shape[-1],)), blocks)
                wanted = repeat_interleave_batch(wanted, len(images), repeat=len(contexts))
            loss = smooth_l1_loss(predictor(student(images, contexts), contexts, blocks), wanted)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.mul_(0.996).add_((1 - 0.996) * ours.detach())
        return float(loss)  # their loop reads it in every step

    return step


def main() -> None:
    """Times it, and writes it as `sslzoo bench --out` does."""
    options = argparse.ArgumentParser()
    options.add_argument("checkout")
    for name, value in {"model": "vit_base", "patch": 16, "images": 256, "depth": 6, "steps": 10, "rounds": 4}.items():
        options.add_argument(f"--{name}", type=type(value), default=value)
    options.add_argument("--recipe", default="ijepa/vitb16_in1k", help="ours, whose arithmetic both are counted by")
    options.add_argument("--out", type=Path)
    options.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    given = options.parse_args()
    if given.rehearse:
        given.model, given.patch, given.images, given.depth, given.steps, given.rounds = "vit_tiny", 32, 2, 1, 2, 1
    device = torch.device("cuda" if torch.cuda.is_available() and not given.rehearse else "cpu")
    step, rounds, took = stepper(given, device), [], []
    for _ in range(READY):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(given.rounds):
        begun = time.perf_counter()
        for _ in range(given.steps):
            since = time.perf_counter()
            step()  # its loss is read, so the device is done
            took.append(time.perf_counter() - since)
        rounds.append(given.images * given.steps / (time.perf_counter() - begun))
    cast: Any = lambda: torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # noqa: E731
    ceiling = matmul_rate(SimpleNamespace(world=SimpleNamespace(device=device), cast=cast))  # type: ignore[arg-type]
    found = Result(
        recipe=f"published I-JEPA, {given.model}/{given.patch}",
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        processes=1,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision="bfloat16" if device.type == "cuda" else "float32",
        compile=False,
        data="ready",
        parallel="none",
        images=given.images,
        rounds=tuple(rounds),
        step=statistics.median(took),
        slowest=max(took),
        stages=dict.fromkeys(STAGES, 0.0) | {"rest": statistics.mean(took)},
        waited=0.0,
        stalls=0,
        steps=len(took),
        flops=check(*load(given.recipe)).flops,
        ceiling=ceiling,
        memory=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )
    print(f"{found.rate:.1f} images/s ({found.best:.1f} best)")
    if given.out:
        given.out.write_text(json.dumps([found.as_dict()], indent=1) + "\n")


if __name__ == "__main__":
    main()
