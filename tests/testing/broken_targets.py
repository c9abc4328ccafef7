"""Target generators that are wrong on purpose, each in one way; and the sound ones they are made from."""

import os

import torch
from torch import nn

from sslzoo import Signal, all_mean, gather
from sslzoo.nn import patchify


class Follow(nn.Module):
    """A teacher that keeps its contract."""

    def __init__(self, student):
        super().__init__()
        import copy

        self.encoder = copy.deepcopy(student.encoder).requires_grad_(False)
        self.outputs = {"patch": Signal("patch", student.encoder.width)}
        self.register_buffer("shift", torch.zeros(student.encoder.width))

    @torch.no_grad()
    def forward(self, batch, student, at):
        rows = [self.of(group) for group in batch.groups.values() if group.mask is not None]
        return {"patch": torch.cat(rows) + self.shift}

    def of(self, group):
        x, target = self.encoder(group.pixels.flatten(0, 1)).patches, group.mask.target
        return target.flat(target.take(group.mask.rows(x)))

    @torch.no_grad()
    def after_step(self, student, at):
        for mine, theirs in zip(self.encoder.parameters(), student.encoder.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)


class TooFew(Follow):
    """Answers half of the places."""

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"][::2]}


class Leaky(Follow):
    """Lets gradients into its targets."""

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"] + student.tokens["image"].summary.mean()}


class Training(Follow):
    """Would be trained by the optimizer."""

    def __init__(self, student):
        super().__init__(student)
        self.encoder.requires_grad_(True)


class Sharing(Follow):
    """Holds the student's own weights."""

    def __init__(self, student):
        super().__init__(student)
        self.encoder = student.encoder


class Hasty(Follow):
    """Moves when it is called."""

    def forward(self, batch, student, at):
        with torch.no_grad():
            next(self.encoder.parameters()).mul_(0.99)
        return super().forward(batch, student, at)


class Unsaved(Follow):
    """Keeps state that is not saved."""

    seen = 0

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"] + self.seen}

    def after_step(self, student, at):
        super().after_step(student, at)
        self.seen += 1


class UnsavedCount(Follow):
    """Follows by a step count that is not saved, as a bias correction would."""

    steps = 0

    def after_step(self, student, at):
        self.steps += 1
        super().after_step(student, at)
        with torch.no_grad():
            for mine, its in zip(self.encoder.parameters(), student.encoder.parameters(), strict=True):
                mine.lerp_(its, 1 / (1 + self.steps))


class Centred(Follow):
    """Takes the mean over the batch away, so an image's target depends on the others."""

    def forward(self, batch, student, at):
        x = super().forward(batch, student, at)["patch"]
        return {"patch": x - x.mean(0)}


class Copies(Follow):
    """Forgets that several masks may be of one view."""

    def of(self, group):
        return super().of(group)[: group.pixels.shape[:2].numel() * group.mask.target.index[0].numel()]


class Padded(Follow):
    """Answers for padding too."""

    def of(self, group):
        x, target = self.encoder(group.pixels.flatten(0, 1)).patches, group.mask.target
        return target.take(group.mask.rows(x)).flatten(0, -2)


class Summary(Follow):
    """A teacher of whole images that keeps its contract."""

    def __init__(self, student):
        super().__init__(student)
        self.outputs = {"image": Signal("image", student.encoder.width)}

    @torch.no_grad()
    def forward(self, batch, student, at):
        return {"image": torch.cat([self.images(group) for group in batch.groups.values() if self.reads(group)])}

    def images(self, group):
        return self.encoder(group.pixels.flatten(0, 1)).summary.unflatten(0, group.pixels.shape[:2])

    def reads(self, group):
        return group.role != "context"


class AnyRole(Summary):
    """Answers for views that are the student's alone."""

    def reads(self, group):
        return True


class ImagesFirst(Summary):
    """Takes images for views, where there are as many."""

    def images(self, group):
        v, b = group.pixels.shape[:2]
        return super().images(group).flatten(0, 1).unflatten(0, (b, v)).transpose(0, 1)


class Words(Follow):
    """A generator of class ids that keeps its contract: the nearest of five levels of brightness."""

    def __init__(self, student):
        super().__init__(student)
        self.outputs = {"patch": Signal("patch", 5, ids=True)}

    def forward(self, batch, student, at):
        return {"patch": (super().forward(batch, student, at)["patch"].mean(1).sigmoid() * 5).long().clamp(max=4)}


class FromOne(Words):
    """Numbers classes from 1 to K."""

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"] + 1}


class FloatIds(Words):
    """Returns class ids as floating numbers."""

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"].float()}


class Double(Follow):
    """Answers in float64."""

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"].double()}


class Leaving(Follow):
    """Ends the process, and calls it a success."""

    def forward(self, batch, student, at):
        os._exit(0)


class Blind(Follow):
    """Says the same whatever the images show."""

    def forward(self, batch, student, at):
        return {"patch": torch.ones_like(super().forward(batch, student, at)["patch"]) + self.shift}


class PlainShift(Follow):
    """Holds a tensor that is no buffer."""

    def __init__(self, student):
        super().__init__(student)
        self.mean = torch.zeros(3)


class Settling(Follow):
    """Makes its tensors on the CPU, wherever it is."""

    def forward(self, batch, student, at):
        x = super().forward(batch, student, at)["patch"]
        return {"patch": x * torch.linspace(0.9, 1.1, x.shape[1])}


class Wandering(Follow):
    """Drifts with every call."""

    calls = 0

    def forward(self, batch, student, at):
        self.calls += 1
        return {"patch": super().forward(batch, student, at)["patch"] + self.calls // 8}


class Motionless(Follow):
    """Has no after_step."""

    after_step = None

    def __init__(self, student):
        super().__init__(student)
        self.after_stp = self.forward


class Darkens(Follow):
    """Changes the pixels in place."""

    def of(self, group):
        group.pixels.sub_(0.1)
        return super().of(group)


class Joins(Follow):
    """Takes the student's weights for its own at the first step."""

    def after_step(self, student, at):
        for mine, theirs in zip(self.encoder.parameters(), student.encoder.parameters(), strict=True):
            mine.data = theirs.data


class HalfFollows(Follow):
    """Follows with its first weight alone."""

    @torch.no_grad()
    def after_step(self, student, at):
        next(self.encoder.parameters()).lerp_(next(student.encoder.parameters()), 0.1)


class UnsavedDraw(Follow):
    """Scales by numbers that it draws when it is made and does not save."""

    def __init__(self, student):
        super().__init__(student)
        self.register_buffer("scale", torch.randn(student.encoder.width), persistent=False)

    def forward(self, batch, student, at):
        return {"patch": super().forward(batch, student, at)["patch"] * self.scale}


class CentredTraining(Follow):
    """Takes the mean over the batch away, in training alone."""

    def forward(self, batch, student, at):
        x = super().forward(batch, student, at)["patch"]
        return {"patch": x - x.mean(0) if self.training else x}


class OwnCenter(Follow):
    """Keeps a center of its own rank's images."""

    def __init__(self, student):
        super().__init__(student)
        self.register_buffer("center", torch.zeros(student.encoder.width))
        self.register_buffer("fresh", torch.zeros(student.encoder.width))

    def forward(self, batch, student, at):
        x = super().forward(batch, student, at)["patch"]
        self.fresh.copy_(x.mean(0))
        return {"patch": x - self.center}

    def after_step(self, student, at):
        super().after_step(student, at)
        self.center.lerp_(self.fresh, 0.1)


class Queue(Follow):
    """Sound: remembers images in the order in which it met them, which on two ranks is another."""

    def __init__(self, student):
        super().__init__(student)
        self.register_buffer("queue", torch.zeros(8, student.encoder.width))

    def forward(self, batch, student, at):
        said = super().forward(batch, student, at)
        images = batch.groups["image"].pixels.flatten(0, 1).flatten(1)[:, : self.queue.shape[1]]
        self.queue.copy_(torch.cat([gather(images.flip(0)), self.queue])[: len(self.queue)])
        return said


class Draws(Follow):
    """Sound: keeps a mean over all ranks of what is drawn for each image."""

    def forward(self, batch, student, at):
        said = super().forward(batch, student, at)
        if self.training:
            self.shift.copy_(all_mean(torch.randn(len(said["patch"]), len(self.shift)).mean(0)) * 0.1)
        return said


class ClassToken(Follow):
    """Counts a class token that its teacher does not have, so each target is of the patch before."""

    def of(self, group):
        x, target = self.encoder(group.pixels.flatten(0, 1)).patches, group.mask.target
        x = torch.cat([x[:, :1], x], 1)
        return target.flat(target.take(group.mask.rows(x)))


class Seen(Follow):
    """Takes what is seen for what is asked."""

    def of(self, group):
        x, target = group.mask.rows(self.encoder(group.pixels.flatten(0, 1)).patches), group.mask.target
        seen = group.mask.context.take(x)
        many = torch.arange(target.index.shape[1:].numel(), device=x.device) % seen.shape[1]
        return target.flat(seen[:, many].unflatten(1, target.index.shape[1:]))


class Pixels(nn.Module):
    """Normalized pixels: a generator without weights that keeps its contract."""

    least = 1e-6

    def __init__(self, student):
        super().__init__()
        self.patch, self.outputs = student.encoder.patch, {"patch": Signal("patch", 3 * 8 * 8)}

    @torch.no_grad()
    def forward(self, batch, student, at):
        return {"patch": torch.cat([self.of(group) for group in batch.groups.values() if group.mask is not None])}

    def of(self, group):
        x, target = self.cells(group.pixels.flatten(0, 1)), group.mask.target
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.least).sqrt()
        return target.flat(target.take(group.mask.rows(x)))

    def cells(self, pixels):
        return patchify(pixels, self.patch)

    def after_step(self, student, at):
        pass


class PlainPixels(Pixels):
    """Divides by the deviation of a patch of one color."""

    least = 0.0


class SquareGrid(Pixels):
    """Counts patches column by column, as nobody does."""

    def cells(self, pixels):
        rows = pixels.shape[2] // 8
        return super().cells(pixels).unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)


class Blurred(Pixels):
    """Sound: pixels mixed with those around them."""

    def cells(self, pixels):
        return super().cells(nn.functional.avg_pool2d(pixels, 9, 1, 4))


class Spread(Follow):
    """Sound: the mean of an image for each of its patches."""

    def of(self, group):
        x, target = self.encoder(group.pixels.flatten(0, 1)).patches, group.mask.target
        return target.flat(target.take(group.mask.rows(x.mean(1, keepdim=True).expand_as(x))))


class Stacks(Follow):
    """Works row by row, and cannot where there is none."""

    def of(self, group):
        return torch.stack(list(super().of(group)))


class Unordered(Words):
    """Numbers its levels in the order of a set."""

    def __init__(self, student):
        super().__init__(student)
        words = ["black", "dark", "gray", "light", "white"]
        self.register_buffer("number", torch.tensor([list(set(words)).index(word) for word in words]))

    def forward(self, batch, student, at):
        return {"patch": self.number[super().forward(batch, student, at)["patch"]]}


TARGETS = {
    ClassToken: "own",
    Seen: "own",
    SquareGrid: "own",
    PlainPixels: "outputs",
    Stacks: "empty",
    Unordered: "processes",
    Darkens: "outputs",
    Joins: "separate",
    HalfFollows: "follows",
    UnsavedDraw: "restores",
    CentredTraining: "weightless",
    OwnCenter: "ranks",
    FromOne: "outputs",
    FloatIds: "outputs",
    Double: "outputs",
    Leaving: "outputs",
    Blind: "looks",
    PlainShift: "stored",
    Settling: "moves",
    Wandering: "repeats",
    Motionless: "made",
    TooFew: "outputs",
    Leaky: "still",
    Training: "frozen",
    Sharing: "separate",
    Hasty: "follows",
    Unsaved: "restores",
    UnsavedCount: "restores",
    Centred: "weightless",
    Copies: "groups",
    Padded: "groups",
    AnyRole: "groups",
    ImagesFirst: "groups",
}

SOUND = {"targets": (Follow, Words, Summary, Pixels, Blurred, Spread)}
