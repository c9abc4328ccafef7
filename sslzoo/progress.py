"""How far is the run? The only clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Step `step` (from 0) of `steps`; an epoch has `epoch_steps` of them."""

    step: int
    steps: int
    epoch_steps: int = 1

    @property
    def epoch(self) -> float:
        """Epochs done before this step."""
        return self.step / self.epoch_steps

    @property
    def last(self) -> bool:
        """Whether this is the final step."""
        return self.step + 1 >= self.steps
