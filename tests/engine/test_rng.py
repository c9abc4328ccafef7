"""Randomness is a function of (seed, step, sample), and looks random."""

import pytest
import torch

from sslzoo.rng import Rng, chances, derive_seed, generator, row_keys


def test_a_row_does_not_depend_on_the_rows_beside_it():
    whole, alone = Rng(1, 7, range(64)), Rng(1, 7, [41])
    for _ in range(3):  # also later draws of the same generator
        assert torch.equal(whole.uniform(5)[41], alone.uniform(5)[0])
        assert torch.equal(whole.permutation(30)[41], alone.permutation(30)[0])
        assert torch.equal(whole.integers(9, 2, 3)[41], alone.integers(9, 2, 3)[0])
    assert torch.equal(torch.rand(4, generator=whole.shared), torch.rand(4, generator=alone.shared))


def test_seed_step_row_and_draw_all_matter():
    first = Rng(1, 7, range(8)).uniform(100)
    assert not torch.equal(first, Rng(2, 7, range(8)).uniform(100))
    assert not torch.equal(first, Rng(1, 8, range(8)).uniform(100))
    assert not torch.equal(first[0], first[1])
    again = Rng(1, 7, range(8))
    assert not torch.equal(again.uniform(100), again.uniform(100))


def test_uniform_is_uniform_and_uncorrelated():
    x = torch.cat([Rng(3, step, range(100)).uniform(20) for step in range(50)]).flatten()  # 100,000 numbers
    assert abs(x.mean() - 0.5) < 5 * (1 / 12 / len(x)) ** 0.5
    counts = torch.histc(x.float(), 64, 0, 1)
    chi = ((counts - len(x) / 64) ** 2 / (len(x) / 64)).sum()
    assert chi < 63 + 6 * (2 * 63) ** 0.5
    rows = Rng(3, 0, range(2000)).uniform(6)
    off = torch.corrcoef(torch.cat([rows, rows.roll(1, 0)], 1).T) - torch.eye(12)
    assert off.abs().max() < 6 / 2000**0.5


def test_integers_reach_both_ends_and_permutations_every_place():
    drawn = Rng(0, 0, range(3000)).integers(5)
    assert sorted(drawn.unique().tolist()) == [0, 1, 2, 3, 4]
    order = Rng(0, 0, range(3000)).permutation(6)
    assert torch.equal(order.sort(1).values, torch.arange(6).expand(3000, -1))
    share = torch.stack([(order == place).float().mean(0) for place in range(6)])
    assert (share - 1 / 6).abs().max() < 5 * (1 / 6 * 5 / 6 / 3000) ** 0.5


def test_integers_take_a_bound_for_each_row():
    high = torch.tensor([[1], [2], [1000]])
    drawn = Rng(0, 0, [0, 1, 2]).integers(high, 500)
    assert drawn[0].max() == 0
    assert drawn[1].max() == 1
    assert 900 < drawn[2].max() < 1000


def test_keys_tell_words_apart():
    keys = {
        derive_seed(1, "a"),
        derive_seed(1, "b"),
        derive_seed(2, "a"),
        derive_seed("a", 1),
        derive_seed(1, "target_long_name_1"),
        derive_seed(1, "target_long_name_2"),
    }
    assert len(keys) == 6
    assert all(0 <= one < 2**63 for one in keys)
    assert torch.equal(torch.rand(3, generator=generator(5, "x")), torch.rand(3, generator=generator(5, "x")))


@pytest.mark.parametrize("n", [2, 64, 196, 300])
def test_choose_takes_true_places_at_random_whatever_the_batch(n):
    among = torch.rand(512, n, generator=torch.Generator().manual_seed(n)) < 0.6
    among[:, :2] = True
    many = int(among.sum(1).min())
    found = Rng(0, 1, range(512)).choose(among, many)
    assert found.dtype == torch.int64
    assert among.gather(1, found).all()
    assert (found.diff(dim=1) > 0).all()  # rising, so each once
    alone = Rng(0, 1, [7]).choose(among[7:8], many)
    assert torch.equal(alone[0], found[7])
    twin = (Rng(0, 1, range(512)).uniform(n) + ~among).argsort(1)[:, :many].sort(1).values
    assert torch.equal(found, twin)


def test_choose_is_even():
    taken = Rng(0, 0, range(20_000)).choose(torch.ones(20_000, 10, dtype=torch.bool), 3).flatten().bincount()
    assert (taken / 6000 - 1).abs().max() < 0.05


def test_chances_are_uniform_and_those_of_the_row():
    whole = chances(row_keys(range(4000), 7, "lots"), 3)
    assert torch.equal(chances(row_keys(range(1000, 1010), 7, "lots"), 3), whole[:, 1000:1010])
    assert whole.min() >= 0
    assert whole.max() < 1
    assert torch.allclose(torch.histc(whole, 10, 0, 1), torch.tensor(1200.0), rtol=0.12)
    assert (torch.corrcoef(whole) - torch.eye(3)).abs().max() < 0.05
    assert not torch.equal(chances(row_keys(range(4000), 8, "lots"), 3), whole)
