"""How do metrics get to TensorBoard? Into the run folder, if it is installed: `pip install tensorboard`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslzoo import Progress, hookimpl

_WRITERS: dict[Path, Any] = {}  # by run folder; None where it cannot be written


def _opened(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


@hookimpl
def sslzoo_log(metrics: Mapping[str, float], at: Progress, folder: Path) -> None:
    """Writes every number of a line as a scalar at its step."""
    if find_spec("tensorboard") is None:
        return
    try:
        if folder not in _WRITERS:
            _WRITERS[folder] = _opened(folder)
        if (writer := _WRITERS[folder]) is None:
            return
        for name, value in metrics.items():
            if name != "step":
                writer.add_scalar(name, value, int(metrics["step"]))
        if at.last:
            writer.flush()
    except (OSError, UnicodeError) as error:  # numbers stand in metrics.jsonl: a copy of them is not worth a run
        _WRITERS[folder] = None
        warnings.warn(f"{folder / 'tensorboard'} gets no more numbers: {error}", stacklevel=1)
