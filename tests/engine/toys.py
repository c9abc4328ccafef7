"""Toy parts that stand for every kind of method the contracts must carry: a plugin file for tests.

DINO (multi-crop, head with prototypes, centre), SimCLR (gathered negatives), MSN (prototypes shared by both sides),
iBOT (ragged masks, image and patch signals), data2vec (average of teacher layers), and a row loss for accumulation.
"""

import copy
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Mask, Patches, Schedule, Signal, Tokens, all_mean, gather, hookimpl, world_size
from sslzoo.nn import BatchNorm


class Noise:
    """Images of smoothed noise.

    Args:
        length: images.
        broken: every image whose number divides by this cannot be read; 0 for none.
        nan_from: images from this number on hold nan; 0 for none.
    """

    tasks = MappingProxyType({"parity": 2})

    def __init__(self, *, length: int = 64, broken: int = 0, nan_from: int = 0) -> None:
        self.length, self.broken, self.nan_from = length, broken, nan_from

    def __len__(self):
        return self.length

    def image(self, i):
        if self.broken and i % self.broken == 0:
            raise OSError("truncated file")
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i))
        return image * float("nan") if self.nan_from and i >= self.nan_from else image

    def label(self, i):
        return {"parity": i % 2}


class Jitter:
    """Random brightness and flip at a size."""

    def __init__(self, *, size: int = 8) -> None:
        self.size = (size, size)

    def __call__(self, image):
        top, left = (int(torch.randint(0, 8 - side + 1, ())) for side in self.size)
        seen = image[:, top : top + self.size[0], left : left + self.size[1]] * (0.5 + torch.rand(()))
        box = torch.tensor([top / 8, left / 8, self.size[0] / 8, self.size[1] / 8])
        return seen.flip(2) if torch.rand(()) < 0.5 else seen, box


class Half:
    """Half of the patches at random are seen, the rest are one block to guess; `ragged`: some of the rest."""

    ragged = False

    def __init__(self, *, some: bool = False) -> None:
        self.some = some

    def __call__(self, batch, grid, rng):
        n = grid[0] * grid[1]
        order = rng.permutation(n)
        context, target = order[:, : n // 2], order[:, None, n // 2 :]
        length = 1 + rng.integers(n // 2, 1) if self.some else None
        return Mask(Patches(context), Patches(target, length))


class Tiny(nn.Module):
    """One attention block over linear patches of 2 x 2 pixels."""

    ragged = False

    def __init__(self, *, width: int = 12, hidden: str = "drop") -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.embed, self.place = nn.Linear(12, width), nn.Linear(2, width)
        self.token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(self._block(width) for _ in range(2))

    @staticmethod
    def _block(width):
        # Without biases: the gradient of a key's bias is zero but for rounding, which AdamW would blow up.
        return nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True, bias=False)

    def grid(self, size):
        return size[0] // 2, size[1] // 2

    def forward(self, pixels, context=None, layers=0):
        s, (h, w) = len(pixels), self.grid(tuple(pixels.shape[-2:]))
        patches = F.unfold(pixels, 2, stride=2).transpose(1, 2)
        places = torch.cartesian_prod(*(torch.linspace(0, 1, n, device=pixels.device) for n in (h, w)))
        x, index = self.embed(patches), torch.arange(h * w, device=pixels.device).expand(s, -1)
        if context is not None and self.hidden == "fill":
            seen = torch.zeros(s, h * w, 1, device=x.device).scatter(1, context.index[..., None], 1.0)
            x = seen * x + (1 - seen) * self.token
        x = x + self.place(places)
        if context is not None and self.hidden == "drop":
            x, index = context.take(x), context.index
        outs = []
        for block in self.blocks:
            x = block(x)
            outs.append(x)
        return Tokens(x, index, x.mean(1), (h, w), layers=tuple(outs[len(outs) - layers :]))


class Guess(nn.Module):
    """Guesses every target patch from the mean of the context and the place."""

    projector, blocks = None, nn.ModuleList()

    def __init__(self, encoder) -> None:
        super().__init__()
        self.outputs = {"patch": Signal("patch", encoder.width)}
        self.place, self.out = nn.Embedding(64, encoder.width), nn.Linear(encoder.width, encoder.width)

    def forward(self, tokens, target, at):
        mean = tokens.summary[:, None, None] + self.place(target.index)
        return {"patch": target.flat(self.out(mean))}


class Read(nn.Module):
    """A linear read-out of filled tokens."""

    projector, blocks = None, nn.ModuleList()

    def __init__(self, encoder) -> None:
        super().__init__()
        self.outputs = {"patch": Signal("patch", encoder.width)}
        self.out = nn.Linear(encoder.width, encoder.width)

    def forward(self, tokens, target, at):
        return {"patch": target.flat(self.out(tokens.at(target)))}


class Head(nn.Module):
    """Projects summaries, and with `patches` also target patches, to a space shared with the teacher."""

    blocks = nn.ModuleList()

    def __init__(self, encoder, *, width: int = 16, patches: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.patches = patches
        between = BatchNorm(16) if norm else nn.Identity()
        self.projector = nn.Sequential(
            nn.Linear(encoder.width, 16, bias=not norm), between, nn.GELU(), nn.Linear(16, width)
        )
        self.outputs = {"image": Signal("image", width)} | ({"patch": Signal("patch", width)} if patches else {})

    def forward(self, tokens, target, at):
        out = {"image": self.projector(tokens.summary)}
        if self.patches and target is not None:
            out["patch"] = target.flat(self.projector(tokens.at(target)))
        return out


MOMENTUM = Schedule.parse(0.9)


class Follow(nn.Module):
    """A teacher that follows the student by a moving average."""

    def __init__(self, student, *, momentum: Schedule = MOMENTUM, project: bool = False, layers: int = 0):
        super().__init__()
        self.momentum, self.layers = Schedule.parse(momentum), layers
        self.encoder = copy.deepcopy(student.encoder).requires_grad_(False)
        self.projector = copy.deepcopy(student.predictor.projector).requires_grad_(False) if project else nn.Identity()
        width = student.predictor.outputs["image"].width if project else student.encoder.width
        self.outputs = {"patch": Signal("patch", width), "image": Signal("image", width)}

    @torch.no_grad()
    def forward(self, batch, student, at):
        patch, image = [], []
        for group in batch.groups.values():
            if group.role == "context":
                continue
            tokens = self.encoder(group.pixels.flatten(0, 1), None, self.layers)
            image.append(self.projector(tokens.summary).unflatten(0, group.pixels.shape[:2]))
            if group.mask is not None:
                x = torch.stack(tokens.layers).mean(0) if self.layers else tokens.patches
                patch.append(group.mask.target.flat(group.mask.target.take(self.projector(x))))
        return {"image": torch.cat(image)} | ({"patch": torch.cat(patch)} if patch else {})

    @torch.no_grad()
    def after_step(self, student, at):
        pairs = [(self.encoder, student.encoder)]
        if not isinstance(self.projector, nn.Identity):
            pairs.append((self.projector, student.predictor.projector))
        for own, other in pairs:
            torch._foreach_lerp_(list(own.parameters()), list(other.parameters()), 1 - self.momentum(at))


class Same(nn.Module):
    """The student's own image signal is the target."""

    def __init__(self, student) -> None:
        super().__init__()
        self.outputs = dict(student.predictor.outputs)

    def forward(self, batch, student, at):
        return dict(student.signals)

    def after_step(self, student, at): ...


class Centered(nn.Module):
    """Cross-entropy to a centered, sharpened teacher: DINO on images, iBOT on patches."""

    needs_target = True

    def __init__(self, signal, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(signal.width))

    def forward(self, prediction, target, pairing, at):
        wanted = ((target - self.center) / 0.05).softmax(-1)
        said = (prediction / 0.1).log_softmax(-1)
        if target.ndim == 3:
            crossed = -torch.einsum("vbp,ubp->vu", said, wanted) / target.shape[1]
            loss = (crossed * pairing.match).sum() / pairing.match.sum()
            mean = all_mean(target.mean((0, 1)))
        else:
            loss = -(pairing.weight * (wanted * said).sum(-1)).sum()
            mean = all_mean((pairing.weight[:, None] * target).sum(0))
        with torch.no_grad():
            self.center.lerp_(mean, 1 - self.momentum)
        return loss, {"center": self.center.norm()}


class NtXent(nn.Module):
    """SimCLR's loss, negatives gathered over ranks."""

    needs_target = True
    whole_batch = True

    def __init__(self, signal, *, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, prediction, target, pairing, at):
        mine = F.normalize(prediction, dim=-1)  # v=2 b e
        b = mine.shape[1]
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        everyone = torch.cat([gather(mine[0]), gather(mine[1])])
        total = len(everyone) // 2
        own = torch.arange(rank * b, rank * b + b, device=mine.device)
        own = torch.cat([own, own + total])
        logits = mine.flatten(0, 1) @ everyone.T / self.temperature
        logits = logits.scatter(1, own[:, None], float("-inf"))
        return F.cross_entropy(logits, (own + total) % (2 * total)), {}


class Assign(nn.Module):
    """MSN: prototypes that learn, shared by both sides, and a term that wants all of them used."""

    needs_target = True
    whole_batch = True

    def __init__(self, signal, *, prototypes: int = 8) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(prototypes, signal.width) / 4)

    def forward(self, prediction, target, pairing, at):
        pool = F.normalize(self.prototypes, dim=-1)
        said = (F.normalize(prediction, dim=-1) @ pool.T / 0.1).softmax(-1)
        wanted = (F.normalize(target[0], dim=-1) @ pool.detach().T / 0.025).softmax(-1).detach()
        mean = all_mean(said.mean((0, 1)))
        loss = -(wanted * said.log()).sum(-1).mean() + (mean * mean.log()).sum()
        return loss, {}


class Squared(nn.Module):
    """Mean squared error of rows."""

    needs_target = True

    def __init__(self, signal) -> None:
        super().__init__()

    def forward(self, prediction, target, pairing, at):
        return (pairing.weight * (prediction - target).square().mean(-1)).sum(), {}


@hookimpl
def sslzoo_datasets():
    return {"noise": Noise}


@hookimpl
def sslzoo_views():
    return {"jitter": Jitter}


@hookimpl
def sslzoo_masks():
    return {"half": Half}


@hookimpl
def sslzoo_encoders():
    return {"tiny": Tiny}


@hookimpl
def sslzoo_predictors():
    return {"guess": Guess, "read": Read, "head": Head}


@hookimpl
def sslzoo_targets():
    return {"follow": Follow, "same": Same}


@hookimpl
def sslzoo_losses():
    return {"centered": Centered, "ntxent": NtXent, "assign": Assign, "squared": Squared}
