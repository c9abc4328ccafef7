"""How do metrics get to TensorBoard? Into the run folder, if it is installed: `pip install tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslzoo import Progress, hookimpl


@cache
def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


@hookimpl
def sslzoo_log(metrics: Mapping[str, float], at: Progress, folder: Path) -> None:
    """Writes every number of a line as a scalar at its step."""
    if find_spec("tensorboard") is None:
        return
    writer = _writer(folder)
    for name, value in metrics.items():
        if name != "step":
            writer.add_scalar(name, value, int(metrics["step"]))
    if at.last:
        writer.flush()
