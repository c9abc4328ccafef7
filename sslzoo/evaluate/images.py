"""What lies behind features? Images through a view with randomness, the encoder, and room for what takes long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslzoo.contracts import Dataset, View
from sslzoo.errors import RunError
from sslzoo.evaluate.features import extract, pages
from sslzoo.evaluate.kept import Kept
from sslzoo.run import tensors as tensorfile
from sslzoo.run.data import ready


@dataclass(frozen=True)
class Images:
    """`contracts.Images` of a data set."""

    encoder: nn.Module
    data: Dataset
    view: View
    augment: View | None
    device: torch.device
    batch: int
    workers: int
    bf16: bool
    kept: Kept | None = None  # where features are kept: what a long probe has done lies beside them

    @property
    def augmented(self) -> bool:
        """Whether there is a view with randomness."""
        return self.augment is not None

    def pages(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[Tensor]:
        """Images batch after batch on the device, normalized; with a seed through the view with randomness."""
        view = self.view if seed is None or self.augment is None else self.augment
        for pixels, _ in pages(self.data, view, batches, self.workers, seed):
            yield ready(view, pixels.to(self.device))

    def pools(self, names: Sequence[str], seed: int) -> Mapping[str, Tensor]:
        """Pools of all images through the view with randomness.

        Raises:
            RunError: there is no such view.
        """
        if self.augment is None:
            raise RunError("evaluate.augment names no view to augment images with")
        asked = {"batch": self.batch, "workers": self.workers, "bf16": self.bf16, "pools": names, "seed": seed}
        return extract(self.encoder, self.data, self.augment, device=self.device, **asked).pools

    def load(self, name: str) -> Mapping[str, Tensor]:
        """What was saved under this name; nothing where it cannot be read."""
        if self.kept is None:
            return {}
        path = self.kept.half(self.encoder, name)
        try:
            found = tensorfile.read(path, "half", "the file of what a probe has done")
        except RunError:
            return {}
        return found.tensors if found.name == path.stem else {}

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors whole or not at all; a folder that cannot be written is no fault of an evaluation."""
        if self.kept is None:
            return
        path = self.kept.half(self.encoder, name)
        with suppress(OSError, RunError):
            if tensors:
                content = {key: one.detach().cpu().contiguous() for key, one in tensors.items()}
                tensorfile.write(path, content, ("half", path.stem), {})
            else:
                path.unlink(missing_ok=True)
