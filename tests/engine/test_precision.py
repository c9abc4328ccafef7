"""Where a recipe leaves its precision open, the device chooses once, and the run keeps it."""

import pytest
import torch
from driven import losses, weights
from test_train import run

from sslzoo import RunError
from sslzoo.recipe import precision
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.compiling import refuse_uncompilable
from sslzoo.run.folder import Folder
from sslzoo.run.processes import World
from sslzoo.train import Watch, train

ABLE, UNABLE = {"avx2": True, "amx_bf16": True}, {"avx2": True, "avx512_bf16": False}


@pytest.fixture
def cpu(monkeypatch):
    """Sets what the CPU can do."""
    return lambda found: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)


def said(recipe, out, *sets):
    read, installed = load(str(recipe), ("run.precision=auto", *sets))
    told = []
    train(read, installed, check(read, installed), out, World(), Watch(say=told.append))
    return next(line for line in told if line.startswith("precision auto"))


@pytest.mark.parametrize(("found", "word"), [(ABLE, "bf16"), (UNABLE, "fp32")])
def test_auto_is_what_the_device_is_made_for_and_is_written_down(tmp_path, toy, cpu, found, word):
    cpu(found)
    recipe, short = toy("jepa"), ("run.steps=5",)
    told = said(recipe, tmp_path / "auto", *short)
    assert word in told
    assert ("amx_bf16" in told) == (word == "bf16")
    assert Folder(tmp_path / "auto").begun_with("run", "precision") == word
    run(recipe, tmp_path / "word", f"run.precision={word}", *short)
    one, other = weights(tmp_path / "auto"), weights(tmp_path / "word")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_keeps_its_precision_on_another_machine(tmp_path, toy, cpu):
    recipe, out = toy("jepa"), tmp_path / "run"
    cpu(ABLE)
    said(recipe, tmp_path / "whole", "run.steps=6", "run.save_every=3")
    said(recipe, out, "run.steps=6", "run.save_every=3")
    (Folder(out).checkpoints / "step-000000006.safetensors").unlink()
    cpu(UNABLE)
    told = said(recipe, out, "run.steps=6", "run.save_every=3")
    assert "bf16, as this run began" in told
    assert "has no bf16 instructions" in told
    assert losses(out) == losses(tmp_path / "whole")
    with pytest.raises(RunError, match=r"run\.precision: .bf16. there, .fp32. asked for"):
        run(recipe, out, "run.precision=fp32", "run.steps=6", "run.save_every=3")


@pytest.mark.parametrize(("capability", "able"), [((7, 0), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_bf16_from_compute_capability_8_on(monkeypatch, capability, able):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.bf16_of(torch.device("cuda")) == ("A GPU", able)


def test_a_gpu_that_only_imitates_bf16_is_told(tmp_path, toy, monkeypatch):
    """A V100 takes bf16, and is slower with it than without; nothing said why."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    recipe, _ = load(str(toy("jepa")), ("run.precision=bf16",))
    for capability, count in (((7, 0), 1), ((8, 0), 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        told = []
        assert precision.settled(recipe, World(device=torch.device("cuda", 0)), say=told.append) is recipe
        assert len([line for line in told if "Tesla V100 has no bf16 instructions" in line]) == count


def test_what_cannot_be_compiled_for_a_gpu_is_told_before_minutes_of_a_start_are_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    refuse_uncompilable(torch.device("cpu"))
    with pytest.raises(RunError, match="no C compiler on .*--set run.compile=false"):
        refuse_uncompilable(torch.device("cuda", 0))
    monkeypatch.setenv("CC", "icx")
    refuse_uncompilable(torch.device("cuda", 0))
