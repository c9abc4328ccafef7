"""What do a recipe's sections take that are the engine's own? Keys with types, bounds and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sslzoo.keys import Free
from sslzoo.recipe.schedule import Duration, Schedule
from sslzoo.recipe.signature import Keys

Positive = Annotated[Schedule, Field(ge=0)]
Span = Annotated[Duration, Field(gt=0)]


class GroupKeys(Keys):
    """What an entry of `views` takes beside its part's keys."""

    count: int = Field(1, ge=1, le=1024)
    role: Literal["context", "target", "both"] = "both"


class TermKeys(Keys):
    """What an entry of `losses` takes beside its part's keys."""

    predict: str
    target: str | None = None
    weight: Schedule = Schedule.parse(1.0)


class Factors(Keys):
    """What multiplies the schedules of some parameters; where `lr` is 0, they are frozen."""

    lr: Positive = Schedule.parse(1.0)
    weight_decay: Positive = Schedule.parse(1.0)


class OptimKeys(Keys):
    """What the section `optim` takes beside `use` and its optimizer's keys.

    Args:
        lr: learning rate of a step. It is absolute: another `run.batch` does not change it.
        weight_decay: weight decay of a step.
        decay_vectors: whether biases, norms and other parameters of one dimension decay too.
        layer_decay: learning rates shrink by this factor a block, from the encoder's last one down (BEiT).
        groups: factors by pattern on parameter names, such as `{"*.bias": {weight_decay: 0}}`; each has `lr` and
            `weight_decay`, numbers or schedules. Parameters whose `lr` factor is 0 are frozen.
        clip: largest norm of the gradient; null for none.
        clip_each: whether each tensor's gradient is clipped apart, as DINO does.
    """

    lr: Positive
    weight_decay: Positive = Schedule.parse(0.0)
    decay_vectors: bool = True
    layer_decay: float = Field(1.0, gt=0, le=1)
    groups: dict[str, Factors] = Field({})
    clip: float | None = Field(None, gt=0)
    clip_each: bool = False

    @model_validator(mode="after")
    def _clip_to_what(self) -> OptimKeys:
        if self.clip_each and self.clip is None:
            raise ValueError("clip_each: true clips nothing without clip, the largest norm of each tensor")
        return self


ENGINE_KEYS: dict[str, type[Keys]] = {"views": GroupKeys, "losses": TermKeys, "optim": OptimKeys}


class Run(Keys):
    """The section `run`: how long a run is, in what pieces, and what it keeps.

    Args:
        steps: length in optimizer steps; either this or `epochs`.
        epochs: length in passes over the data.
        batch: images of a step, over all processes.
        micro: most images on a device at a time; the gradients of several are added (gradient accumulation). null: a
            process's whole share of the batch.
        precision: what forward and backward compute in; auto is bf16 where the device has instructions for it, chosen
            at the first start and kept.
        seed: of weights, order, views and masks.
        save_every: how often a checkpoint is written.
        keep: newest checkpoints that are kept.
        milestones: checkpoints at multiples of this are kept for good; null: none.
        log_every: steps between two lines of `metrics.jsonl`.
        workers: loader processes of each process; 0: it loads by itself.
        compile: whether blocks are compiled by `torch.compile`.
        shard: neighboring ranks that share one copy of the weights (FSDP2); 1: each has its own (DDP).
        gather: what shared weights travel in.
        reduce: what gradients travel in.
        device: where the run computes.
        unreadable: largest share of images that may be unreadable before the run refuses to go on.
        monitor: training images whose effective rank (RankMe) is told; 0: it is not.
        monitor_every: how often it is.
    """

    steps: int | None = Field(None, ge=1, le=10**9)
    epochs: float | None = Field(None, gt=0, le=10**6)
    batch: int = Field(ge=1, le=2**20)
    micro: Annotated[int | None, Free()] = Field(None, ge=1, le=2**20)
    precision: Literal["auto", "bf16", "fp32"] = "bf16"
    seed: int = 0
    save_every: Annotated[Span, Free()] = Duration(1, "epochs")
    keep: Annotated[int, Free()] = Field(2, ge=1, le=10**6)
    milestones: Annotated[Span | None, Free()] = None
    log_every: Annotated[int, Free()] = Field(10, ge=1, le=10**6)
    workers: Annotated[int, Free()] = Field(8, ge=0, le=512)
    compile: Annotated[bool, Free()] = False
    shard: Annotated[int, Free()] = Field(1, ge=1, le=2**16)
    gather: Literal["bf16", "fp32"] = "fp32"
    reduce: Literal["bf16", "fp32"] = "fp32"
    device: Annotated[Literal["auto", "cpu", "cuda"], Free()] = "auto"
    unreadable: Annotated[float, Free()] = Field(0.01, ge=0, le=1)
    monitor: Annotated[int, Free()] = Field(256, ge=0, le=10**6)
    monitor_every: Annotated[Span, Free()] = Duration(1, "epochs")

    def length(self, epoch_steps: int) -> int:
        """Steps of the run, where an epoch has so many."""
        return self.steps or Duration(self.epochs or 0, "epochs").steps(epoch_steps)

    @model_validator(mode="after")
    def _one_length(self) -> Run:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    @model_validator(mode="after")
    def _gathered_as_computed(self) -> Run:
        if self.gather == "bf16" and self.precision != "bf16":
            raise ValueError(f"gather: bf16 wants precision bf16, found {self.precision}: blocks compute as gathered")
        return self


class Start(Keys):
    """The section `start`: an encoder that was trained elsewhere, from which student and teachers start.

    Args:
        file: where it lies: .safetensors, or what torch.save wrote of tensors, numbers and texts.
        take: which encoder, where the file holds several: what stands before the names of its weights.
        without: weights that the file may lack; they start from the seed.
        sha256: the file's; null: what it is at the first start, and kept.
    """

    file: Annotated[Path, Free()]
    take: str | None = None
    without: list[str] = Field([])
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class Evaluate(Keys):
    """The section `evaluate`: how the frozen encoder is probed.

    Args:
        train: data set that probes learn from.
        test: data set that they are scored on.
        view: view without randomness.
        augment: view with randomness, for probes that train on images.
        probes: probes by name.
        network: which encoder: a target generator's name, or student; auto: the first teacher, else the student.
        layers: 0: the encoder's own summary; n: means over patches of its last n blocks, side by side.
        batch: images of a forward pass.
        seed: of the probes' own chances.
        every: also during the run, so often: the first probe; null: only at the end.
        images: most images of train and of test for that.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    view: dict[str, Any]
    augment: dict[str, Any] | None = None
    probes: dict[str, dict[str, Any]] = Field(min_length=1)
    network: str = "auto"
    layers: int = Field(0, ge=0, le=1000)
    batch: int = Field(256, ge=1, le=2**20)
    seed: int = 0
    every: Annotated[Span | None, Free()] = None
    images: Annotated[int, Free()] = Field(2000, ge=1, le=10**9)
