"""Plugins that are wrong on purpose: the check that names a defect must find it. A plugin file for tests."""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Mask, Patches, Signal, Tokens, hookimpl
from sslzoo.blocks import draw_size, indices


class Sound:
    """Two rectangles to guess, what is left to see: a sampler that keeps its contract. The others break it."""

    ragged = False
    span = 0  # places that are never reached at the end of each axis

    def __call__(self, batch, grid, rng):
        if min(grid) < 4:
            raise ValueError(f"grid: {grid} is too small for blocks")
        size = self.size(grid, rng)
        corner = rng.uniform(2, 2)
        top = (corner[..., 0] * (grid[0] - size[0] + 1 - self.span)).long()
        left = (corner[..., 1] * (grid[1] - size[1] + 1 - self.span)).long()
        target = indices(top, left, size, grid)
        return Mask(self.context(target, grid, rng), Patches(target))

    def size(self, grid, rng):
        return draw_size(grid, (0.1, 0.2), (0.5, 2.0), rng.shared)

    def free(self, target, grid):
        return torch.ones(len(target), grid[0] * grid[1]).scatter_(1, target.flatten(1), 0).bool()

    def context(self, target, grid, rng):
        free, kept = self.free(target, grid), grid[0] * grid[1] - 2 * target.shape[-1]
        order = rng.permutation(grid[0] * grid[1])
        ranked = order.gather(1, free.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        return Patches(ranked[:, :kept])


class LastRow(Sound):
    """Never reaches the last row and column (the published sampler's first defect)."""

    span = 1

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there)


class Shared(Sound):
    """One random number drives scale and aspect (its second)."""

    def size(self, grid, rng):
        u = torch.rand((), generator=rng.shared).item()
        area, aspect = (0.1 + 0.15 * u) * grid[0] * grid[1], 0.5 + 1.5 * u
        return max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))


class Raster(Sound):
    """Cuts contexts in raster order (its third)."""

    def context(self, target, grid, rng):
        free, kept = self.free(target, grid), (grid[0] * grid[1] - 2 * target.shape[-1]) // 2
        return Patches((~free).int().argsort(dim=1, stable=True)[:, :kept])


class Batchy(Sound):
    """Cuts contexts to the shortest of the batch (its fourth)."""

    def context(self, target, grid, rng):
        free = self.free(target, grid)
        order = rng.permutation(grid[0] * grid[1])
        ranked = order.gather(1, free.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        return Patches(ranked[:, : int(free.sum(1).min())])


class Endless(Sound):
    """Draws again without end on grids that cannot hold what it wants (its fifth)."""

    def __call__(self, batch, grid, rng):
        while grid[0] * grid[1] < 16:
            pass
        return super().__call__(batch, grid, rng)


class Global(Sound):
    """Draws from torch's global generator."""

    def size(self, grid, rng):
        return draw_size(grid, (0.1, 0.2), (0.5, 2.0), torch.default_generator)


class Forgetful(Sound):
    """Counts its calls."""

    calls = 0

    def __call__(self, batch, grid, rng):
        self.calls += 1
        mask = super().__call__(batch, grid, rng)
        return (
            mask if self.calls == 1 else Mask(Patches(mask.context.index.flip(0)), Patches(mask.target.index.flip(0)))
        )


class Overlapping(Sound):
    """Shows what must be guessed."""

    def context(self, target, grid, rng):
        return Patches(rng.permutation(grid[0] * grid[1])[:, : grid[0] * grid[1] // 2])


class Twice(Sound):
    """Names a patch twice."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(torch.cat([there, there[:, :1]], 1))


class Outside(Sound):
    """Takes rows for columns, so indices leave an oblong grid."""

    def __call__(self, batch, grid, rng):
        return super().__call__(batch, (max(grid), max(grid)), rng)


class Undeclared(Sound):
    """Contexts of several lengths, undeclared."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there, torch.arange(len(there)) % 3 + there.shape[1] - 3)


class Slow(Sound):
    """Takes its time for each image of a large batch."""

    def context(self, target, grid, rng):
        for _ in range(len(target) if len(target) > 100 else 0):
            sum(range(200_000))
        return super().context(target, grid, rng)


class RareOutside(Sound):
    """Leaves the grid in one image of a thousand."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index.clone()
        there[rng.integers(1000)[:] == 0, -1] = grid[0] * grid[1]
        return Patches(there)


class RareOverlap(Sound):
    """Shows a patch that must be guessed, in one image of five hundred."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index.clone()
        rare = rng.integers(500) == 0
        there[rare, 0] = target[rare, 0, 0]
        return Patches(there)


class Empty(Sound):
    """Asks for blocks of which some have no patch."""

    def __call__(self, batch, grid, rng):
        mask = super().__call__(batch, grid, rng)
        length = (rng.uniform(2) > 0.01).long() * mask.target.index.shape[-1]
        return Mask(mask.context, Patches(mask.target.index, length))


class Nothing(Sound):
    """Has nothing to see."""

    def context(self, target, grid, rng):
        return Patches(super().context(target, grid, rng).index[:, :0])


class Turned(Sound):
    """Counts places column by column."""

    def __call__(self, batch, grid, rng):
        return super().__call__(batch, grid[::-1], rng)


class Drifting(Sound):
    """Slides a little with every hundred calls."""

    calls = 0

    def __call__(self, batch, grid, rng):
        self.calls += 1
        mask = super().__call__(batch, grid, rng)
        return Mask(Patches(mask.context.index.roll(self.calls // 100, 1)), mask.target)


class Crowded(Sound):
    """Cuts contexts in batches of more than thirty."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there[:, : there.shape[1] - (len(there) > 30)])


class ByPosition(Sound):
    """Draws by position in the batch, the same in every step."""

    def __call__(self, batch, grid, rng):
        from sslzoo import Rng

        return super().__call__(batch, grid, Rng(1, 0, range(len(rng))))


class PythonRandom(Sound):
    """Draws from Python's random."""

    def size(self, grid, rng):
        import random

        return super().size(grid, rng) if random.random() < 2 else (1, 1)


class NumpyRandom(Sound):
    """Draws from numpy's global generator, one step in a hundred."""

    def size(self, grid, rng):
        import numpy as np

        if torch.rand((), generator=rng.shared) < 0.01:
            np.random.rand()
        return super().size(grid, rng)


class OwnRandom(Sound):
    """Draws from a generator of its own."""

    def context(self, target, grid, rng):
        import numpy as np

        there = super().context(target, grid, rng).index
        return Patches(there[:, np.random.default_rng(0 if len(there) != 16 else None).permutation(there.shape[1])])


class Elsewhere(Sound):
    """Draws otherwise in another process."""

    def context(self, target, grid, rng):
        import multiprocessing

        there = super().context(target, grid, rng).index
        return Patches(there if multiprocessing.parent_process() is None else there.flip(1))


class Unsaid:
    """Does not say whether contexts are ragged."""

    def __call__(self, batch, grid, rng):
        return Sound()(batch, grid, rng)


class Whole(Sound):
    """Returns indices that are no whole numbers."""

    def context(self, target, grid, rng):
        return Patches(super().context(target, grid, rng).index.float())


MASKS = {
    RareOutside: "legal",
    RareOverlap: "disjoint",
    Empty: "legal",
    Nothing: "legal",
    Turned: "upright",
    Drifting: "repeats",
    Crowded: "batches",
    ByPosition: "batches",
    PythonRandom: "chance",
    NumpyRandom: "chance",
    OwnRandom: "repeats",
    Unsaid: "made",
    Whole: "shapes",
    LastRow: "reaches",
    Shared: "apart",
    Raster: "mirrored",
    Batchy: "batches",
    Endless: "oblong",
    Global: "chance",
    Elsewhere: "workers",
    Forgetful: "repeats",
    Overlapping: "disjoint",
    Twice: "unique",
    Outside: "legal",
    Undeclared: "lengths",
    Slow: "cost",
}


class Guess(nn.Module):
    """A predictor that keeps its contract: each target patch from its place and the mean of what is seen."""

    blocks_apart = True

    def __init__(self, encoder):
        super().__init__()
        self.outputs = {"patch": Signal("patch", encoder.width)}
        self.projector = None
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.GELU())])
        self.out = nn.Linear(encoder.width, encoder.width)

    def seen(self, tokens):
        if tokens.length is None:
            return tokens.patches.mean(1)
        true = (torch.arange(tokens.patches.shape[1], device=tokens.length.device) < tokens.length[:, None])[..., None]
        return (tokens.patches * true).sum(1) / tokens.length[:, None]

    def rows(self, tokens, target):
        place = torch.sin(
            target.index[..., None] * torch.linspace(0.1, 1, tokens.patches.shape[-1], device=target.index.device)
        )
        return self.out(self.blocks[0](self.seen(tokens)[:, None, None] + place))

    def forward(self, tokens, target, at):
        return {} if target is None else {"patch": target.flat(self.rows(tokens, target))}


class WrongWidth(Guess):
    """Declares another width."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.outputs = {"patch": Signal("patch", encoder.width + 1)}


class Needy(Guess):
    """Fails without targets."""

    def forward(self, tokens, target, at):
        return {"patch": target.flat(self.rows(tokens, target))}


class Idle(Guess):
    """Has a weight that learns nothing."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.spare = nn.Linear(2, 2)


class Detached(Guess):
    """Gives what no gradient flows back from."""

    def forward(self, tokens, target, at):
        return {name: x.detach() for name, x in super().forward(tokens, target, at).items()}


class Mixing(Guess):
    """Lets sequences read one another."""

    def seen(self, tokens):
        return super().seen(tokens) + tokens.patches.mean()


class Standardised(Guess):
    """Uses the statistics of its own rank's batch."""

    def seen(self, tokens):
        x = super().seen(tokens)
        return (x - x.mean(0)) / (x.std(0) + 1e-3) if self.training else x


class Ordered(Guess):
    """Declares that blocks are guessed apart, and lets them read one another."""

    def rows(self, tokens, target):
        rows = super().rows(tokens, target)
        return rows + rows.flatten(2).cumsum(1).unflatten(2, rows.shape[2:])


class ReadsPadding(Guess):
    """Reads the padding of short contexts."""

    def seen(self, tokens):
        return tokens.patches.mean(1)


class KeepsPadding(Guess):
    """Returns a row for the padding of short targets."""

    def forward(self, tokens, target, at):
        return {} if target is None else {"patch": self.rows(tokens, target).flatten(0, 2)}


class Coarse(Guess):
    """Loses its digits under bfloat16."""

    def rows(self, tokens, target):
        return super().rows(tokens, target) * 1e3 - (super().rows(tokens, target) * 1e3).round() * 0.999


class Breaks(Guess):
    """Has a block that a compiler cannot take whole."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, width)

        def forward(self, x):
            return self.layer(x) if x.sum().item() > -1e9 else x

    def __init__(self, encoder):
        super().__init__(encoder)
        self.blocks = nn.ModuleList([Breaks.Block(encoder.width)])


class Plain(Guess):
    """Holds a tensor that is no buffer."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.shift = [torch.ones(encoder.width)]


class Scalar(Guess):
    """Has a weight without dimensions."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.scale = nn.Parameter(torch.ones(()))

    def rows(self, tokens, target):
        return super().rows(tokens, target) * self.scale


class Tired(Guess):
    """Says something else after ten calls."""

    calls = 0

    def rows(self, tokens, target):
        self.calls += not self.training
        return super().rows(tokens, target) * (1 + self.calls // 10)


class Settled(Guess):
    """Makes its tensors on the CPU, wherever it is."""

    def seen(self, tokens):
        return super().seen(tokens) + torch.arange(tokens.patches.shape[-1]) * 0.01


class Unprojected(Guess):
    """Forgets an attribute of its contract."""

    def __init__(self, encoder):
        super().__init__(encoder)
        del self.projector
        self.projecter = None


class Handful(Guess):
    """Lets two sequences read one another, but not three."""

    def seen(self, tokens):
        x = super().seen(tokens)
        return x + x.mean() if len(x) == 2 else x


class Blunt(Guess):
    """Takes other arguments than it is given."""

    def forward(self, tokens, target):
        return super().forward(tokens, target, None)


PREDICTORS = {
    Plain: "stored",
    Scalar: "stored",
    Tired: "repeats",
    Settled: "moves",
    Unprojected: "made",
    Handful: "alone",
    Blunt: "made",
    WrongWidth: "outputs",
    Needy: "unmasked",
    Idle: "learns",
    Detached: "learns",
    Mixing: "alone",
    Standardised: "ranks",
    Ordered: "order",
    ReadsPadding: "ragged_context",
    KeepsPadding: "ragged_target",
    Coarse: "bf16",
    Breaks: "compiles",
}


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
        group = batch.groups["image"]
        tokens = self.encoder(group.pixels.flatten(0, 1))
        return {"patch": group.mask.target.flat(tokens.at(group.mask.target)) + self.shift}

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


TARGETS = {
    FromOne: "outputs",
    FloatIds: "outputs",
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
}


class Square(nn.Module):
    """A loss that keeps its contract."""

    needs_target = True

    def __init__(self, signal):
        super().__init__()
        if signal.kind != "patch":
            raise ValueError("of patch signals")

    def forward(self, prediction, target, pairing, at):
        return (self.rows(prediction, target) * pairing.weight).sum(), {}

    def rows(self, prediction, target):
        return (prediction - target).square().mean(1)


class NotScalar(Square):
    """Returns a row for each patch."""

    def forward(self, prediction, target, pairing, at):
        return self.rows(prediction, target) * pairing.weight, {}


class Flat(Square):
    """Has no gradient at all."""

    def rows(self, prediction, target):
        return super().rows(prediction, target).detach()


class Leaving(Square):
    """Ends the process, and with code 0."""

    def rows(self, prediction, target):
        raise SystemExit(0)


class Changed(Square):
    """Changes in place what its gradient needs."""

    def rows(self, prediction, target):
        x = prediction - target
        rows = x.square().mean(1)
        x.mul_(2)
        return rows


class WrongSlope(Square):
    """Has a gradient that is not its own."""

    def rows(self, prediction, target):
        return (2 * prediction - prediction.detach() - target).square().mean(1)


class Unweighted(Square):
    """Takes the mean over rows, whatever they weigh."""

    def forward(self, prediction, target, pairing, at):
        return self.rows(prediction, target).mean(), {}


class Batched(nn.Module):
    """Compares images of this rank only."""

    needs_target = True

    def __init__(self, signal):
        super().__init__()
        if signal.kind != "image":
            raise ValueError("of image signals")

    def forward(self, prediction, target, pairing, at):
        x, y = F.normalize(prediction.flatten(0, 1), dim=1), F.normalize(target.flatten(0, 1), dim=1)
        return F.cross_entropy(x @ y.T, torch.arange(len(x))), {}


class Overflows(Square):
    """Is not finite for large inputs."""

    def rows(self, prediction, target):
        return ((prediction - target).square().mean(1).exp() - 1).square()


class Moving(Square):
    """Keeps a mean that is not saved."""

    def __init__(self, signal):
        super().__init__(signal)
        self.mean = torch.zeros(())

    def rows(self, prediction, target):
        rows = super().rows(prediction, target)
        if self.training:
            self.mean = self.mean + rows.detach().mean().abs() * 0 + 0.1
        return rows + self.mean


class Rounded(Square):
    """Computes in float32 inside, which is no defect."""

    def rows(self, prediction, target):
        return super().rows(prediction.float(), target.float())


class Bent(Square):
    """Has kinks, which are no defect."""

    def rows(self, prediction, target):
        return F.smooth_l1_loss(prediction.float(), target.float(), reduction="none", beta=0.01).mean(1)


class Entropy(nn.Module):
    """A loss on class ids that keeps its contract."""

    needs_target = True
    class_ids = True

    def __init__(self, signal):
        super().__init__()
        if signal.kind != "patch":
            raise ValueError("of patch signals")

    def forward(self, prediction, target, pairing, at):
        return (F.cross_entropy(prediction, target, reduction="none") * pairing.weight).sum(), {}


class FromOneToK(Entropy):
    """Takes class ids to begin at 1."""

    def forward(self, prediction, target, pairing, at):
        return super().forward(prediction, target - 1, pairing, at)


class RoundedWrong(WrongSlope):
    """Has a gradient that is not its own, and computes in float32 inside."""

    def rows(self, prediction, target):
        return super().rows(prediction.float(), target.float())


class Stowed(Square):
    """Holds a tensor that is no buffer."""

    def __init__(self, signal):
        super().__init__(signal)
        self.center = torch.zeros(signal.width)


class Scribbling(Square):
    """Writes into its target."""

    def rows(self, prediction, target):
        return super().rows(prediction, target.clamp_(-3, 1))


class Silent(Square):
    """Does not say whether it needs a target."""

    needs_target = "yes"


LOSSES = {
    FromOneToK: "returns",
    RoundedWrong: "gradient",
    Stowed: "stored",
    Scribbling: "pure",
    Silent: "made",
    NotScalar: "returns",
    WrongSlope: "gradient",
    Flat: "extremes",
    Leaving: "returns",
    Changed: "extremes",
    Unweighted: "weights",
    Batched: "ranks",
    Overflows: "extremes",
    Moving: "restores",
}


class Look(nn.Module):
    """An encoder that keeps its contract: patches embedded, places added, one block; drops what is hidden."""

    ragged = False

    def __init__(self):
        super().__init__()
        self.width = 16
        self.embed = nn.Linear(3 * 64, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def grid(self, size):
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f"an image of {size} does not split into patches of 8")
        return size[0] // 8, size[1] // 8

    def forward(self, pixels, context=None, layers=0):
        from sslzoo.nn import patchify

        grid = self.grid(tuple(pixels.shape[-2:]))
        x = patchify(self.shown(pixels, context, grid), (8, 8))
        index = self.index(x, context)
        x = self.embed(x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))) + self.place(index, grid)
        outs = []
        for block in self.blocks:
            x = x + block(x).tanh()
            outs.append(x)
        x = self.last(x)
        return Tokens(x, index, x.mean(1), grid, layers=tuple(outs[len(outs) - layers :]))

    def index(self, x, context):
        return torch.arange(x.shape[1], device=x.device).expand(len(x), -1) if context is None else context.index

    def shown(self, pixels, context, grid):
        return pixels

    def place(self, index, grid):
        return torch.sin(index[..., None] * torch.linspace(0.1, 1, 16, device=index.device))

    def last(self, x):
        return x


class Peeks(Look):
    """Lets hidden patches through."""

    def shown(self, pixels, context, grid):
        return pixels + pixels.mean((1, 2, 3), keepdim=True)


class ByOrder(Look):
    """Gives places by order, not by index."""

    def place(self, index, grid):
        return super().place(torch.arange(index.shape[1], device=index.device).expand_as(index), grid)


class Placeless(Look):
    """Knows no places."""

    def place(self, index, grid):
        return torch.zeros(16, device=index.device)


class OneGrid(Look):
    """Says another grid for other sizes than it serves."""

    def grid(self, size):
        return min(3, size[0] // 8), min(3, size[1] // 8)


class FewLayers(Look):
    """Gives one layer, however many are asked for."""

    def forward(self, pixels, context=None, layers=0):
        return super().forward(pixels, context, min(layers, 1))


class Padded(Look):
    """Declares that it takes ragged contexts, and reads their padding."""

    ragged = True


class Spare(Look):
    """Has a weight that learns nothing."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Crowd(Look):
    """Lets images read one another."""

    def last(self, x):
        return x + x.mean(0, keepdim=True)


class Narrow(Look):
    """Declares another width."""

    def __init__(self):
        super().__init__()
        self.width = 8


class Shuffled(Look):
    """Says that its tokens stand in other places than they do."""

    def forward(self, pixels, context=None, layers=0):
        from dataclasses import replace

        tokens = super().forward(pixels, context, layers)
        return tokens if context is None else replace(tokens, index=tokens.index.flip(1))


class Loose(Look):
    """Holds a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.table = {"sin": torch.zeros(3)}


class Local(Look):
    """Makes its tensors on the CPU, wherever it is."""

    def place(self, index, grid):
        return torch.sin(index[..., None] * torch.linspace(0.1, 1, 16))


class Aging(Look):
    """Says something else after a while."""

    calls = 0

    def last(self, x):
        self.calls += not self.training
        return x * (1 + self.calls // 15)


class Mute(Look):
    """Does not say whether it takes ragged contexts."""

    ragged = None


ENCODERS = {
    Shuffled: "seen",
    Loose: "stored",
    Local: "moves",
    Aging: "repeats",
    Mute: "made",
    Narrow: "returns",
    Peeks: "hidden",
    ByOrder: "order",
    Placeless: "positions",
    OneGrid: "sizes",
    FewLayers: "layered",
    Padded: "ragged",
    Spare: "learns",
    Crowd: "alone",
}


SOUND = {
    "masks": (Sound,),
    "predictors": (Guess,),
    "targets": (Follow, Words),
    "losses": (Square, Rounded, Bent, Entropy),
    "encoders": (Look,),
}


@hookimpl
def sslzoo_masks():
    return {"broken-last-row": LastRow}
