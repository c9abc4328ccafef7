"""Is there time to save when SLURM takes the nodes away? What a save takes, beside the time that the cluster gives."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Grace:
    """Seconds between a signal and the end: before the time limit (the profile's signal_lead), and before a kill."""

    lead: int
    kill_wait: int | None  # the cluster's KillWait, if it tells

    def warning(self, needed: float) -> str:
        """What is wrong if a stop and its save need this many seconds, or nothing."""
        short = []
        if needed > self.lead:
            short.append(f"the cluster profile's signal_lead leaves {self.lead} before the time limit: raise it")
        if self.kill_wait is not None and needed > self.kill_wait:
            short.append(f"the cluster's KillWait leaves {self.kill_wait} after a signal: lower run.save_every")
        return f"a stop and its save take {needed:.0f} seconds, but {', and '.join(short)}" if short else ""


def kill_wait() -> int | None:
    """The cluster's KillWait in seconds, or None where it is not known."""
    if shutil.which("scontrol") is None:
        return None
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    found = re.search(r"^KillWait\s*=\s*(\d+) sec", done.stdout, re.MULTILINE)
    return int(found[1]) if found else None
