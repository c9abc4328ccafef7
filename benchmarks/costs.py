"""What does it cost to train the published methods? Counted arithmetic of the recipes beside their published accuracy.

python benchmarks/costs.py      (minutes; no data set, no GPU; writes docs/costs.md and docs/images/costs.png)

A step of each recipe is rehearsed on nothing and its operations are counted (`sslzoo check`), forward and backward,
with the mean over many masks; that, times the images seen. Accuracies are those told in the recipes' headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from sslzoo import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names

ROOT = Path(__file__).parents[1]
IMAGES = 1_281_167  # of ImageNet-1k
PEAK = 312e12  # bf16 operations a second of an A100, as its maker states
BUSY = 0.4  # the share of it that training is taken to reach
EXA = 1e18
BELOW = ("ijepa/", "mae/", "vicreg/", "simclr/rn152-2x-sk")  # whose labels would meet those above other points
METHODS = {  # marker and color of each, in the order of the legend
    "ijepa": ("I-JEPA", "o", "#d62728"),
    "mae": ("MAE", "s", "#1f77b4"),
    "cae": ("CAE", "D", "#17becf"),
    "data2vec": ("data2vec", "^", "#9467bd"),
    "dino": ("DINO", "o", "#2ca02c"),
    "ibot": ("iBOT", "s", "#8c564b"),
    "lejepa": ("LeJEPA", "D", "#e377c2"),
    "simclr": ("SimCLR v2", "o", "#7f7f7f"),
    "byol": ("BYOL", "s", "#bcbd22"),
    "vicreg": ("VICReg", "^", "#ff7f0e"),
}


@dataclass(frozen=True)
class Cost:
    """What a recipe costs, and what is published of it."""

    recipe: str
    image: float  # operations of an image, forward and backward
    images: int  # seen
    top1: float  # linear probe, ImageNet-1k

    @property
    def total(self) -> float:
        """Operations of the whole training."""
        return self.image * self.images

    @property
    def hours(self) -> float:
        """Hours of one A100 at the assumed share of its peak."""
        return self.total / (PEAK * BUSY) / 3600


def counted(name: str, top1: float) -> Cost:
    """The cost of a recipe of ImageNet-1k."""
    recipe, installed = load(name)
    run = recipe.run
    steps = run.steps or int((run.epochs or 0) * (IMAGES // run.batch))
    return Cost(name, check(recipe, installed).flops, steps * run.batch, top1)


def published() -> dict[str, float]:
    """The recipes whose header tells a linear probe on ImageNet-1k, with it."""
    found = {}
    for name, path in sorted(names(catalogue()).items()):
        expect = re.search(r"^# Expect: .*?linear probe (\d+\.?\d*)", path.read_text(), flags=re.M)
        if expect and name.split("/")[0] in METHODS and "legacy" not in name:
            found[name] = float(expect[1])
    return found


def architecture(name: str) -> str:
    """Such as H/14, RN50-2x or B/16-300EP."""
    told = name.split("/")[1].replace("_in1k", "").upper().replace("X", "x")
    return re.sub(r"^VIT([A-Z])", r"\1/", told)


def draw(costs: list[Cost], path: Path) -> None:
    """Published accuracy against counted cost."""
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots()
    for method, (told, marker, color) in METHODS.items():
        mine = sorted((cost for cost in costs if cost.recipe.startswith(f"{method}/")), key=lambda cost: cost.total)
        x, y = [cost.total / EXA for cost in mine], [cost.top1 for cost in mine]
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.4)
        axes.scatter(x, y, color=color, marker=marker, s=34, label=told, zorder=3)
        for cost in mine:
            at, off = (cost.total / EXA, cost.top1), (4, -10) if cost.recipe.startswith(BELOW) else (5, 4)
            axes.annotate(architecture(cost.recipe), at, off, textcoords="offset points", fontsize=7, color=color)
    axes.set_xscale("log")
    axes.set_xlim(40, 2600)
    axes.set_xticks([50, 100, 200, 500, 1000, 2000], ["50", "100", "200", "500", "1,000", "2,000"])
    axes.set_xlabel("counted operations of the whole pretraining, 10$^{18}$")
    axes.set_ylabel("published linear probe, ImageNet-1k, top-1 (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    figure.savefig(path, dpi=150)


def claims(by: dict[str, Cost]) -> str:
    """The paper's three sentences, beside what is counted."""
    huge, small, drawn = by["ijepa/vith14_in1k"], by["ibot/vits16_in1k"], by["mae/vith14_in1k"]
    alone = huge.total / PEAK / 3600
    rows = [
        (
            "ViT-H/14 in under 1,200 GPU hours (16 A100, under 72 hours)",
            f"{huge.total / EXA:.0f} x 10^18 operations: {alone:.0f} A100 hours at peak, so 1,200 hours are "
            f"{100 * alone / 1200:.0f} % of it",
            "fits",
        ),
        (
            "more than 2.5 times faster than iBOT's ViT-S/16",
            f"{huge.total / small.total:.1f} times the operations of iBOT's ViT-S/16",
            _verdict(small.total / huge.total, 2.5),
        ),
        (
            "more than 10 times more efficient than MAE's ViT-H/14",
            f"{drawn.total / huge.total:.1f} times fewer operations than MAE's ViT-H/14: "
            f"{drawn.images / huge.images:.1f} times fewer images, {huge.image / drawn.image:.1f} times as many each "
            f"(an iteration has half as many images, and {huge.image / drawn.image / 2:.1f} times the operations)",
            _verdict(drawn.total / huge.total, 10),
        ),
    ]
    lines = ["| the paper | counted | arithmetic alone |", "|---|---|---|"]
    return "\n".join(lines + [f"| {said} | {found} | {verdict} |" for said, found, verdict in rows])


def _verdict(times: float, claimed: float) -> str:
    if times >= claimed:
        return "fits"
    return f"explains a factor of {times:.1f} of {claimed:g}" if times > 1 else "points the other way"


PAGE = """# What training costs

Written by `python benchmarks/costs.py`. A step of each recipe is rehearsed on nothing and its operations are counted (a
multiplication and an addition are two), forward and backward, teachers and decoders included; that, times the images
seen. In the table are the recipes whose header tells a published linear probe on ImageNet-1k;
the others are left out, as are those of the legacy sampler. Accuracies are published ones, from
the recipes' headers. Hours are those of one A100 at {busy:.0f} % of its
{peak:.0f} TFLOP/s, a guess, and one for all: nothing here was measured.

![published accuracy against counted cost](images/costs.png)

| recipe | linear, top-1 | GFLOP an image | images seen, millions | 10^18 operations | A100 hours |
|---|---|---|---|---|---|
{rows}

## The paper's claims of cost

{claims}

What arithmetic cannot see: narrow networks and many small crops keep a GPU less busy than a wide one on long sequences;
batch norms over all ranks, several crops to decode and heads of many prototypes wait for other things than
multiplications. The paper's hours are measured ones. Where they and the count disagree, the difference lies there, or
in the codes compared; `sslzoo bench RECIPE` measures it on a machine.
"""


def main() -> None:
    """Counts, and writes the page and its figure."""
    costs = [counted(name, top1) for name, top1 in published().items()]
    rows = [
        f"| {cost.recipe} | {cost.top1:g} | {cost.image / 1e9:,.0f} | {cost.images / 1e6:,.0f} "
        f"| {cost.total / EXA:,.0f} | {cost.hours:,.0f} |"
        for cost in sorted(costs, key=lambda cost: cost.total)
    ]
    draw(costs, ROOT / "docs" / "images" / "costs.png")
    told = claims({cost.recipe: cost for cost in costs})
    page = PAGE.format(busy=100 * BUSY, peak=PEAK / 1e12, rows="\n".join(rows), claims=told)
    (ROOT / "docs" / "costs.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
