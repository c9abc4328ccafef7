"""How fast is a run? Images a second, time spent waiting for data, and the share of the device's peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sslzoo.contracts import Batch
from sslzoo.progress import Progress
from sslzoo.run.processes import World


def time_left(at: Progress, batch: int, rate: float) -> float:
    """Seconds from the end of this step to the end of the run, at `rate` images a second."""
    return (at.steps - at.step - 1) * batch / rate


def hours(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


TIMING = (
    "images_per_second",
    "data_wait",
    "mfu",
    "seconds",
    "device_seconds",
)  # what `Clock` reads: another in every run


@dataclass
class Clock:
    """Measures images per second, the share of time spent waiting for data, and the share of the device's peak."""

    flops: float  # of one image, forward and backward
    world: World
    batch: int
    peak: float | None  # FLOP/s of a device, where it is known
    seconds: float = 0.0  # of training up to here, in earlier attempts of the run
    device_seconds: float = 0.0  # that its device worked for it meanwhile
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    worked: float = field(default_factory=time.process_time)
    steps: int = 0
    sending: float = 0.0  # seconds of an all-reduce of all gradients; 0 where one process trains alone
    readings: int = 0

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch, timed."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def read(self, steps: int) -> dict[str, float]:
        """Rates since the last reading; `steps` were done in this process so far."""
        now, worked = time.perf_counter(), time.process_time()
        took, rate = now - self.since, (steps - self.steps) * self.batch / (now - self.since)
        self.seconds += took
        # A GPU is one run's own, by the hour; cores are shared, and what others do on them costs this run nothing.
        self.device_seconds += worked - self.worked if self.world.device.type == "cpu" else took
        found = {"images_per_second": rate, "data_wait": min(1.0, self.waited / took), "seconds": self.seconds}
        found["device_seconds"] = self.device_seconds
        if self.peak:
            found["mfu"] = rate * self.flops / (self.peak * self.world.size)
        self.since, self.worked, self.waited = now, worked, 0.0
        self.steps, self.readings = steps, self.readings + 1
        return found

    def of_sending(self, rate: float) -> str:
        """At the second reading, when all is warm: what sending gradients is beside a step at this rate."""
        if not self.sending or self.readings != 2:
            return ""
        return (
            f"an all-reduce of the gradients takes {self.sending * 1e3:.1f} ms, {self.sending * rate / self.batch:.0%} "
            "of a step; the backward hides some of it"
        )
