"""What should a person see of a run at a glance? Its page: what it learnt, its curves, and what its encoder sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from sslzoo import files
from sslzoo.contracts import Grid
from sslzoo.evaluate.bench import Say, asked, restored, untrained
from sslzoo.evaluate.figures import main_figures
from sslzoo.evaluate.written import Columns
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import make
from sslzoo.recipe.recipe import Recipe, load
from sslzoo.report import doctor, html, insides, records, words
from sslzoo.report.charts import COLORS, SVG, Chart, Rows, chart, curve, legend
from sslzoo.report.doctor import Diagnosis
from sslzoo.report.html import Cell, Page, Table, number
from sslzoo.report.insides import Look
from sslzoo.report.predictions import of_predictions
from sslzoo.report.records import Record
from sslzoo.run.data import first_views
from sslzoo.run.networks import evaluated_encoder, network_of
from sslzoo.step import Method

SEEN = 256  # test images that are shown to the encoder

Lines = Sequence[Mapping[str, float]]


def of(folder: Path, say: Say = lambda _: None, patch: Grid | None = None) -> Path:
    """Writes the page of a run folder as it lies there; `say` hears of what is damaged; attention from a `patch`.

    Raises:
        RunError: it holds no recipe or no checkpoint that can be read, or there is no such patch.
    """
    recipe, installed = load(str(folder))
    method, step = restored(recipe, installed, folder, say=say)
    return write(recipe, installed, method, step, folder, lambda fault: say(f"warning: {fault}"), patch)


def write(
    recipe: Recipe,
    installed: Catalogue,
    method: Method,
    step: int,
    folder: Path,
    fault: Say = lambda _: None,
    patch: Grid | None = None,
) -> Path:
    """Writes the page of a run, report/index.html: of its method as trained for `step` steps, with its figures.

    Of several evaluations it shows those that answer the recipe. The doctor's verdict stands first. `fault` hears of
    each file that is damaged.
    """
    files.refuse_unwritable(folder / "report")
    record = records.own(folder, step)
    for one in record.faults:
        fault(one)
    health = doctor.diagnose(record)
    title = f"{recipe.name}, seed {recipe.run.seed}, {step} steps"
    trained = look(recipe, installed, method, title)
    start = evaluated_encoder(untrained(recipe, installed), _network(recipe))
    looks = [trained, Look(f"the same encoder untrained, seed {recipe.run.seed}", start, trained.pixels)]
    guessed = of_predictions(recipe, installed, method, title)
    page = Page(
        title=recipe.name,
        subtitle=f"seed {recipe.run.seed}, {step} steps of {recipe.run.batch} images",
        verdict=[*_health(health), *_learned(record)],
        evidence=health.evidence,
        tables=list(_tables(record, recipe, installed)),
        charts=[*_charts(record), *insides.charts(looks, patch), *([guessed] if guessed else [])],
        made=words.made(record),
        sources=words.sources(record),
    )
    return html.write(folder / "report", page)


def _health(found: Diagnosis) -> Iterator[str]:
    yield f"Health: {found.verdict}."
    if found.remedies:
        yield f"To try: {'; or '.join(found.remedies)}."


def opened(folder: Path, name: str, network: str | None = None) -> Look:
    """A network of a run folder, to look into; the one that its recipe evaluates, if left out.

    Raises:
        RunError: it holds no recipe or no checkpoint that can be read, or has no such network.
    """
    recipe, installed = load(str(folder))
    method, step = restored(recipe, installed, folder)
    return look(recipe, installed, method, f"{name}, seed {recipe.run.seed}, {step} steps", network)


def look(recipe: Recipe, installed: Catalogue, method: Method, title: str, network: str | None = None) -> Look:
    """A method's evaluated encoder with the images it is shown; with its masks if it has any."""
    named = network_of(method, network or _network(recipe))
    found = Look(f"{title}, {named}", evaluated_encoder(method, named), _pixels(recipe, installed), named)
    if not recipe.masks:
        return found
    group = next(iter(recipe.masks))
    sampler = make(installed, "masks", recipe.masks[group], place=f"masks.{group}")
    view = make(installed, "views", recipe.views[group], place=f"views.{group}")
    grid = method.student.encoder.grid(view.size)
    return replace(found, sampler=sampler, grid=grid, batch=recipe.run.micro or recipe.run.batch, seed=recipe.run.seed)


def _network(recipe: Recipe) -> str:
    return "auto" if recipe.evaluate is None else recipe.evaluate.network


def _pixels(recipe: Recipe, installed: Catalogue) -> Tensor:
    """Images as an evaluation sees them; of the training data where the recipe has no evaluation."""
    if recipe.evaluate is not None:
        data = make(installed, "datasets", recipe.evaluate.test, place="evaluate.test")
        view = make(installed, "views", recipe.evaluate.view, place="evaluate.view")
    else:
        data = make(installed, "datasets", recipe.data, place="data")
        group = next(iter(recipe.views))
        view = make(installed, "views", recipe.views[group], place=f"views.{group}")
    return first_views(data, view, len(data), SEEN, recipe.run.seed)


def _learned(record: Record) -> Iterator[str]:
    """What the figures of each network allow to say, in a sentence."""
    compared = {kind: record.gains(kind) for kind in record.networks}
    if not any(compared.values()):
        yield "Not compared with the same encoder untrained: sslzoo eval RUN --untrained does it."
        return
    for kind, gains in compared.items():
        listed = lambda names, of: ", ".join(f"{name} ({of[name]:+z.1f})" for name in names) or "none"  # noqa: E731
        better = sorted((name for name in gains if gains[name] > doctor.GAIN), key=lambda name: -gains[name])
        worse = [name for name in gains if gains[name] < -doctor.GAIN]
        if gains:
            more = f", most on {listed(better[:2], gains)}" if better else ""
            less = f"; below it on {listed(worse, gains)}" if worse else ""
            many = f"{len(better)} of {len(gains)} figures"
            yield f"The {kind} is above the same encoder untrained by over {doctor.GAIN} points on {many}{more}{less}."
    yield "One run: another seed may give other figures; sslzoo compare says how sure they are."


def _tables(record: Record, recipe: Recipe, installed: Catalogue) -> Iterator[Table]:
    wanted = recipe.evaluate and asked(recipe, installed)
    for kind, one in record.evaluated.items():
        gains = record.gains(kind)
        rows = [
            [Cell(name, name), *(number(value) for value in values), *([_signed(gains[name])] if name in gains else [])]
            for name, values in main_figures(one.columns)
        ]
        head = ["probe/task", *one.columns, *(["gain"] if gains else [])]
        note = f"Top-1 in percent on test images, read from frozen features. {words.read_how(one, installed)} "
        note += "Chance: telling the commonest class. "
        note += "Gain: trained less untrained. " if gains else ""
        other = "" if wanted and one.answers(wanted) else " These are not the settings of the run's own recipe."
        yield Table(f"Figures of the {kind}", f"{note}{words.how(one)}{other}", head, rows)


def _signed(value: float) -> Cell:
    return Cell(f"{value:+z.1f}", value)


def _charts(record: Record) -> Iterator[Chart]:
    if record.lines:
        yield _curves(record.lines, record.batch)
    if record.evaluated:
        yield _bars(next(iter(record.evaluated.values())).columns)


def _curves(lines: Lines, batch: int) -> Chart:
    known = {key for line in lines for key, value in line.items() if value is not None}
    spread = sorted(key for key in known if key.endswith("_std"))
    panels = {
        "loss": ["loss"],
        "spread over patches": spread,
        "effective rank": ["rankme"],
        "learning rate": ["lr"],
    }
    panels = {title: [key for key in keys if key in known] for title, keys in panels.items()}
    panels = {title: keys for title, keys in panels.items() if keys}
    rows: Rows = []
    with rc_context(SVG):
        page = Figure(figsize=(10, 3.0), layout="constrained")
        axes = page.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for ax, (title, keys) in zip(axes, panels.items(), strict=False):
            for number, key in enumerate(keys):
                label = words.spread_told(key)
                points = [(line["step"] * batch, line[key]) for line in lines if line.get(key) is not None]
                x, y = zip(*points, strict=True)
                curve(ax, x, smooth(y), COLORS[number % len(COLORS)], label)
                rows += [{"metric": key, "images": images, "value": value} for images, value in points]
            ax.set_title(title, fontsize=10, loc="left")
            ax.set_xlabel("images seen")
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
            if len(keys) > 1:
                legend(page, ax)
    caption = (
        "Loss (a moving average over a twentieth of the run; the CSV has every point); standard deviation of "
        "predictions and targets over patches, mean over channels, near 0 when all are alike; effective rank of the "
        "summaries of a fixed batch of training images (RankMe, Garrido et al. 2023), whose fall is collapse."
    )
    return chart("curves", "While training", caption, page, rows)


def smooth(y: Sequence[float], share: float = 0.05) -> list[float]:
    """A moving average over a twentieth of the run, centered; short runs are left as they are."""
    half = int(len(y) * share / 2)
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [sum(some) / len(some) for some in windows]


def _bars(figures: Columns) -> Chart:
    scores, columns = main_figures(figures), list(figures)
    wide = 0.8 / len(columns)
    rows: Rows = []
    with rc_context(SVG):
        page = Figure(figsize=(10, 3.2), layout="constrained")
        ax = page.subplots()
        for number, column in enumerate(columns):
            x = [row + (number - (len(columns) - 1) / 2) * wide for row in range(len(scores))]
            values = [values[number] for _, values in scores]
            shade = ("#D55E00", "#56B4E9", "#999999")[number % 3]
            ax.bar_label(ax.bar(x, values, wide, color=shade, label=column), fmt="%.0f", fontsize=6.5, color="#777777")
            rows += [{"probe/task": name, "encoder": column, "top-1": values[number]} for name, values in scores]
        ax.set_xticks(range(len(scores)), [name.replace("/", "\n") for name, _ in scores], fontsize=8)
        ax.set_ylabel("top-1 in percent")
        legend(page, ax)
    caption = (
        "Top-1 of each probe and task on test images, from frozen features: the trained encoder, the same encoder as "
        "it was drawn before training, and telling the commonest class."
    )
    return chart("figures", "What frozen features tell", caption, page, rows)
