"""Predictors that are wrong on purpose, each in one way; and the sound one they are made from."""

from dataclasses import replace

import torch
from torch import nn

from sslzoo import Patches, Signal


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


class Gated(Guess):
    """Lets sequences read one another, through a layer that says nothing before it has learned."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.others = nn.Linear(encoder.width, encoder.width)
        nn.init.zeros_(self.others.weight)
        nn.init.zeros_(self.others.bias)

    def seen(self, tokens):
        return super().seen(tokens) + self.others(tokens.patches.mean((0, 1)))


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


class Sheared(Guess):
    """Cuts what it is given, in place."""

    def rows(self, tokens, target):
        return super().rows(tokens, Patches(target.index.clamp_(max=9), target.length, target.real))


class Cold(Guess):
    """Detaches the tokens, so no encoder learns."""

    def seen(self, tokens):
        return super().seen(tokens).detach()


class Chunked(Guess):
    """Works in chunks of a hundred, and gives all what the first has got."""

    def seen(self, tokens):
        x = super().seen(tokens)
        return x[torch.arange(len(x), device=x.device) % 100]


class Late(Guess):
    """Lets sequences read one another once half of the run is over."""

    def forward(self, tokens, target, at):
        said = super().forward(tokens, target, at)
        return {name: x + x.mean() for name, x in said.items()} if at.step > at.steps / 2 else said


class Lazy(Guess):
    """Makes a layer when it is called, which no optimizer knows."""

    def seen(self, tokens):
        x = super().seen(tokens)
        if not hasattr(self, "late"):
            self.late = nn.Linear(x.shape[1], x.shape[1], device=x.device)
        return self.late(x)


class OneTable(Guess):
    """Has positions for a grid of 4 x 4, and takes the last for all beyond it."""

    def rows(self, tokens, target):
        return super().rows(tokens, Patches(target.index.clamp(max=15), target.length, target.real))


class ByOrder(Guess):
    """Weighs what is seen by where it stands in its row."""

    def seen(self, tokens):
        many = tokens.patches.shape[1]
        weight = torch.linspace(1, 2, many, device=tokens.patches.device)[:, None]
        return super().seen(replace(tokens, patches=tokens.patches * weight))


class InBlock(Guess):
    """Gives places within the block, beside those on the grid."""

    def rows(self, tokens, target):
        x = super().rows(tokens, target)
        return x + torch.linspace(0, 1, x.shape[2], device=x.device)[:, None]


class Images(Guess):
    """Says something of images too, and keeps its contract."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.outputs |= {"image": Signal("image", encoder.width)}

    def forward(self, tokens, target, at):
        return super().forward(tokens, target, at) | {"image": self.image(tokens)}

    def image(self, tokens):
        return self.seen(tokens)


class FirstPatch(Images):
    """Takes the first patch for a class token."""

    def image(self, tokens):
        return tokens.patches[:, 0]


class PaddedImage(Images):
    """Takes the mean over padding too."""

    def image(self, tokens):
        return tokens.patches.mean(1)


class NoneAsked(Guess):
    """Fails where nothing is asked of any sequence."""

    def forward(self, tokens, target, at):
        said = super().forward(tokens, target, at)
        return {name: x.clamp(max=1e6 + x.detach().max()) for name, x in said.items()}


class Stale(Guess):
    """Keeps what it worked out of a weight once."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.scale, self.kept = nn.Parameter(torch.ones(encoder.width)), {}

    def seen(self, tokens):
        return super().seen(tokens) * self.kept.setdefault(tokens.patches.device, self.scale.exp())


class Unordered(Guess):
    """Draws its layers in the order of a set."""

    def __init__(self, encoder):
        super().__init__(encoder)
        drawn = {name: nn.Linear(encoder.width, encoder.width) for name in {f"layer {n}" for n in range(99)}}
        self.out = drawn["layer 0"]


class Dropping(Guess):
    """Sound: leaves out by chance while it trains."""

    def seen(self, tokens):
        return nn.functional.dropout(super().seen(tokens), 0.1, self.training)


PREDICTORS = {
    ByOrder: "indices",
    InBlock: "indices",
    FirstPatch: "indices",
    PaddedImage: "ragged_context",
    NoneAsked: "ragged_target",
    Stale: "stored",
    Unordered: "processes",
    Sheared: "outputs",
    Cold: "learns",
    Chunked: "alone",
    Late: "alone",
    Lazy: "stored",
    OneTable: "places",
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
    Gated: "alone",
    Standardised: "ranks",
    Ordered: "order",
    ReadsPadding: "ragged_context",
    KeepsPadding: "ragged_target",
    Coarse: "bf16",
    Breaks: "compiles",
}

SOUND = {"predictors": (Guess, Images, Dropping)}
