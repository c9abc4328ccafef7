"""Will the evaluation at the end of a run work? Tried before the first step, not found out days later."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Dataset
from sslzoo.errors import ImageError, Problem, RecipeError, RunError, shown
from sslzoo.evaluate.bench import Bench, asked_pools, bench
from sslzoo.evaluate.drawn import drawn
from sslzoo.evaluate.features import pooled
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import build_method, located, make
from sslzoo.recipe.recipe import Recipe
from sslzoo.recipe.sections import Evaluate
from sslzoo.recipe.signature import expand, keys_of, takes
from sslzoo.run.data import look, read
from sslzoo.run.identity import misfit
from sslzoo.run.networks import evaluated_encoder

PATIENCE = 10.0  # seconds that a look at all labels of a data set may take


def rehearse(recipe: Recipe, installed: Catalogue, *, data: bool = True) -> tuple[str, ...]:
    """Tries everything of the section `evaluate`, if there is one; returns remarks on its data.

    Without `data`, as `check` does, no data set is opened: the network is there, the view suits its patches, it has the
    layers, and probes run on drawn features. With `data` also: the data exist, the first images can be read, tasks and
    classes of train and test agree, and every label is one of them.

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
            for name, some in (("train", opened.train), ("test", opened.test)):
                problems += _labels(some, f"evaluate.{name}")
    network, found = _network(recipe, installed, settings)
    problems += found
    for name, spec in settings.probes.items():
        augmented = settings.augment is not None
        problems += _probe(installed, f"evaluate.probes.{name}", spec, network, augmented=augmented)
    if problems:
        known = {(problem.place, problem.message): problem for problem in problems}  # bench tells some of them too
        raise recipe.text.error(list(known.values()))
    return () if opened is None else opened.remarks


def absent(recipe: Recipe, installed: Catalogue) -> tuple[str, ...]:
    """What data sets and `start` name and this machine does not have: folders and files, looked for and not opened.

    A recipe may be checked where its data are not, so these are remarks; training refuses. What a data set may
    download is left out; of a pattern such as shard-{000..146}.tar, the folder is looked for.
    """
    specs = {"data": recipe.data}
    if recipe.evaluate is not None:
        specs |= {"evaluate.train": recipe.evaluate.train, "evaluate.test": recipe.evaluate.test}
    found = [] if recipe.start is None else [f"start.file: {what}" for what in _absent(recipe.start.file)]
    for place, spec in specs.items():
        fields = keys_of(installed.find("datasets", str(spec["use"])).make).model_fields
        for name in fields if not spec.get("download") else ():
            if isinstance(spec.get(name), str) and takes(fields[name].annotation, Path):
                found += [f"{place}.{name}: {what}" for what in _absent(Path(spec[name]))]
    return tuple(found)


def _absent(path: Path) -> list[str]:
    try:
        there = Path(expand(path))
    except ValueError as error:
        return [str(error)]
    there = Path(*itertools.takewhile(lambda part: not set(part) & set("*?[{"), there.parts))
    try:
        return [] if there.exists() else [f"no file or folder is called {shown(str(there))} on this machine"]
    except OSError as error:
        return [f"{shown(str(there))} cannot be looked at: {error.strerror}"]


@dataclass(frozen=True)
class Network:
    """An encoder on the meta device, that gave tokens: shapes, and no numbers."""

    encoder: Any
    pixels: Tensor

    def read(self, name: str) -> Tensor:
        """Features by the name of a pool."""
        return pooled(self.encoder, self.encoder(self.pixels, None, 4 if name.endswith("4") else 0), name)


def _network(recipe: Recipe, installed: Catalogue, settings: Evaluate) -> tuple[Network | None, list[Problem]]:
    """The network that will be evaluated, if it gives tokens of the view."""
    try:
        view = make(installed, "views", settings.view, place="evaluate.view")
        spec = settings.augment
        more = view if spec is None else make(installed, "views", spec, place="evaluate.augment")
    except RecipeError as error:
        return None, list(error.problems)
    with torch.device("meta"):
        method = build_method(recipe, installed)
    try:
        encoder: Any = evaluated_encoder(method, settings.network)
    except RunError as error:
        return None, [Problem("evaluate.network", str(error))]
    try:
        encoder.grid(view.size)
    except ValueError as error:
        return None, [Problem("evaluate.view", str(error))]
    except Exception as error:  # a plugin's own mistake, told as one
        return None, [Problem("evaluate.view", f"the encoder failed on {view.size}: {located(error)}")]
    if tuple(more.size) != tuple(view.size):
        return None, [Problem("evaluate.augment", f"its size is {more.size}, that of evaluate.view {view.size}")]
    depth = len(encoder.blocks)
    if settings.layers > depth:
        return None, [Problem("evaluate.layers", f"found {settings.layers}; the encoder has {depth} blocks")]
    try:
        with torch.no_grad():
            pixels = torch.empty(2, 3, *view.size, device="meta")
            tokens = encoder.eval()(pixels, None, settings.layers)
    except Exception as error:  # a plugin's own mistake, told as one
        return None, [Problem("evaluate", f"the encoder failed on {view.size}: {located(error)}")]
    if len(tokens.layers) != settings.layers:
        text = f"found {settings.layers}; the encoder gives the outputs of {len(tokens.layers)} blocks"
        return None, [Problem("evaluate.layers", text)]
    return Network(encoder, pixels), []


def _probe(
    installed: Catalogue, place: str, spec: Mapping[str, Any], network: Network | None, *, augmented: bool
) -> list[Problem]:
    """A probe on drawn features, of as many rows as `verify` takes."""
    try:
        probe = make(installed, "probes", spec, place=place)
    except RecipeError as error:
        return list(error.problems)
    pools = asked_pools([probe])
    try:
        if network is not None:
            getattr(probe, "check", lambda _: None)(network.encoder)
            with torch.no_grad():
                _ = [network.read(name) for name in pools]
    except (RunError, ValueError) as error:
        return [Problem(place, str(error))]
    except Exception as error:  # a plugin's own mistake, told as one
        return [Problem(place, f"failed when it was asked about the encoder: {located(error)}")]
    rng = torch.Generator().manual_seed(0)
    train, test = (
        drawn(torch.randn(rows, 16, generator=rng), torch.randint(4, (rows,), generator=rng), 4, augmented=augmented)
        for rows in (200, 100)
    )
    try:
        probe(train, test, 0)
    except RunError as error:
        return [Problem(place, str(error))]
    except Exception as error:  # a plugin's own mistake, or a setting that its constructor did not refuse
        return [Problem(place, f"failed on drawn features: {located(error)}")]
    return []


def _first_images(opened: Bench) -> list[Problem]:
    problems = []
    for name, data in (("train", opened.train), ("test", opened.test)):
        try:
            look(opened.view, read(data, 0), 0)
        except ImageError as error:
            problems.append(Problem(f"evaluate.{name}", f"its first image cannot be read: {error}"))
        except RunError as error:
            problems.append(Problem("evaluate.view", str(error)))
    return problems


def _labels(data: Dataset, place: str) -> list[Problem]:
    """The first label that is no class of its task. Most data sets know theirs by heart: millions take seconds.

    Of one that reads each image for its label, as many are looked at as can be in PATIENCE.
    """
    began = monotonic()
    for i in range(len(data)):
        try:
            wrong = misfit(data, i, data.label(i))
        except (OSError, ValueError) as error:
            wrong = f"the label of image {i} cannot be read: {error}"
        if wrong:
            return [Problem(place, wrong)]
        if monotonic() - began > PATIENCE:
            break
    return []
