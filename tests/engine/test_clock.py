"""Device seconds: time that passed on a GPU, work that was done on cores."""

import time

import pytest
import torch

from sslzoo.run.clock import Clock
from sslzoo.run.metrics import Lines
from sslzoo.run.processes import World


@pytest.mark.parametrize(("device", "told"), [("cpu", 5.0 + 0.25), ("cuda", 5.0 + 2.0)])
def test_what_others_do_on_shared_cores_costs_a_run_nothing(monkeypatch, device, told):
    passed, worked = iter([10.0, 12.0]), iter([1.0, 1.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(passed))
    monkeypatch.setattr(time, "process_time", lambda: next(worked))
    clock = Clock(1.0, World(device=torch.device(device)), 4, None, 7.0, 5.0, since=next(passed), worked=next(worked))
    line = clock.read(3)
    assert (line["seconds"], line["device_seconds"], line["images_per_second"]) == (9.0, told, 6.0)


def test_seconds_go_on_from_the_lines_of_a_run_that_told_both_or_the_time_alone(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    assert lines.seconds() == (0.0, 0.0)
    lines.write({"step": 1, "seconds": 3.0})
    assert lines.seconds() == (3.0, 3.0)
    lines.write({"step": 2, "seconds": 4.0, "device_seconds": 3.5})
    assert lines.seconds() == (4.0, 3.5)
