"""What does a run tell? One JSON object a line; the numbers stay on the device until a line is due."""

from __future__ import annotations

import math
import resource
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslzoo import files
from sslzoo.contracts import Batch, Grid, true_entries
from sslzoo.progress import Progress
from sslzoo.run.parallel import all_mean
from sslzoo.step import Method

# Dense peak of the tensor cores in bfloat16, in FLOP/s, from the makers' data sheets. By the whole name that the driver
# gives: cards of one chip differ by their form (SXM, PCIe, NVL), and a slice of one (MIG) has its share.
PEAK = {
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100-PCIE-40GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "B200": 2250e12,
    "A40": 150e12,
    "L40S": 362e12,
    "GeForce RTX 4090": 165e12,
}


def rankme(x: Tensor, eps: float = 1e-7) -> Tensor:
    """Effective rank of features [n d]: exp of the entropy of the normalized singular values (Garrido et al. 2023).

    Not centered, in float32; between 1 (collapsed) and min(n, d). Nan for features that are not finite (torch's own
    decomposition would raise).
    """
    x = x.float()
    values = torch.linalg.svdvals(torch.where(x.isfinite().all(), x, 0.0))  # of zeros: 0 / 0 below
    share = values / values.sum() + eps
    return torch.exp(-(share * share.log()).sum())


def mask_shares(batches: Sequence[Batch], grids: Mapping[str, Grid]) -> dict[str, float]:
    """Share of patches the student sees, and share it must guess (blocks that overlap count once); and how many.

    `context_patches` is how many it sees of an image, over all its views and their masks. Means over the micro-batches
    of a step, which are on the CPU.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    for name, group in ((name, group) for batch in batches for name, group in batch.groups.items()):
        (views, images), whole = group.pixels.shape[:2], math.prod(grids[name])
        if group.role != "target":
            seen = views * whole if group.mask is None else group.mask.context.count / images
            shares["context_patches"] += seen / len(batches)
        if group.mask is not None:
            index, length = group.mask.target.index, group.mask.target.length
            if length is not None:  # padding falls on a column behind the last
                index = index.where(true_entries(length, index.shape[-1]), whole)
            guessed = torch.zeros(len(index), whole + 1).scatter_(1, index.flatten(1), 1.0)[:, :whole]
            shares[f"context_share/{name}"] += group.mask.context.count / (len(index) * whole) / len(batches)
            shares[f"target_share/{name}"] += guessed.mean().item() / len(batches)
    return dict(shares)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device at a run's precision, or None where it is not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return PEAK.get(torch.cuda.get_device_name(device).removeprefix("NVIDIA "))


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def collect(metrics: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Metrics as numbers: tensors averaged over ranks, in one reduction and one transfer; numbers as they are.

    They are 0-d; or, of rows, [2] or [4 e], as `step.weighed` and `step.moments` make them.
    """
    values = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    found: dict[str, float] = {}
    if values:
        flat = all_mean(torch.cat([x.detach().to(device, torch.float64).flatten() for x in values.values()])).cpu()
        for (name, x), part in zip(values.items(), flat.split([x.numel() for x in values.values()]), strict=True):
            found[name] = _number(part.view(x.shape)).item()
    return {name: found.get(name, value) for name, value in metrics.items()}  # type: ignore[misc]


def _number(x: Tensor) -> Tensor:
    """What a metric says; nan of no rows at all."""
    if x.ndim == 2:
        mean, square, variance = x[:3] / x[3]
        return (variance + square - mean.square()).clamp(min=0).sqrt().mean()
    return x[0] / x[1] if x.ndim else x


def of_parts(method: Method, at: Progress) -> dict[str, Tensor | float]:
    """What targets and predictors say of themselves: 0-d tensors, or numbers that are equal on every rank."""
    found = {}
    named: dict[str, Any] = {"predictor": method.student.predictor, **method.targets}
    for name, part in named.items():
        if hasattr(part, "metrics"):
            found |= {f"{name}/{key}": value for key, value in part.metrics(at).items()}
    return found


class Lines:
    """A metrics.jsonl file: appended to while a run goes on, cut back to the checkpoint when it resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digested = (0, 0, 0)  # bytes of the file so far, lines among them, and their checksum

    def rewind(self, step: int) -> None:
        """Drops lines after `step` steps, and lines that cannot be read; touches no file that needs none of it."""
        self._digested = (0, 0, 0)
        kept = self._until(step)
        if kept:
            files.write_whole(self.path, "".join(kept))
        else:
            self.path.unlink(missing_ok=True)

    def seconds(self) -> tuple[float, float]:
        """Seconds of training that the lines tell of, over all attempts; and those of the device."""
        last = (self.read() or [{}])[-1]
        seconds = last.get("seconds") or 0.0
        return seconds, last.get("device_seconds", seconds) or 0.0

    def write(self, line: Mapping[str, float]) -> None:
        """Appends a line; numbers that JSON lacks (nan, inf) become null. Raises RunError if it cannot."""
        files.append(self.path, [line])

    def digest(self, step: int) -> str:
        """What tells the lines up to `step` steps from others; a checkpoint remembers it."""
        lines = self._until(step)
        return _digest(len(lines), zlib.crc32("".join(lines).encode()))

    def digest_of_all(self) -> str:
        """The same of all lines; reads those that were added since it was last asked."""
        done, lines, checksum = self._digested
        fresh = files.read_bytes(self.path, done)
        self._digested = (done + len(fresh), lines + fresh.count(b"\n"), zlib.crc32(fresh, checksum))
        return _digest(*self._digested[1:])

    def _until(self, step: int) -> list[str]:
        return [files.written(line) + "\n" for line in self.read() if line["step"] <= step]

    def read(self) -> list[dict[str, float]]:
        """Every whole line."""
        return self.found()[0]

    def found(self) -> tuple[list[dict[str, float]], str]:
        """Every whole line, each of a later step than the one before; and what is wrong with the file, or nothing."""
        rows, fault = files.read_rows(self.path, _is_line)
        kept: list[dict[str, float]] = []
        for row in rows:
            if not kept or row["step"] > kept[-1]["step"]:
                kept.append(row)
        if len(kept) < len(rows) and not fault:
            fault = f"{self.path} is damaged: {len(rows) - len(kept)} lines repeat a step or go back, and are left out"
        return kept, fault


def _digest(lines: int, checksum: int) -> str:
    return f"{lines} lines, crc32 {checksum:08x}"


def _is_line(row: Mapping[str, object]) -> bool:
    """A step, and nothing but numbers; null where one was not finite."""
    numbers = all(value is None or type(value) in (int, float) for value in row.values())
    step, *seconds = row.get("step"), row.get("seconds") or 0.0, row.get("device_seconds") or 0.0
    known = all(isinstance(one, (int, float)) and one >= 0 for one in seconds)
    return numbers and isinstance(step, int) and step > 0 and known
