"""What a run says of its speed: the share of a card's peak, what sending gradients costs, who waits how long."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FakeProcessGroup
from torch.testing._internal.distributed.fake_pg import FakeStore

from sslzoo import train
from sslzoo.progress import Progress
from sslzoo.recipe.build import build
from sslzoo.recipe.recipe import load
from sslzoo.run import metrics, parallel, processes
from sslzoo.run.data import fake_batch
from sslzoo.run.processes import World


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),  # of the same chip; it had the peak of the one above
        ("NVIDIA H200", 989e12),
        ("NVIDIA A40", 150e12),
        ("NVIDIA RTX A4000", None),  # had the A40's
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ],
)
def test_the_peak_is_that_of_the_very_card_and_precision(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert metrics.peak_flops(torch.device("cuda"), "bf16") == peak
    assert metrics.peak_flops(torch.device("cuda"), "fp32") is None
    assert metrics.peak_flops(torch.device("cpu"), "bf16") is None


def test_sending_is_measured_as_gradients_travel(monkeypatch):
    asked, said = [], []
    monkeypatch.setattr(train, "all_reduce_rate", lambda _world, size, dtype: asked.append((size, dtype)) or 1e3)
    monkeypatch.setattr(train.optim, "trainable", lambda _method: [("weight", nn.Parameter(torch.zeros(10, 25)))])

    def seconds(reduce, shard):
        run = SimpleNamespace(reduce=reduce, shard=shard)
        return train.sending(nn.Identity(), run, World(size=4), said.append)  # pyright: ignore[reportArgumentType]

    assert [seconds("fp32", 1), seconds("bf16", 1), seconds("fp32", 2)] == [1.0, 0.5, 0.0]
    assert asked == [(1000, torch.float32), (500, torch.bfloat16)]
    assert len(said) == 2


WAITS = []  # how long the groups wait that were made


def _noting(given, _options):
    WAITS.append(given.timeout)
    return FakeProcessGroup._create_internal(given.group_rank, given.group_size)


dist.Backend.register_backend("noting", _noting, extended_api=True, devices="cpu")


@pytest.fixture
def waits(monkeypatch):
    """Rank 0 of four, in a group of a backend that sends nothing."""
    WAITS.clear()
    monkeypatch.setenv("SSLZOO_PATIENCE", "1234")
    dist.init_process_group("noting", store=FakeStore(), rank=0, world_size=4, timeout=processes.patience())
    yield WAITS
    dist.destroy_process_group()


def test_groups_of_shards_wait_as_long_as_all_ranks_do(waits):
    """Theirs was torch's own patience, ten minutes."""
    mesh = parallel._mesh(World(size=4), 2)
    assert [mesh.get_group(name).size() for name in ("replicate", "shard")] == [2, 2]
    assert [dist.get_process_group_ranks(mesh.get_group(name)) for name in ("replicate", "shard")] == [[0, 2], [0, 1]]
    assert len(waits) > 1
    assert set(waits) == {timedelta(seconds=1234)}


def test_one_copy_over_all_ranks_makes_no_group_of_its_own(waits):
    mesh = parallel._mesh(World(size=4), 4)
    assert mesh.get_group("shard") == dist.group.WORLD
    assert mesh.ndim == 1, "sums over groups of one rank are sent all the same"
    assert len(waits) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_are_summed_in_one_order_from_the_first_step_on(monkeypatch, device):
    """On GPUs buckets were rebuilt after the first step, so a restart summed in another order."""
    given = []
    monkeypatch.setattr(parallel, "DistributedDataParallel", Copies := type("Copies", (), {"__init__": noted(given)}))
    assert isinstance(parallel.data_parallel(nn.Linear(2, 2), World(size=2, device=torch.device(device))), Copies)
    assert given[0]["find_unused_parameters"]


def noted(given):
    def init(_self, _method, gradient_as_bucket_view, find_unused_parameters, broadcast_buffers):
        given.append({"find_unused_parameters": find_unused_parameters})

    return init


def test_buckets_fill_in_the_order_in_which_gradients_come(toy):
    """Buckets keep the order of parameters from last to first, so a gradient far from its place would hold all up."""
    read, installed = load(str(toy("jepa")))
    method, sources = build(read, installed)
    named = [(name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad]
    come: list[str] = []
    for name, parameter in named:
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: come.append(name))
    method(fake_batch(sources, method.student.encoder, 4), Progress(0, 10))[0].backward()
    filled = [name for name, _ in reversed(named) if name in come]
    late = {name: max(come.index(one) for one in filled[: at + 1]) - at for at, name in enumerate(filled)}
    assert max(late.values()) < 8, late
