"""Is what data sets and loaders hold in memory bounded?"""

import os
import random
import re
import resource
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sslzoo_crops import Crop
from sslzoo_datasets import packed

from sslzoo.run import loader
from sslzoo.run.data import Micros, Order, Sources, Split, Views
from sslzoo.run.loader import ahead


def micros(count, size, micro):
    views = {"image": Views(Crop(size=size), count)}
    return Micros(Sources(range(micro), views, {}), {"image": (1, 1)}, Order(micro, micro, 0), Split(micro, 1, 1), 0)


@pytest.mark.parametrize(
    ("count", "size", "micro", "workers", "wanted"),
    [
        (1, 32, 4, 8, (8, 4)),
        (1, 224, 256, 8, (8, 3)),  # 38.5 MB a micro-batch
        (2, 224, 256, 12, (12, 1)),
        (2, 224, 2048, 12, (1, 1)),  # 617 MB: one is held all the same
        (1, 224, 256, 0, (0, 4)),
    ],
)
def test_workers_hold_no_more_than_a_gibibyte(monkeypatch, count, size, micro, workers, wanted):
    monkeypatch.setattr(loader, "room", lambda _: 2**34)
    found = ahead(micros(count, size, micro), workers)
    assert (found.workers, found.prefetch) == wanted
    assert found.size == 3 * count * size * size * micro
    assert found.workers * found.prefetch * found.size <= 2**30


def test_workers_hold_no_more_than_the_shared_memory_of_a_container_has(monkeypatch):
    """Docker gives 64 MB; with more on their way the workers were killed by a bus error."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=2**14, f_frsize=2**12))
    found = ahead(micros(1, 224, 8), 4, local_size=8)  # 1.2 MB a micro-batch
    assert (found.workers, found.prefetch) == (3, 1)
    assert "3 loader workers of 4 asked for, 1 micro-batches" in str(found)
    found = ahead(micros(1, 224, 8), 4)
    assert (found.workers, found.prefetch) == (4, 4)
    assert "asked for" not in str(found)

    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(os, "statvfs", missing)
    assert ahead(micros(1, 224, 8), 4).prefetch == 4


def test_tables_that_random_order_reads_again_and_again_say_how_often(tmp_path, monkeypatch):
    def advice(rows):
        table = pa.table({"image": [random.Random(i).randbytes(1000) for i in range(60)]})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows)
        data = packed.Parquet(files=tmp_path / "a.parquet")
        (told,) = loader.remarks(data, {}, ahead(micros(1, 8, 4), 0))[:-1] or [""]
        return told

    assert advice(20) == "", "all of it is kept"
    monkeypatch.setattr(packed, "KEPT", 30_000)
    assert re.search(r"reads 1[01] bytes of these tables for one", advice(20)), "20 images, of which half are kept"
    assert "sslzoo data pack" in advice(20)
    assert advice(2) == ""


def test_as_many_files_as_the_system_allows_may_be_open_for_tensors_on_their_way():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        loader.allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == (2**16 if hard == -1 else min(2**16, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_row_groups_are_read_once_while_they_are_kept(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [bytes(1000)] * 12}), tmp_path / "a.parquet", row_group_size=4)
    data, opened, table = packed.Parquet(files=tmp_path / "a.parquet"), [], packed._table
    monkeypatch.setattr(packed, "_table", lambda *given: opened.append(1) or table(*given))
    monkeypatch.setattr(packed, "KEPT", 2 * 4100)
    for group in (0, 0, 1, 0, 1):
        data._column(group)
    assert len(opened) == 2
    data._column(2)  # the one used least recently goes
    data._column(1)
    assert len(opened) == 3
    data._column(0)
    assert len(opened) == 4
    assert sum(column.nbytes for column in data._kept.values()) <= 2 * 4100
