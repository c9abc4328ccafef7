"""How sure is a difference? Means over seeds, paired differences with intervals, p-values corrected for many.

Seeds are pairs: variant and baseline of one seed share the order of images, the views, and the start of the parts they
have in common; so their difference is taken seed by seed. Its 95 % interval speaks of other seeds and of other images:
the standard error comes from a bootstrap over seeds and test images together (the pigeonhole bootstrap, Owen 2007), and
Student's t makes it an interval, for of three seeds a bootstrap's own percentiles cover the truth three times in four.
Its p-value is a paired t-test over seeds (scipy), corrected by Holm's step-down method (Holm 1979) for all variants and
figures of a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEAST = 3  # seeds below which no test is made
DRAWS = 2000  # of the bootstrap
ROUNDING = 1e-9  # points of percent; what a difference of two percentages may be off

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One figure of one variant over its seeds, in the figure's unit."""

    mean: float
    std: float | None  # over seeds, n - 1; None for one seed
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A variant less the baseline, paired by seed."""

    mean: float
    low: float | None  # 95 % interval
    high: float | None
    p: float | None  # of the paired t-test; after `holm`, corrected
    values: tuple[float, ...]
    why: str = ""  # why there is no test
    alone: float | None = None  # p before it was corrected

    @property
    def sure(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p is not None and self.p < 0.05


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known: no None, no nan; None where nothing is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def summary(values: Sequence[float]) -> Summary:
    """Mean and spread over seeds."""
    x = np.asarray(values, np.float64)
    return Summary(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else None, tuple(map(float, x)))


def difference(
    ours: Sequence[float], theirs: Sequence[float], correct: tuple[Array, Array] | None = None, seed: int = 0
) -> Difference:
    """Our figures less theirs, seed by seed.

    Args:
        ours: a figure of the variant, one for each seed.
        theirs: the same of the baseline, in the same order of seeds.
        correct: for each, whether each test image was told right, [seeds images]; without it only seeds are resampled.
        seed: of the bootstrap.

    Raises:
        ValueError: they are not pairs.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} figures are no pairs")
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    values = tuple(map(float, gaps))
    if len(gaps) < LEAST:
        why = f"{len(gaps)} seed{'s' if len(gaps) > 1 else ''}: a test needs at least {LEAST}"
        return Difference(float(gaps.mean()), None, None, None, values, why)
    low, high = _interval(gaps, correct, seed)
    gaps = np.where(np.abs(gaps) < ROUNDING, 0.0, gaps)
    if gaps.any() and np.ptp(gaps) < ROUNDING:  # a coarse figure, not certainty: a t-test would say p 0
        why = "all seeds differ by the same, so there is no spread to test against"
        return Difference(float(gaps.mean()), low, high, None, values, why)
    return Difference(float(gaps.mean()), low, high, _paired_t(gaps), values)


def _paired_t(gaps: Array) -> float:
    """Two-sided p of a mean of pairs; of pairs that do not differ at all, 1."""
    if not gaps.any():
        return 1.0
    found: Any = stats.ttest_1samp(gaps, 0.0)
    return float(found.pvalue)


def _interval(gaps: Array, correct: tuple[Array, Array] | None, seed: int) -> tuple[float, float]:
    """Mean ± t times the standard error over seeds, and over images where their answers are known.

    Freedom is that of the seeds, n - 1, where they are all there is, and more the more of the error is the images'
    (Satterthwaite 1946).
    """
    seeds = float(gaps.var(ddof=1)) / len(gaps)
    both = seeds
    if correct is not None:
        # Resampled seeds vary by (n - 1) / n of what new seeds would.
        both = max(both, float(_resampled(correct, seed).var()) + seeds / len(gaps))
    freedom = (len(gaps) - 1) * (both / seeds) ** 2 if seeds else math.inf
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(both)
    return float(gaps.mean()) - half, float(gaps.mean()) + half


def _resampled(correct: tuple[Array, Array], seed: int) -> Array:
    """Mean differences in percent, each over seeds and test images drawn with replacement."""
    draw = np.random.default_rng(seed)
    apart = (correct[0].astype(np.float64) - correct[1].astype(np.float64)) * 100  # seeds, images
    many, images = apart.shape
    seeds = draw.multinomial(many, np.full(many, 1 / many), DRAWS) / many
    means = np.empty(DRAWS)
    for some in np.array_split(np.arange(DRAWS), max(1, DRAWS * images // 20_000_000)):
        weights = draw.multinomial(images, np.full(images, 1 / images), len(some)) / images
        means[some] = np.einsum("ds,si,di->d", seeds[some], apart, weights, optimize=True)
    return means


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, p-values corrected for as many tests as there are (Holm 1979); nan is no test."""
    tested = sorted(
        (one.p, position) for position, one in enumerate(differences) if one.p is not None and not math.isnan(one.p)
    )
    found, highest = list(differences), 0.0
    for rank, (p, position) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        found[position] = replace(differences[position], p=highest, alone=p)
    return found


def wording(one: Difference) -> str:
    """In a person's words: `+2.1 [+0.4, +3.9], p 0.03`; of what could not be told, a part of that."""
    interval = "" if one.low is None or one.high is None else f" [{one.low:+z.1f}, {one.high:+z.1f}]"
    if one.p is None:
        return f"{one.mean:+z.1f}{interval}"
    return f"{one.mean:+z.1f}{interval}, {p_wording(one)}"


def p_wording(one: Difference) -> str:
    """`p 0.68 (alone 0.014)`: corrected for all tests of the table, and as if it were the only one."""
    alone = "" if one.alone is None or one.p == one.alone else f" (alone {_small(one.alone)})"
    return f"p {_small(one.p)}{alone}"


def _small(p: float | None) -> str:
    return "?" if p is None or math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"
