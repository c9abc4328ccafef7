"""What becomes of an encoder that learns from labels? Full fine-tuning of a copy, by MAE's protocol, with timm."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features, RunError
from sslzoo.contracts import Images
from sslzoo.keys import BelowOne, NotNegative, Positive, Share
from sslzoo.nn import DropPath
from sslzoo.rng import derive_seed, generator, seed_shared
from sslzoo_probes.frozen import percent

Size = Annotated[int, Field(ge=1, le=2**20)]

UNDECAYED = ("cls_token", "reg_token", "pos_embed")  # by the names that timm's vision transformers have them under
BRANCHES = ("drop_path1", "drop_path2")  # of timm's blocks


class FineTune:
    """A copy of the encoder and a linear head, trained on the labeled training images: nothing is frozen.

    The defaults are MAE's for ViT-B (He et al. 2022, table 9): the mean over patches of the last block, before its
    final norm, then a norm and a linear layer of their own; AdamW, rates for 256 images, half a cosine after a warm-up,
    rates that fall from block to block; mixup, cutmix, label smoothing and dropped branches. For ViT-L: epochs 50, lr
    1e-3, layer_decay 0.75, drop_path 0.2. Images pass through `evaluate.augment` if it is there (the view
    `rand-augment` is MAE's), else through `evaluate.view`.

    A batch is mixed as a whole, in pairs: of an odd number of images, one is left out of a step. Of several tasks each
    trains its own copy. After each epoch the state is kept beside the features, and an evaluation that was cut short
    goes on there.

    Figures, for each task in percent: top1 after the last epoch (the best of them would be chosen on the test images),
    and trained, the same on the training images.

    Args:
        epochs: passes over the training images.
        batch: images of a step.
        micro: images that pass through at once, to bound memory; all of a batch if left out.
        lr: peak rate for 256 images.
        min_lr: rate at the end, whatever the batch.
        warmup: epochs over which the rate rises from 0.
        weight_decay: AdamW's; none on biases, norms and other vectors, nor on class token, registers and positions.
        layer_decay: a block's rate over that of the block after it.
        betas: AdamW's.
        drop_path: largest rate of dropped residual branches; grows linearly over the blocks.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none. With both, a step takes either.
        smoothing: of labels.
        clip: largest norm of the gradient.
        feature: mean (over patches), class (token, after the final norm) or summary (the encoder's own).
    """

    protocol = 2  # before, min_lr was for 256 images

    def __init__(
        self,
        *,
        epochs: Annotated[int, Field(ge=1, le=10**5)] = 100,
        batch: Size = 1024,
        micro: Size | None = None,
        lr: Positive = 5e-4,
        min_lr: NotNegative = 1e-6,
        warmup: NotNegative = 5.0,
        weight_decay: NotNegative = 0.05,
        layer_decay: Share = 0.65,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        drop_path: BelowOne = 0.1,
        mixup: NotNegative = 0.8,
        cutmix: NotNegative = 1.0,
        smoothing: BelowOne = 0.1,
        clip: Positive | None = None,
        feature: Literal["mean", "class", "summary"] = "mean",
    ) -> None:
        if warmup > epochs:
            raise ValueError(f"warmup: found {warmup:g}, longer than the {epochs} epochs")
        self.settings = {key: value for key, value in locals().items() if key != "self"}
        self.epochs, self.batch, self.micro = epochs, batch, micro or batch
        self.lr, self.min_lr, self.warmup = lr * batch / 256, min_lr, warmup
        self.weight_decay, self.layer_decay, self.betas = weight_decay, layer_decay, betas
        self.drop_path, self.mixup, self.cutmix, self.smoothing = drop_path, mixup, cutmix, smoothing
        self.clip, self.feature = clip, feature
        self.reads_x = feature == "summary"
        self.pools = ("class",) if feature == "class" else ()  # an encoder without one is told before the run

    def check(self, encoder: nn.Module) -> None:
        """Raises RunError where branches shall be dropped and the encoder's blocks have none of timm's."""
        if self.drop_path:
            _branches(encoder)

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float | Tensor]:
        """{"task/top1": percent, "task/trained": percent of training images, "task/correct": bool [n]}."""
        if train.images is None or test.images is None:
            raise RunError("fine-tuning needs the images and the encoder, and was given features alone")
        figures: dict[str, float | Tensor] = {}
        with _own_chances():
            for task, classes in train.tasks.items():
                model = self.trained(train.images, train.labels[task], task, classes, seed)
                right = self.answers(model, test.images, len(test.x)) == test.labels[task]
                known = self.answers(model, train.images, len(train.x)) == train.labels[task]
                figures |= {f"{task}/top1": percent(right), f"{task}/trained": percent(known)}
                figures[f"{task}/correct"] = right
        return figures

    def trained(self, images: Images, labels: Tensor, task: str, classes: int, seed: int) -> Tuned:
        """A copy of the encoder and its head after all epochs; goes on where it was cut short."""
        model = Tuned(images.encoder, self.feature, classes, self.drop_path, derive_seed(seed, "finetune", task))
        solver = torch.optim.AdamW(self.groups(model), lr=self.lr, betas=self.betas)
        name = json.dumps(["finetune", task, classes, seed, self.settings], sort_keys=True)
        for epoch in range(_resumed(model, solver, images.load(name)), self.epochs):
            self._epoch(model, solver, images, labels, classes, epoch, derive_seed(seed, "finetune", task, epoch))
            images.save(name, _state(model, solver, epoch + 1) if epoch + 1 < self.epochs else {})
        return model

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        """Parameters by their rate (MAE's layer decay) and weight decay."""
        bare = [f"encoder.{name}" for name in UNDECAYED]
        return param_groups_layer_decay(model, self.weight_decay, bare, layer_decay=self.layer_decay)

    @torch.no_grad()
    def answers(self, model: Tuned, images: Images, count: int) -> Tensor:
        """The class that the model tells each image: [n], on the CPU."""
        model.eval()
        batches = [range(start, min(start + self.micro, count)) for start in range(0, count, self.micro)]
        return torch.cat([self._logits(model, images, pixels).argmax(1).cpu() for pixels in images.pages(batches)])

    def _epoch(
        self,
        model: Tuned,
        solver: torch.optim.Optimizer,
        images: Images,
        labels: Tensor,
        classes: int,
        epoch: int,
        seed: int,
    ) -> None:
        order = torch.randperm(len(labels), generator=generator(seed, "order"))
        batches = [part.tolist() for part in order.split(self.batch)]
        model.train()
        for number, (batch, pixels) in enumerate(zip(batches, images.pages(batches, seed), strict=True)):
            _seed(derive_seed(seed, "step", number))  # of what is mixed and what is dropped
            rate = self._rate(epoch + number / len(batches))
            for group in solver.param_groups:
                group["lr"] = rate * group["lr_scale"]
            pixels, wanted = self._mixed(pixels, labels[batch].to(pixels.device), classes)
            solver.zero_grad()
            for some, theirs in zip(pixels.split(self.micro), wanted.split(self.micro), strict=True):
                loss = F.cross_entropy(self._logits(model, images, some).float(), theirs, reduction="sum") / len(wanted)
                loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            solver.step()

    def _logits(self, model: Tuned, images: Images, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=images.bf16):
            return model(pixels)

    def _rate(self, epoch: float) -> float:
        """The rate at a time, in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def _mixed(self, pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Images, and how likely each class is wanted to be: [b classes]."""
        if len(labels) > 1 and (self.mixup or self.cutmix):
            mix = Mixup(self.mixup, self.cutmix, label_smoothing=self.smoothing, num_classes=classes)
            even = len(labels) // 2 * 2
            return mix(pixels[:even].clone(), labels[:even])
        smooth = F.one_hot(labels, classes) * (1 - self.smoothing) + self.smoothing / classes
        return pixels, smooth


class Tuned(nn.Module):
    """A copy of an encoder with a linear head, all of it trainable; starts the same whatever else was drawn."""

    def __init__(self, encoder: nn.Module, feature: str, classes: int, drop_path: float, seed: int) -> None:
        super().__init__()
        self.encoder, self.feature = deepcopy(encoder), feature
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(True)  # a teacher's are not
        for module in self.encoder.modules():
            if "chances" in vars(module):
                module.chances = None  # type: ignore[assignment]  # those of a training step
        width: Any = self.encoder.width
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if feature == "mean" else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5, generator=generator(seed, "head"))
        nn.init.zeros_(self.head.bias)
        self._drop(drop_path)
        self.to(next(encoder.parameters()).device)

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [b 3 H W] to logits [b classes]."""
        tokens = self.encoder(pixels, None, 1 if self.feature == "mean" else 0)
        if self.feature == "mean":
            x = tokens.layers[-1].mean(1)
        elif self.feature == "summary":
            x = tokens.summary
        else:
            x = tokens.prefix[:, 0]
        return self.head(self.fc_norm(x))

    def group_matcher(self, coarse: bool = False) -> Any:
        """For timm's layer decay: 0 for what lies before the blocks, then the blocks, then the norms and the head."""
        del coarse
        blocks: Any = self.encoder.blocks
        owner = {id(p): n for n, block in enumerate(blocks, 1) for p in block.parameters()}
        after = {name: len(blocks) + 1 for name, _ in self.named_parameters() if _after(name)}
        layers = {name: owner.get(id(p), 0) for name, p in self.named_parameters()} | after
        return layers.__getitem__

    def _drop(self, most: float) -> None:
        if not most:
            return
        blocks = _branches(self.encoder)
        for number, block in enumerate(blocks):
            for name in BRANCHES:
                setattr(block, name, DropPath(most * number / max(1, len(blocks) - 1)))


def _branches(encoder: Any) -> list[Any]:
    """Blocks whose residual branches can be dropped."""
    if not all(hasattr(block, name) for block in encoder.blocks for name in BRANCHES):
        text = f"those of {type(encoder).__name__} have no {' and '.join(BRANCHES)}"
        raise RunError(f"drop_path: residual branches of timm's blocks can be dropped, and {text}; set it to 0")
    return list(encoder.blocks)


def _after(name: str) -> bool:
    return not name.startswith("encoder.") or name.startswith("encoder.norm")


def _state(model: nn.Module, solver: torch.optim.Optimizer, epochs: int) -> dict[str, Tensor]:
    """All that the next epoch depends on, as tensors."""
    found = {f"model/{name}": value for name, value in model.state_dict().items()}
    for number, known in solver.state_dict()["state"].items():
        found |= {f"solver/{number}/{name}": torch.as_tensor(value) for name, value in known.items()}
    return found | {"epochs": torch.tensor(epochs)}


def _resumed(model: nn.Module, solver: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> int:
    """Takes up a saved state, if there is one; returns the epochs that are done."""
    if not saved:
        return 0
    model.load_state_dict({k.removeprefix("model/"): v for k, v in saved.items() if k.startswith("model/")})
    known: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        if key.startswith("solver/"):
            _, number, name = key.split("/")
            known.setdefault(int(number), {})[name] = value
    solver.load_state_dict({"state": known, "param_groups": solver.state_dict()["param_groups"]})
    return int(saved["epochs"])


def _seed(seed: int) -> None:
    torch.manual_seed(seed)  # on every device
    seed_shared(seed)


@contextmanager
def _own_chances() -> Iterator[None]:
    """Torch, random and numpy go on afterwards as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
