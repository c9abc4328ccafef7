"""What does a predictor guess? Its guesses and the targets, both drawn by a decoder that learned from targets alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib import rc_context
from torch import Tensor

from sslzoo.contracts import Batch, Grid, Mask
from sslzoo.nn import patchify
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe.build import build_sources
from sslzoo.recipe.recipe import Recipe
from sslzoo.report.charts import SVG, Chart, Rows, chart
from sslzoo.report.insides import SHOWN, THUMB, boards, pictures
from sslzoo.run import data, loader
from sslzoo.run.networks import device_of, evaluating
from sslzoo.run.processes import World
from sslzoo.step import Method, encode_and_predict, sequences

IMAGES, BATCHES = 32, 24  # of a batch, and batches that the decoder learns from; one more is drawn


@dataclass(frozen=True)
class Guesses:
    """Target patches of a batch: what was predicted, what is right, and the pixels there."""

    prediction: Tensor  # [t e]
    target: Tensor  # [t e]
    pixels: Tensor  # [t p]
    image: Tensor  # of each row: which sequence [t]
    index: Tensor  # and which patch of it [t]
    whole: Tensor  # all patches of each sequence [s N p]
    seen: Tensor  # which of them the encoder saw, bool [s N]
    grid: Grid


def of_predictions(recipe: Recipe, installed: Catalogue, method: Method, title: str) -> Chart | None:
    """A chart of images, what was seen, and what target and prediction say of the rest.

    None where a method guesses no patches, or no plugin decodes.
    """
    group, term = _masked(recipe), _term(method)
    if group is None or term is None or not installed.manager.hook.sslzoo_decode.get_hookimpls():
        return None
    batches, there = _batches(recipe, installed, method)
    if there < 2:
        return None  # one to learn from, another to draw
    found = [guesses(method, batches(number), group, *term) for number in range(min(BATCHES + 1, there))]
    learned, drawn = found[1:], found[0]
    rows = [torch.cat([getattr(one, side) for one in learned]) for side in ("target", "pixels")]
    decode = installed.manager.hook.sslzoo_decode(targets=rows[0], pixels=rows[1], seed=recipe.run.seed)
    return _drawn(drawn, decode, rows[1].mean(0), title)


@torch.no_grad()
def guesses(method: Method, batch: Batch, name: str, predict: str, owner: str, key: str) -> Guesses:
    """Predictions and targets of one batch, in eval mode: the predictor's signal `predict`, and OWNER.KEY."""
    at = Progress(0, 1, 1)
    with evaluating(method):
        student = encode_and_predict(method.student, batch, at)
        signals = method.targets[owner](batch, student, at)
    group = batch.groups[name]
    mask: Mask = group.mask  # type: ignore[assignment]
    pixels = sequences(group)
    grid = method.student.encoder.grid((pixels.shape[-2], pixels.shape[-1]))
    whole = patchify(pixels, (pixels.shape[-2] // grid[0], pixels.shape[-1] // grid[1]))
    index = mask.target.flat(mask.target.index[..., None])[:, 0]
    image = batch.pairing.sequence
    seen = torch.zeros(whole.shape[:2], dtype=torch.bool, device=whole.device).scatter(1, mask.context.index, True)
    prediction, target = student.signals[predict].float(), signals[key].float()
    return Guesses(prediction, target, whole[image, index], image, index, whole, seen, grid)


def explained(found: Tensor, true: Tensor, mean: Tensor) -> float:
    """Share of the variance of true pixels [t p] that others explain: 1 is all; 0 is no better than the mean patch."""
    return 1 - ((found - true).square().sum() / (mean - true).square().sum().clamp(min=1e-12)).item()


def _drawn(one: Guesses, decode: Callable[[Tensor], Tensor], mean: Tensor, title: str) -> Chart:
    sides = {"the target": decode(one.target), "the prediction": decode(one.prediction)}
    shares = {name: explained(found, one.pixels, mean) for name, found in sides.items()}
    low, high = one.whole.amin((0, 1, 2)), one.whole.amax((0, 1, 2))
    show = lambda canvas: _images(((canvas - low) / (high - low).clamp(min=1e-6)).clamp(0, 1), one.grid)  # noqa: E731
    gray = (low + high) / 2
    veiled = torch.where(one.seen[..., None], one.whole, gray)
    shown: list[tuple[str, Tensor]] = [("image", show(one.whole)), ("what the encoder saw", show(veiled))]
    rows: Rows = []
    for name, found in sides.items():
        shown.append(
            (f"drawn from {name}: {shares[name]:.0%} of the pixels' variance", show(_laid(one, found, veiled)))
        )
        rows.append({"run": title, "drawn from": name, "share of variance": round(shares[name], 4)})
    with rc_context(SVG):
        page, parts = boards([name for name, _ in shown])
        for part, (_, some) in zip(parts, shown, strict=True):
            pictures(part, some[:SHOWN])
    caption = (
        f"{title}: what is predicted. A small decoder learned to draw patches from the representations that are right "
        "(the frozen targets), and never saw a prediction; here it draws both, on images it did not learn from, in the "
        "patches that were to be guessed (mean where blocks overlap). What is missing in the third row is not in the "
        "target, or not in the decoder; what is missing in the fourth alone was not predicted."
    )
    return chart("predictions", "What is predicted", caption, page, rows)


def _laid(one: Guesses, rows: Tensor, under: Tensor) -> Tensor:
    """Rows [t p] at their patches, over other patches [s N p]; the mean where several fall on one."""
    flat = one.image * under.shape[1] + one.index
    total = torch.zeros_like(under).flatten(0, 1).index_add(0, flat, rows.to(under.dtype))
    count = torch.zeros(len(total), device=total.device).index_add(0, flat, torch.ones_like(flat, dtype=torch.float))
    mean = (total / count.clamp(min=1)[:, None]).unflatten(0, under.shape[:2])
    return torch.where(count.view(under.shape[:2])[..., None] > 0, mean, under)


def _images(patches: Tensor, grid: Grid) -> Tensor:
    """Patches [s N p] as small images [s h w 3]."""
    side = round((patches.shape[-1] / 3) ** 0.5)
    tall, wide = side, patches.shape[-1] // 3 // side
    x = patches.unflatten(-1, (tall, wide, 3)).unflatten(1, grid)  # [s h w ph pw 3]
    x = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    small = (
        x if x.shape[-1] <= 2 * THUMB else torch.nn.functional.interpolate(x, size=(2 * THUMB, 2 * THUMB), mode="area")
    )
    return small.permute(0, 2, 3, 1).cpu()


def _masked(recipe: Recipe) -> str | None:
    """The group of views with masks, if there is exactly one."""
    return next(iter(recipe.masks)) if len(recipe.masks) == 1 else None


def _term(method: Method) -> tuple[str, str, str] | None:
    """The first loss that compares predicted patches with target patches: signal, target's owner and its signal."""
    outputs = method.student.predictor.outputs
    for term in method.terms.values():
        side, _, key = term.predict.partition(".")
        owner, _, own = (term.target or "").partition(".")
        if side != "predictor" or outputs[key].kind != "patch" or owner not in method.targets:
            continue
        signal = method.targets[owner].outputs[own]
        if not signal.ids and signal.width == outputs[key].width:
            return key, owner, own
    return None


def _batches(recipe: Recipe, installed: Catalogue, method: Method) -> tuple[Callable[[int], Batch], int]:
    """Training batches of the first epoch by number, of different images; and how many there are."""
    sources = build_sources(recipe, installed)
    count = min(IMAGES, max(1, len(sources.data) // 2))
    world = World(device=device_of(method))
    micros = data.undivided(sources, method.student.encoder, count, recipe.run.seed, world)
    return lambda number: loader.passed(micros[number]).to(world.device).normalized(), micros.order.epoch_steps
