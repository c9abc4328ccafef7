"""How is the encoder of a run used from Python? `load_encoder` for the network, `load_view` for its pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslzoo.errors import RunError
from sslzoo.evaluate.bench import restored
from sslzoo.recipe.build import make
from sslzoo.recipe.recipe import load_run
from sslzoo.run.data import ready
from sslzoo.run.networks import evaluated_encoder


def load_encoder(run: str | os.PathLike[str], network: str | None = None, step: int | None = None) -> nn.Module:
    """The trained encoder of a run folder: on the CPU, in eval mode, its parameters frozen.

    Called with normalized pixels [s 3 H W] (`load_view` makes them) it gives `Tokens`: `patches` [s N d] and
    `summary` [s d], the vector for the whole image that probes read. `encoder(pixels, None, 4).layers` are the patches
    of the last four blocks, each [s N d]. `encoder.width` is d. The training data are not opened.

    Args:
        run: the run folder.
        network: a target generator's name, such as `teacher`, or `student`; what `sslzoo eval` takes if left out.
        step: the checkpoint of this step; the newest that can be read if left out.

    Raises:
        UserError: the folder holds no run.
        RunError: the run has no such network, no such checkpoint, or none yet.
    """
    recipe, installed = load_run(Path(run))
    method, _ = restored(recipe, installed, Path(run), step, _warn)
    chosen = recipe.evaluate.network if network is None and recipe.evaluate is not None else network or "auto"
    return evaluated_encoder(method, chosen).eval().requires_grad_(False)


def load_view(run: str | os.PathLike[str]) -> Callable[[Any], Tensor]:
    """The view of a run's section `evaluate`, as a function: an RGB PIL image, or bytes [3 H W], to pixels [3 H W].

    The pixels are cut, resized and normalized as the encoder reads them: float32.

    Raises:
        UserError: the folder holds no run.
        RunError: its recipe has no section `evaluate`.
    """
    recipe, installed = load_run(Path(run))
    if recipe.evaluate is None:
        raise RunError(
            f"the recipe of {run} has no section evaluate, so it names no view without randomness; "
            "cut and resize images yourself, and normalize them with mean and std of its section views"
        )
    view = make(installed, "views", recipe.evaluate.view, place="evaluate.view")
    return lambda image: ready(view, view(image)[0])


def _warn(text: str) -> None:
    """A library warns of newer checkpoints that are damaged, and does not tell which one is whole."""
    if text.startswith("warning: "):
        warnings.warn(text.removeprefix("warning: "), stacklevel=4)
