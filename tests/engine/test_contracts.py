"""Patches, masks and tokens against brute force."""

import pytest
import torch

from sslzoo import Group, Mask, Patches, RunError, Signal, Tokens
from sslzoo.step import check_ids


def test_take_and_flat_rectangular():
    x = torch.randn(3, 10, 4)
    index = torch.stack([torch.randperm(10)[:6] for _ in range(3)]).reshape(3, 2, 3)
    patches = Patches(index)
    taken = patches.take(x)
    for s in range(3):
        for m in range(2):
            for q in range(3):
                assert torch.equal(taken[s, m, q], x[s, index[s, m, q]])
    assert torch.equal(patches.flat(taken), taken.reshape(18, 4))
    assert patches.count == 18


def test_ragged_rows_drop_their_padding():
    index = torch.tensor([[[3, 1, 3]], [[0, 2, 4]]])
    patches = Patches(index, torch.tensor([[2], [3]]))
    flat = patches.flat(patches.take(torch.arange(10.0).reshape(2, 5, 1)))
    assert flat[:, 0].tolist() == [3, 1, 5, 7, 9]
    assert patches.count == 5
    assert patches.cu_seqlens().tolist() == [0, 2, 5]
    assert patches.cu_seqlens().dtype == torch.int32
    assert Patches(index).cu_seqlens().tolist() == [0, 3, 6]


def test_ragged_patches_are_not_made_on_a_device():
    with pytest.raises(ValueError, match="made on the CPU"):
        Patches(torch.zeros(1, 2, dtype=torch.long, device="meta"), torch.ones(1, dtype=torch.long, device="meta"))
    moved = Patches(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, dtype=torch.long)).to("meta")
    assert moved.real is not None
    assert moved.real.device.type == "meta"


def test_source_repeats_views():
    mask = Mask(Patches(torch.zeros(4, 1).long()), Patches(torch.zeros(4, 1, 1).long()), torch.tensor([0, 1, 0, 1]))
    assert mask.rows(torch.tensor([[5.0], [6.0]]))[:, 0].tolist() == [5, 6, 5, 6]


def test_reading_hidden_places_fails_clearly():
    tokens = Tokens(torch.zeros(1, 3, 2), torch.arange(3)[None], torch.zeros(1, 2), (2, 2))
    with pytest.raises(ValueError, match=r"3 of 2 x 2 patches.*hidden to fill"):
        tokens.at(Patches(torch.zeros(1, 1, 1).long()))


def context_of(length=None):
    index = torch.tensor([[3, 1, 2], [0, 2, 1]])
    return Patches(index, None if length is None else torch.tensor(length))


@pytest.mark.parametrize("length", [None, [3, 2]])
def test_what_was_seen_is_the_same_whether_hidden_patches_are_dropped_or_kept(length):
    context = context_of(length)
    whole = torch.randn(2, 4, 5)
    wanted = [whole[s, i] for s in range(2) for i in context.index[s, : 3 if length is None else length[s]]]
    dropped = Tokens(context.take(whole), context.index, whole.mean(1), (2, 2), length=context.length)
    kept = Tokens(whole, torch.arange(4).expand(2, -1), whole.mean(1), (2, 2))
    for tokens in (dropped, kept):
        assert torch.equal(tokens.seen(context), torch.stack(wanted))


def test_rows_of_patches_seen_weigh_as_in_a_mean_over_all_micro_batches():
    from sslzoo.contracts import Batch
    from sslzoo.run.data import pair, weigh
    from sslzoo.run.processes import World

    target = Patches(torch.zeros(2, 1, 1).long())
    pixels, boxes = torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 2, 4)
    micros = []
    for length in ([3, 1], [2, 2]):
        groups = {"a": Group(pixels, boxes, Mask(context_of(length), target)), "b": Group(pixels, boxes)}
        groups["c"] = Group(pixels, boxes, Mask(context_of(), target), "target")  # the student does not read it
        micros.append(Batch(groups, pair(groups), seen=pair(groups, "context")))
    first, second = weigh(micros, World())
    assert first.seen.sequence.tolist() == [0, 0, 0, 1]
    assert second.seen.sequence.tolist() == [0, 0, 1, 1]
    assert first.seen.weight.tolist() == [2 / 8] * 4
    assert first.pairing.weight.tolist() == [2 / 8] * 4


def test_bytes_of_a_step_become_numbers_one_micro_batch_at_a_time():
    """All micro-batches of a step lay on the device in fp32."""
    from sslzoo.contracts import Batch
    from sslzoo.run.data import pair, weigh
    from sslzoo.run.processes import World

    pixels, normal = torch.full((1, 2, 3, 8, 8), 51, dtype=torch.uint8), torch.tensor([1 / 255, 1.0])
    groups = {"a": Group(pixels, torch.zeros(1, 2, 4), normal=normal[:, None, None, None].expand(2, 3, 1, 1))}
    (batch,) = weigh([Batch(groups, pair(groups))], World())
    assert batch.groups["a"].pixels.dtype == torch.uint8
    torch.testing.assert_close(batch.normalized().groups["a"].pixels, torch.full((1, 2, 3, 8, 8), 1.2))


@pytest.mark.parametrize(
    ("ids", "says"),
    [([0, 5], "the class id 5 in code, which has classes 0 to 4"), ([-1, 2], "class id -1"), ([0.0, 2.0], "float32")],
)
def test_class_ids_that_are_none_are_their_target_generators_fault(ids, says):
    outputs = {"code": Signal("patch", 5, ids=True)}
    check_ids("codes", outputs, {"code": torch.tensor([0, 4])}, log=False)
    with pytest.raises(RunError, match=f"targets.codes: .*{says}"):
        check_ids("codes", outputs, {"code": torch.tensor(ids)}, log=False)
