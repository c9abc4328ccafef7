"""Are distances what their formulas say?"""

import math

import pytest
import torch
from sslzoo_regression import Cosine, Mse, SmoothL1

from sslzoo import Pairing, Progress, Signal

AT = Progress(0, 1)
PATCH, IMAGE = Signal("patch", 2), Signal("image", 2)
A = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
B = torch.tensor([[0.5, 3.0], [1.0, 0.0], [0.0, 0.0]])


def pairing(weight=None, match=None, blocks=0):
    weight = torch.full((3,), 1 / 3) if weight is None else torch.tensor(weight)
    match = torch.ones(1, 1) if match is None else torch.tensor(match)
    return Pairing(weight, match.bool(), torch.zeros(len(weight), dtype=torch.long), 2, blocks)


def value(loss, a, b, how):
    found, extra = loss(a, b, how, AT)
    assert found.shape == ()
    assert extra == {}
    return found.item()


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_smooth_l1_by_hand(beta):
    def smooth(x):
        return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2

    rows = [(smooth(0.5) + smooth(3.0)) / 2, (smooth(0.0) + smooth(2.0)) / 2, (smooth(3.0) + smooth(1.0)) / 2]
    assert value(SmoothL1(PATCH, beta=beta), A, B, pairing()) == pytest.approx(sum(rows) / 3)
    uneven = [0.5, 0.0, 2.0]
    wanted = sum(w * row for w, row in zip(uneven, rows, strict=True))
    assert value(SmoothL1(PATCH, beta=beta), A, B, pairing(uneven)) == pytest.approx(wanted)


def test_mse_by_hand():
    squares = [0.25 + 9.0, 4.0, 9.0 + 1.0]
    assert value(Mse(PATCH), A, B, pairing()) == pytest.approx(sum(squares) / 2 / 3)
    assert value(Mse(PATCH, reduce="sum"), A, B, pairing(blocks=2)) == pytest.approx(sum(squares) / 2)


def test_cosine_by_hand():
    one, other = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [1.0, 1.0]])
    wanted = (0.0 + 1 - math.sqrt(0.5)) / 2
    assert value(Cosine(PATCH), one, other, pairing([0.5, 0.5])) == pytest.approx(wanted, abs=1e-6)
    assert value(Cosine(PATCH, scale=2.0), one, other, pairing([0.5, 0.5])) == pytest.approx(2 * wanted, abs=1e-6)


@pytest.mark.parametrize("loss", [SmoothL1, Mse, Cosine])
def test_images_meet_where_they_may(loss):
    torch.manual_seed(0)
    guess, right = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    match = [[0, 1], [1, 0], [1, 1]]
    alone = Signal("patch", 5)
    each = pairing([0.25] * 4)
    pairs = [(v, u) for v in range(3) for u in range(2) if match[v][u]]
    wanted = sum(value(loss(alone), guess[v], right[u], each) for v, u in pairs) / len(pairs)
    assert value(loss(Signal("image", 5)), guess, right, pairing(match=match)) == pytest.approx(wanted, rel=1e-5)


def test_impossible_losses_are_refused():
    with pytest.raises(ValueError, match="reduce"):
        Mse(IMAGE, reduce="sum")
