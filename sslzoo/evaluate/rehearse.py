"""Will the evaluation at the end of a run work? Tried before the first step, not found out days later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sslzoo.contracts import Features
from sslzoo.errors import Problem, RecipeError, RunError
from sslzoo.evaluate.bench import Bench, bench, refused
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import build_method, make
from sslzoo.recipe.recipe import Evaluate, Recipe
from sslzoo.run.data import UNREADABLE, seed_views
from sslzoo.run.monitor import evaluated_encoder


def rehearse(recipe: Recipe, installed: Catalogue, *, data: bool = True) -> tuple[str, ...]:
    """Tries everything of the section `evaluate`, if there is one; returns remarks on its data.

    Without `data`, as `check` does, no data set is opened: the network is there, the view suits its patches, it has the
    layers, and probes run on drawn features. With `data` also: the data exist, the first images can be read, tasks and
    classes of train and test agree.

    Raises:
        RecipeError: everything that does not fit, at once.
    """
    settings = recipe.evaluate
    if settings is None:
        return ()
    problems: list[Problem] = []
    opened = None
    if data:
        try:
            opened = bench(recipe, installed)
        except RecipeError as error:
            problems += error.problems
        else:
            problems += _first_images(opened)
    problems += _network(recipe, installed, settings)
    for name, spec in settings.probes.items():
        problems += _probe(installed, f"evaluate.probes.{name}", spec)
    if problems:
        known = {(problem.place, problem.message): problem for problem in problems}  # bench tells some of them too
        raise refused(recipe, list(known.values()))
    return () if opened is None else opened.remarks


def _network(recipe: Recipe, installed: Catalogue, settings: Evaluate) -> list[Problem]:
    """On the meta device: shapes, and no numbers."""
    try:
        view = make(installed, "views", settings.view, place="evaluate.view")
    except RecipeError as error:
        return list(error.problems)
    with torch.device("meta"):
        method = build_method(recipe, installed)
    try:
        encoder: Any = evaluated_encoder(method, settings.network)
    except RunError as error:
        return [Problem("evaluate.network", str(error))]
    try:
        encoder.grid(view.size)
    except ValueError as error:
        return [Problem("evaluate.view", str(error))]
    depth = len(encoder.blocks)
    if settings.layers > depth:
        return [Problem("evaluate.layers", f"found {settings.layers}; the encoder has {depth} blocks")]
    try:
        with torch.no_grad():
            tokens = encoder.eval()(torch.empty(2, 3, *view.size, device="meta"), None, settings.layers)
    except Exception as error:  # a plugin's own mistake, told as one
        return [Problem("evaluate", f"the encoder failed on {view.size}: {type(error).__name__}: {error}")]
    if len(tokens.layers) != settings.layers:
        text = f"found {settings.layers}; the encoder gives the outputs of {len(tokens.layers)} blocks"
        return [Problem("evaluate.layers", text)]
    return []


def _probe(installed: Catalogue, place: str, spec: Mapping[str, Any]) -> list[Problem]:
    """A probe on drawn features, of as many rows as `verify` takes."""
    try:
        probe = make(installed, "probes", spec, place=place)
    except RecipeError as error:
        return list(error.problems)
    rng = torch.Generator().manual_seed(0)
    drawn = [
        Features(torch.randn(rows, 16, generator=rng), {"kind": torch.randint(4, (rows,), generator=rng)}, {"kind": 4})
        for rows in (200, 100)
    ]
    try:
        probe(drawn[0], drawn[1], 0)
    except Exception as error:  # a plugin's own mistake, or a setting that its constructor did not refuse
        return [Problem(place, f"failed on drawn features: {type(error).__name__}: {error}")]
    return []


def _first_images(opened: Bench) -> list[Problem]:
    problems = []
    for name, data in (("train", opened.train), ("test", opened.test)):
        try:
            image = data.image(0)
        except UNREADABLE as error:
            problems.append(Problem(f"evaluate.{name}", f"its first image cannot be read: {error}"))
            continue
        seed_views(0)
        shape = tuple(opened.view(image)[0].shape)
        if shape != (3, *opened.view.size):
            problems.append(Problem("evaluate.view", f"its view is {shape}, its size {opened.view.size}"))
    return problems
