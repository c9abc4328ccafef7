"""Encoders that are wrong on purpose, each in one way; and the sound one they are made from."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Tokens


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


class Renaming(Look):
    """Takes its own names for another's, so that its own checkpoints would not come in."""

    def published(self, weights):
        return {name.replace("embed.", "patch_embed."): value for name, value in weights.items()}


class Large(Look):
    """Sound: takes images of one size alone, a large one, and counts them."""

    images = 0

    def grid(self, size):
        if tuple(size) != (224, 224):
            raise ValueError("images of 224 x 224")
        return super().grid(size)

    def forward(self, pixels, context=None, layers=0):
        Large.images += len(pixels)
        return super().forward(pixels, context, layers)


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


class Measured(Look):
    """Reads a number from its weights when it is made, so it cannot be rehearsed."""

    def __init__(self):
        super().__init__()
        self.size = next(self.parameters()).norm().item()


class PeeksLittle(Look):
    """Lets hidden patches through where few are seen."""

    def shown(self, pixels, context, grid):
        few = context is not None and context.index.shape[1] * 4 <= grid[0] * grid[1]
        return pixels + pixels.mean((1, 2, 3), keepdim=True) if few else pixels


class PeeksTraining(Look):
    """Lets hidden patches through in training."""

    def shown(self, pixels, context, grid):
        return pixels + pixels.mean((1, 2, 3), keepdim=True) if self.training else pixels


class PeeksApart(Look):
    """Lets hidden patches into its prefix, which predictors read too."""

    def forward(self, pixels, context=None, layers=0):
        return replace(super().forward(pixels, context, layers), prefix=pixels.flatten(1)[:, None, :16])


class Darkens(Look):
    """Changes the pixels in place, which the target generator reads too."""

    def shown(self, pixels, context, grid):
        return pixels.sub_(0.01)


class OneOrder(Look):
    """Counts rows as if every grid had two columns."""

    def place(self, index, grid):
        return super().place(index % 2 + 2 * (index // grid[1]), grid)


class Chunked(Look):
    """Works in chunks of a hundred, and gives all what the first has got."""

    def last(self, x):
        return x[torch.arange(len(x), device=x.device) % 100]


class SameLayer(Look):
    """Gives its last layer as often as layers are asked for."""

    def forward(self, pixels, context=None, layers=0):
        tokens = super().forward(pixels, context, layers)
        return replace(tokens, layers=(tokens.patches,) * layers)


class Coarse(Look):
    """Overflows under bfloat16."""

    def place(self, index, grid):
        place = super().place(index, grid)
        return place.half() * 1e5 if torch.is_autocast_enabled("cpu") else place


class OwnNorm(Look):
    """Normalises by its own rank's images in training, as torch's batch norm does."""

    def last(self, x):
        return F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2) if self.training else x


class FirstLast(Look):
    """Gives the layers that are asked for, the last one first."""

    def forward(self, pixels, context=None, layers=0):
        tokens = super().forward(pixels, context, layers)
        return replace(tokens, layers=tokens.layers[::-1])


class Stale(Look):
    """Keeps the places that it worked out of its weights once."""

    def __init__(self):
        super().__init__()
        self.scale, self.kept = nn.Parameter(torch.ones(16)), {}

    def place(self, index, grid):
        key = grid, index.device, self.training
        if key not in self.kept:
            table = super().place(torch.arange(grid[0] * grid[1], device=index.device), grid) * self.scale
            self.kept[key] = table if self.training else table.detach()
        return self.kept[key][index]


class Unordered(Look):
    """Draws its blocks in the order of a set."""

    def __init__(self):
        super().__init__()
        drawn = {name: nn.Linear(16, 16) for name in {f"block {number}" for number in range(9)}}
        self.blocks = nn.ModuleList([drawn["block 0"], drawn["block 1"]])


class Tables(Look):
    """Sound: keeps places that no weight is in, for each grid and device."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def place(self, index, grid):
        key = grid, index.device
        if key not in self.kept:
            self.kept[key] = super().place(torch.arange(grid[0] * grid[1], device=index.device), grid)
        return self.kept[key][index]


class Again(Look):
    """Sound: uses one block twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0]] * 2)


ENCODERS = {
    Renaming: "published",
    FirstLast: "layered",
    Stale: "stored",
    Unordered: "processes",
    PeeksLittle: "hidden",
    PeeksTraining: "hidden",
    PeeksApart: "hidden",
    Darkens: "returns",
    OneOrder: "positions",
    Chunked: "alone",
    SameLayer: "layered",
    Coarse: "bf16",
    OwnNorm: "ranks",
    Measured: "made",
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

SOUND = {"encoders": (Look, Tables, Again)}
