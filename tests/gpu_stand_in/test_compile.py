"""How many graphs does a compiled run make? Counted by a backend that only counts, or (slow) also compiles."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._inductor.compile_fx import compile_fx
from torch.distributed.device_mesh import init_device_mesh

from sslzoo.plugins import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names
from sslzoo.run.folder import Folder
from sslzoo.run.parallel import data_parallel
from sslzoo.run.processes import World
from sslzoo.train import Watch, train

STEPS = 14


@pytest.fixture(params=["alone", "ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def _parallel(request, tmp_path, monkeypatch):
    """One process: alone, in data parallel with itself (DDP), or sharing its weights with itself (FSDP2)."""
    if request.param == "alone":
        yield
        return
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "meet"), 1), rank=0, world_size=1)
    shard = 2 if request.param == "fsdp" else 1
    wrapped = lambda method, _world, _shard, *rest: data_parallel(method, World(size=2), shard, *rest)  # noqa: E731
    alone = lambda _world, _shard: init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))  # noqa: E731
    monkeypatch.setattr("sslzoo.train.data_parallel", wrapped)
    monkeypatch.setattr("sslzoo.run.parallel._mesh", alone)
    yield
    dist.destroy_process_group()


@pytest.fixture
def graphs(request, monkeypatch):
    """Graphs as they are compiled: the shapes of the tokens they take."""
    found, real = [], getattr(request, "param", False)

    def counting(module, given):
        found.append([tuple(x.shape) for x in given if isinstance(x, torch.Tensor) and x.ndim == 3])
        return compile_fx(module, given) if real else module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "graphs", [False, pytest.param(True, marks=pytest.mark.slow)], indirect=True, ids=["counted", "inductor"]
)
@pytest.mark.usefixtures("_parallel")
def test_few_graphs_are_made_and_none_anew(graphs, tmp_path):
    sets = (f"run.steps={STEPS}", "run.compile=true", "run.batch=4", "run.log_every=1", "run.monitor=8")
    recipe, installed = load("tiny/ijepa", (*sets, "run.monitor_every=5 steps", "data.length=40", "data.cache=false"))
    made = []
    watch = Watch(show=lambda at, line: made.append(len(graphs)))
    torch._dynamo.config.optimize_ddp = True  # as PyTorch has it: cut at DDP's buckets
    train(recipe, installed, check(recipe, installed), tmp_path / "run", World(), watch)
    assert [line["step"] for line in Folder(tmp_path / "run").metrics.read() if "rankme" in line] == [5, 10, 14]
    contexts = {line["context_share/image"] for line in Folder(tmp_path / "run").metrics.read()}
    assert len(contexts) > 1, "contexts differ in length, or this test shows nothing"
    assert len(graphs) <= 5, graphs
    assert made[-1] == made[4], "none is made after the first few steps"
    constant = [shapes for shapes in graphs if shapes and all(type(n) is int for n in shapes[0])]
    assert any(shape[0][1] == 64 for shape in constant), "the teacher's own graph knows its 64 patches"


TINY = sorted(name for name in names(catalogue()) if name.startswith("tiny/"))


@pytest.mark.parametrize(
    "name", [name if name in ("tiny/cae", "tiny/dino") else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_few_graphs_are_made_of_any_method(graphs, tmp_path, name):
    sets = [
        "run.steps=6",
        "run.compile=true",
        "run.batch=4",
        "run.log_every=1",
        "run.monitor=8",
        "run.monitor_every=4 steps",
    ]
    recipe, installed = load(name, [*sets, "data.length=40", "data.cache=false"])
    if recipe.encoder["use"] == "vit":  # as most published recipes have it: a rate of its own for each block
        recipe, installed = load(name, [*sets, "data.length=40", "data.cache=false", "encoder.drop_path=0.1"])
    made = []
    watch = Watch(show=lambda at, line: made.append(len(graphs)))
    train(recipe, installed, check(recipe, installed), tmp_path / "run", World(), watch)
    assert 0 < len(graphs) <= 5, graphs
    assert made[-1] == made[1], "none is made after the first steps"


def test_recipes_of_paper_size_are_compiled_where_blocks_are():
    for name, path in names(catalogue()).items():
        recipe, _ = load(name) if name.endswith(("_in1k", "_in22k", "_gpu")) else (None, None)
        if recipe is not None and recipe.encoder["use"] != "resnet":
            assert recipe.run.compile, path
