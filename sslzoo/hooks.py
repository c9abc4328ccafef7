"""What can a plugin offer? The hook specifications; their docstrings are the plugin manual.

A plugin is a module with functions marked `@hookimpl` that carry the names below. A family hook returns a mapping from
the name a recipe uses (`use: NAME`) to a class. It is called once, when the catalogue is made. Two plugins that offer
one name in one family are an error that names both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    from torch import Tensor

    from sslzoo.progress import Progress

hookspec = pluggy.HookspecMarker("sslzoo")
hookimpl = pluggy.HookimplMarker("sslzoo")


@hookspec
def sslzoo_datasets() -> Mapping[str, type]:
    """Data sets by recipe name, for the recipe's section `data`.

    A data set is made with the recipe's keys and has `len`, `image(i)`, `tasks` and `label(i)`
    (`sslzoo.contracts.Dataset`).

        @hookimpl
        def sslzoo_datasets():
            return {"folder": Folder}
    """
    raise NotImplementedError


@hookspec
def sslzoo_views() -> Mapping[str, type]:
    """Views (augmentations) by recipe name, for the section `views`.

    A view turns an image into pixels and the box it was cut from, `(image) -> ([3 H W], [4])`, and has `size`
    (`sslzoo.contracts.View`). It runs in loader workers with torch, random and numpy seeded for the image.

        @hookimpl
        def sslzoo_views():
            return {"crop": Crop}
    """
    raise NotImplementedError


@hookspec
def sslzoo_masks() -> Mapping[str, type]:
    """Mask samplers by recipe name, for the section `masks`.

    A sampler decides what may be seen and what must be guessed, `(batch, grid, rng) -> Mask`, for a whole batch at
    once (`sslzoo.contracts.MaskSampler`). It runs in loader workers, on the CPU.

        @hookimpl
        def sslzoo_masks():
            return {"random": Random}
    """
    raise NotImplementedError


@hookspec
def sslzoo_encoders() -> Mapping[str, type]:
    """Encoders by recipe name, for the section `encoder`.

    An encoder is an nn.Module, `(pixels, context, layers) -> Tokens` (`sslzoo.contracts.Encoder`).

        @hookimpl
        def sslzoo_encoders():
            return {"vit": ViT}
    """
    raise NotImplementedError


@hookspec
def sslzoo_predictors() -> Mapping[str, type]:
    """Predictors by recipe name, for the section `predictor`.

    A predictor is an nn.Module made with the encoder, `(tokens, target, at) -> {name: signal}`; it declares its
    signals in `outputs` (`sslzoo.contracts.Predictor`).

        @hookimpl
        def sslzoo_predictors():
            return {"ijepa": Joint}
    """
    raise NotImplementedError


@hookspec
def sslzoo_targets() -> Mapping[str, type]:
    """Target generators by recipe name, for the section `targets`.

    A target generator is an nn.Module made with the student, `(batch, student, at) -> {name: signal}`. It owns any
    teacher, and moves it in `after_step` (`sslzoo.contracts.TargetGenerator`).

        @hookimpl
        def sslzoo_targets():
            return {"ema": Ema}
    """
    raise NotImplementedError


@hookspec
def sslzoo_losses() -> Mapping[str, type]:
    """Losses by recipe name, for the section `losses`.

    A loss is an nn.Module made with the signal it reads, `(prediction, target, pairing, at) -> (scalar, metrics)`,
    written for one process (`sslzoo.contracts.Loss`).

        @hookimpl
        def sslzoo_losses():
            return {"mse": Mse}
    """
    raise NotImplementedError


@hookspec
def sslzoo_optimizers() -> Mapping[str, type]:
    """Optimizers by recipe name, for the section `optim`.

    An optimizer is a `torch.optim.Optimizer` made with parameter groups; the engine sets `lr` and `weight_decay` of
    each group before every step (`sslzoo.contracts.Optimizer`).

        @hookimpl
        def sslzoo_optimizers():
            return {"adamw": AdamW}
    """
    raise NotImplementedError


@hookspec
def sslzoo_probes() -> Mapping[str, type]:
    """Probes (evaluations of frozen features) by recipe name, for `evaluate.probes` and `sslzoo eval --probe`.

    A probe turns labeled features into figures, `(train, test, seed) -> {figure: value}`
    (`sslzoo.contracts.Probe`).

        @hookimpl
        def sslzoo_probes():
            return {"knn": Knn}
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def sslzoo_decode(targets: Tensor, pixels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Learn to draw patches from frozen target representations [t e] and their pixels [t p]: returns [n e] -> [n p].

    The page of a run draws with it what a predictor says beside what the target says; it never sees a prediction. The
    first plugin that returns a decoder is taken.

        @hookimpl
        def sslzoo_decode(targets, pixels, seed):
            solved = torch.linalg.lstsq(targets, pixels).solution
            return lambda rows: rows @ solved
    """
    raise NotImplementedError


@hookspec
def sslzoo_recipes() -> Path:
    """A folder of recipes, found by name: `FOLDER/tiny/ijepa.yaml` is `sslzoo train tiny/ijepa`.

    Its folders `clusters` and `studies` hold no recipes, but cluster profiles and studies.

        @hookimpl
        def sslzoo_recipes():
            return Path(__file__).parent / "recipes"
    """
    raise NotImplementedError


@hookspec
def sslzoo_commands(cli: click.Group) -> None:
    """Add commands to the command line. Called once, where a command is typed that sslzoo itself does not have.

    Keep heavy imports inside the commands: all plugins' are added before one is called.

        @hookimpl
        def sslzoo_commands(cli):
            @cli.command()
            def hello(): ...
    """


@hookspec
def sslzoo_log(metrics: Mapping[str, float], at: Progress, folder: Path) -> None:
    """Take a line of metrics to a tracker. Called on rank 0 for every line of metrics.jsonl; `folder` is the run's.

    An exception ends the run.

        @hookimpl
        def sslzoo_log(metrics, at, folder):
            mlflow.log_metrics(metrics, step=at.step)
    """
