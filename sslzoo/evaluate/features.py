"""What does a frozen encoder say of every image of a data set?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sslzoo.contracts import Dataset, Features, View
from sslzoo.errors import RunError
from sslzoo.rng import derive_seed
from sslzoo.run.data import UNREADABLE, passed, seed_views

Labels = dict[str, Tensor]


class _Pages(TorchDataset[tuple[Tensor, Labels] | RunError]):
    """Views of images with their labels, some at a time, in order; an unreadable image is an error here."""

    def __init__(self, data: Dataset, view: View) -> None:
        self.data, self.view = data, view

    def __getitem__(self, numbers: range) -> tuple[Tensor, Labels] | RunError:
        pixels: list[Tensor] = []
        for i in numbers:
            try:
                image = self.data.image(i)
            except UNREADABLE as error:  # returned, not raised: from a worker it would come with the worker's traceback
                return RunError(f"image {i} to evaluate on cannot be read: {type(error).__name__}: {error}")
            seed_views(derive_seed("evaluate", i))
            pixels.append(self.view(image)[0])
        told = [self.data.label(i) for i in numbers]
        labels = {task: torch.tensor([int(one[task]) for one in told]) for task in self.data.tasks}
        for task, classes in self.data.tasks.items():
            if not 0 <= int(labels[task].min()) <= int(labels[task].max()) < classes:
                wrong = int(((labels[task] < 0) | (labels[task] >= classes)).nonzero()[0])
                return RunError(
                    f"image {numbers[wrong]} has the label {int(labels[task][wrong])} in the task {task}, "
                    f"which has classes 0 to {classes - 1}"
                )
        return torch.stack(pixels), labels


@torch.no_grad()
def extract(
    encoder: nn.Module,
    data: Dataset,
    view: View,
    *,
    device: torch.device,
    layers: int = 0,
    batch: int = 256,
    workers: int = 0,
    bf16: bool = False,
) -> Features:
    """Features of every image of a data set, in order, from an encoder in eval mode: x [n d], fp32 on the CPU.

    With `layers` 0 the encoder's own summary; else the means over patches of its last blocks, side by side
    [n layers*d]. Memory: 4 n d bytes and a batch.

    Raises:
        RunError: an image cannot be read, or the data set has no labels, or one outside its classes.
    """
    if not data.tasks:
        raise RunError("the data set has no labels to probe: it names no tasks")
    mode = encoder.training
    encoder.eval()
    count = len(data)
    loader = DataLoader(
        _Pages(data, view),
        batch_size=None,
        sampler=[range(start, min(start + batch, count)) for start in range(0, count, batch)],
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    x, done = torch.zeros(0, 0), 0
    labels = {task: torch.zeros(count, dtype=torch.long) for task in data.tasks}
    try:
        for page in loader:
            pixels, told = passed(page)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                tokens = encoder(pixels.to(device), None, layers)
            rows = torch.cat([layer.mean(1) for layer in tokens.layers], 1) if layers else tokens.summary
            if not done:
                x = torch.empty(count, rows.shape[1])  # once: rows put together at the end would take twice the memory
            here = slice(done, done + len(rows))
            x[here] = rows.float().cpu()
            for task in labels:
                labels[task][here] = told[task]
            done = here.stop
    finally:
        encoder.train(mode)
    return Features(x, labels, dict(data.tasks), device)
