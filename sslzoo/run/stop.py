"""Who asked a run to stop? A signal sets a flag; the run leaves at the next step on which all ranks agree."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """The run was asked to stop, saved, and left; the same command goes on.

    No Exception, as KeyboardInterrupt is none: it may arise anywhere, and whoever catches errors there (a part's that
    is broken, a file's that is damaged) would take it for one and go on, or tell of a failure.
    """

    exit_code = 143


@dataclass
class Stop:
    """A wish to stop, set by signals. While `patient`, the training loop looks at it; else it interrupts at once."""

    asked: str = ""  # the name of the signal
    patient: bool = True

    def listen(self) -> None:
        """Takes over the signals by which people, terminals and SLURM ask: TERM, HUP, INT, USR1 and USR2.

        One that is ignored when this process starts stays so: that is what `nohup` asks for.
        """
        for one in SIGNALS:
            if signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        again = self.asked
        self.asked = signal.Signals(number).name
        if not self.patient or (again == self.asked == "SIGINT"):  # a second Ctrl-C means it
            raise Stopped(f"stopped by {self.asked}")
