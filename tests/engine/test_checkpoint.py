"""A checkpoint is whole, checked and safe; what is damaged is never taken for the truth."""

import os
import threading
import weakref

import pytest
import torch
from torch import nn

from sslzoo import RunError, files
from sslzoo.run import checkpoint
from sslzoo.run.processes import World


def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)
    return module


def stepped(steps=3):
    method = net()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1, fused=True)
    for step in range(steps):
        method(torch.randn(8, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return method, optimizer


def test_what_is_restored_goes_on_as_if_never_stopped(tmp_path):
    method, optimizer = stepped(3)
    checkpoint.save(tmp_path, 3, method, optimizer)
    other, second = stepped(1)
    checkpoint.restore(checkpoint.newest(tmp_path, print), other, second)
    for one, opt in ((method, optimizer), (other, second)):
        one(torch.ones(8, 3)).square().sum().backward()
        opt.step()
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    method, optimizer = stepped()
    checkpoint.save(tmp_path, 3, method, optimizer)
    path = checkpoint.save(tmp_path, 5, method, optimizer)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-10], "empty": b"", "text": b"not a checkpoint at all"}[damage])
    said = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found.step == 3
    assert len(said) == 1
    assert str(path) in said[0]


def test_a_pipe_in_a_checkpoints_place_is_not_waited_for(tmp_path):
    checkpoint.save(tmp_path, 3, *stepped())
    os.mkfifo(checkpoint.path_of(tmp_path, 4))
    told = []
    assert checkpoint.newest(tmp_path, told.append).step == 3
    assert "is damaged: it is no file" in told[0]


def test_who_may_read_a_persons_files_may_read_a_checkpoint(tmp_path):
    (tmp_path / "other").touch()
    path = checkpoint.save(tmp_path, 3, *stepped())
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_with_none_readable_it_refuses(tmp_path):
    path = checkpoint.save(tmp_path, 3, *stepped())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="never starts again by itself"):
        checkpoint.newest(tmp_path, print)
    assert checkpoint.newest(tmp_path / "nothing", print) is None


def test_every_flipped_byte_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, 3, *stepped())
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        broken = bytearray(content)
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(RunError, match="damaged"):
            checkpoint.read(path)


def test_other_parts_are_refused(tmp_path):
    method, optimizer = stepped()
    saved = checkpoint.read(checkpoint.save(tmp_path, 3, method, optimizer))
    with pytest.raises(RunError, match="does not fit"):
        checkpoint.restore_parts(saved, nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(RunError, match=r"method.2.weight is \[2, 4\], the recipe's \[3, 4\]"):
        checkpoint.restore_parts(saved, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))


def test_what_the_first_rank_sends_is_restored_as_it_comes(tmp_path, monkeypatch):
    """Every rank held a whole checkpoint in its host's memory: on a node, eight times 20 GB of a ViT-g."""
    method, optimizer = stepped(3)
    file = checkpoint.read(checkpoint.save(tmp_path, 3, method, optimizer))
    word = [(3, file.path, checkpoint._listed(file), file.checksum, file.about)]
    coming, held = iter(file.tensors.values()), []

    def broadcast(value, _rank):
        assert sum(one() is not None for one in held) <= 1, "one tensor at a time, and the one before"
        value.copy_(next(coming))
        held.append(weakref.ref(value))

    monkeypatch.setattr(checkpoint.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(
        checkpoint.dist, "broadcast_object_list", lambda sent, *_, **_named: sent.__setitem__(0, word[0])
    )
    monkeypatch.setattr(checkpoint.dist, "broadcast", broadcast)
    saved = checkpoint.agreed(tmp_path, print, World(rank=1, size=2))
    assert all(value.is_meta for value in saved.tensors.values())
    other, second = stepped(1)
    checkpoint.restore(saved, other, second)
    assert len(held) == len(file.tensors)
    again = checkpoint.read(checkpoint.save(tmp_path / "again", 3, other, second))
    assert again.checksum == file.checksum


def test_a_failed_save_leaves_the_earlier_ones(tmp_path, monkeypatch):
    method, optimizer = stepped()
    checkpoint.save(tmp_path, 3, method, optimizer)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(tmp_path, 5, method, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003.safetensors"]


def test_the_last_few_and_milestones_are_kept(tmp_path):
    method, optimizer = stepped()
    for step in range(1, 11):
        checkpoint.save(tmp_path, step, method, optimizer)
        checkpoint.prune(tmp_path, step, keep=2, milestone=4)
    assert checkpoint.steps(tmp_path) == [4, 8, 9, 10]


def test_what_cannot_be_removed_ends_no_run(tmp_path):
    checkpoint.path_of(tmp_path, 1).mkdir()
    for step in (2, 3):
        checkpoint.save(tmp_path, step, *stepped())
    checkpoint.prune(tmp_path, 3, keep=1, milestone=None)
    assert checkpoint.steps(tmp_path) == [1, 3]


# --- saved while the run goes on ---


def test_what_is_saved_aside_is_the_moment_of_saving(tmp_path):
    method, optimizer = stepped(3)
    saver = checkpoint.Saver(tmp_path / "aside", keep=2, milestone=None)
    for step in range(3, 7):
        checkpoint.save(tmp_path, step, method, optimizer)
        saver.save(step, method, optimizer)
        with torch.no_grad():  # the run goes on at once
            for parameter in method.parameters():
                parameter.add_(1.0)
    saver.join()
    assert checkpoint.steps(tmp_path / "aside") == [5, 6]
    for step in (5, 6):
        here, aside = (
            checkpoint.read(checkpoint.path_of(folder, step)).tensors for folder in (tmp_path, tmp_path / "aside")
        )
        assert here.keys() == aside.keys()
        assert all(torch.equal(here[name], aside[name]) for name in here)


def test_a_save_that_fails_aside_is_told_at_the_next_join(tmp_path, monkeypatch):
    saver = checkpoint.Saver(tmp_path, keep=2, milestone=None)
    saver.save(3, *stepped())
    saver.join()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    saver.save(5, *stepped())
    with pytest.raises(RunError, match="No space left"):
        saver.save(6, *stepped())
    saver.join()
    assert checkpoint.steps(tmp_path) == [3]


def test_a_save_is_told_once_it_is_there_and_not_at_the_next_one(tmp_path, monkeypatch):
    told, may_end = [], threading.Event()
    saver = checkpoint.Saver(tmp_path, keep=2, milestone=None, on_saved=lambda step, _: told.append(step))
    write = checkpoint.tensorfile.write
    monkeypatch.setattr(checkpoint.tensorfile, "write", lambda *given: may_end.wait(60) and write(*given))
    saver.save(3, *stepped())
    saver.poll()
    assert told == []
    may_end.set()
    saver._thread.join()
    saver.poll()
    assert told == [3]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    saver.save(5, *stepped())
    saver._thread.join()
    with pytest.raises(RunError, match="No space left"):
        saver.poll()
    saver.poll()


# --- what is not what its name or its run says ---


def test_a_renamed_checkpoint_is_told_and_passed_over(tmp_path):
    checkpoint.save(tmp_path, 3, *stepped())
    checkpoint.save(tmp_path, 5, *stepped()).rename(checkpoint.path_of(tmp_path, 9))
    said = []
    assert checkpoint.newest(tmp_path, said.append).step == 3
    assert "is that of step 5, renamed" in said[0]


def test_damaged_checkpoints_do_not_take_the_room_of_good_ones(tmp_path):
    """With one to keep: the run fell back to step 3, and what it saves next outlives the damaged one of step 8."""
    method, optimizer = stepped()
    checkpoint.save(tmp_path, 3, method, optimizer)
    checkpoint.path_of(tmp_path, 8).write_bytes(b"damaged")
    saver = checkpoint.Saver(tmp_path, keep=1, milestone=None)
    saver.save(5, method, optimizer)
    saver.join()
    assert checkpoint.steps(tmp_path) == [5, 8]
    assert checkpoint.newest(tmp_path, lambda _: None).step == 5


def test_only_what_a_kill_left_of_saving_is_removed(tmp_path):
    for name in ("step-000000002.writing", "mine.writing", "step-mine.writing"):
        (tmp_path / name).write_text("x")
    checkpoint.remove_torn(tmp_path)
    assert {path.name for path in tmp_path.glob("*.writing")} == {"mine.writing", "step-mine.writing"}


def test_a_checkpoint_remembers_its_run_under_its_checksum(tmp_path):
    path = checkpoint.save(tmp_path, 3, *stepped(), {"recipe": "name: good"})
    assert checkpoint.read(path).about == {"recipe": "name: good"}
    path.write_bytes(path.read_bytes().replace(b"name: good", b"name: goof"))
    with pytest.raises(RunError, match="checksum"):
        checkpoint.read(path)
