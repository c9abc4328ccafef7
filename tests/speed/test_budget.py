"""The budget of docs/performance.md is what benchmarks/budget.py makes of today's recipes; a step does no more than that."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import budget  # noqa: E402

SMALLEST = "ijepa/vitb16_in1k"


@pytest.fixture(scope="module")
def counts():
    return budget.counted(SMALLEST, 128)


def test_the_document_has_the_row_that_is_counted_now(counts):
    row = budget.steps({SMALLEST: counts}).splitlines()[-1]
    assert row in budget.DOC.read_text(), f"run `python benchmarks/budget.py --write`; now:\n{row}"


@pytest.mark.slow
def test_the_document_has_the_tables_that_are_made_now():
    text = budget.DOC.read_text()
    assert budget.written(text) == text, "run `python benchmarks/budget.py --write`"


# Counted for 128 images in bf16 when this was written: operations that write something, and GB that all but matrix
# products read and write, as PyTorch runs them one by one. One more operation in each block would be 24 operations, and on
# the tokens that the teacher sees a GB: the slack is less than either.
def test_a_step_does_no_more_than_was_counted(counts):
    assert counts.kernels <= 1336 + 10
    assert counts.elementwise <= (49.4 + 0.4) * 1e9


def test_times_follow_from_counts_by_hand():
    """A step of round numbers: 218.4 TFLOP take a second, and so do 1,733 GB."""
    one = budget.Counts(100, 218.4e12, 1000, 0.0, 0.0, 0.0)
    assert one.compute() == pytest.approx(1.0)
    assert one.of(50).compute() == pytest.approx(0.5)
    assert one.of(0).compute() == pytest.approx(1000 * 6e-6), "nothing to compute: the host starts its operations"
    moving = budget.Counts(100, 0.0, 0, 1733.15e9 / 0.45, 0.0, 0.0)
    assert moving.compute() == pytest.approx(1.0)
    # 1e9 gradients, 4 bytes each, over 2 nodes and one card of 25 GB/s: once out and in, beside a seventh of it within.
    sender = budget.Counts(100, 218.4e12, 1000, 0.0, 1e9, 0.0)
    within, between = 2 * 7 / 8 * 4e9 / 230e9, 2 * 1 / 2 * 4e9 / (25e9 * 0.85)
    assert sender.sending(16, 25e9) == pytest.approx(within + between)
    assert sender.sending(16, 25e9, width=2) == pytest.approx((within + between) / 2)
    alone = sender.compute()
    assert sender.together(16, 25e9) == pytest.approx(alone), "0.22 s hide behind a backward of 0.6"
    assert sender.together(16, 2.5e9) == pytest.approx(alone + within + 10 * between - 0.48 * alone)
