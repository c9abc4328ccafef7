"""Losses that are wrong on purpose, each in one way; and the sound ones they are made from."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Square(nn.Module):
    """A loss that keeps its contract."""

    needs_target = True
    reads = "patch"

    def __init__(self, signal):
        super().__init__()
        if signal.kind != self.reads:
            raise ValueError(f"of {self.reads} signals")

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
        return self.rows(prediction, target).sum() / max(1, len(prediction)), {}


class OwnMean(Unweighted):
    """Takes the mean over rows by itself and says so, which is no defect."""

    own_mean = True


class HalfOwnMean(Square):
    """Says that it takes the mean by itself, and weighs rows all the same."""

    own_mean = True


class Batched(Square):
    """Compares images of this rank only."""

    reads = "image"

    def forward(self, prediction, target, pairing, at):
        x, y = F.normalize(prediction.flatten(0, 1), dim=1), F.normalize(target.flatten(0, 1), dim=1)
        return F.cross_entropy(x @ y.T, torch.arange(len(x))), {}


class Views(Square):
    """A loss on images that keeps its contract."""

    reads = "image"

    def forward(self, prediction, target, pairing, at):
        each = (prediction[:, None] - target[None]).square().mean((2, 3))
        return (each * self.match(pairing)).sum() / self.match(pairing).sum().clamp(min=1), {}

    def match(self, pairing):
        return pairing.match


class WithItself(Views):
    """Compares each view with itself too."""

    def match(self, pairing):
        return torch.ones_like(pairing.match)


class OfNone(Views):
    """Is nan where no view may meet another."""

    def forward(self, prediction, target, pairing, at):
        value, figures = super().forward(prediction, target, pairing, at)
        return value * pairing.match.sum() / pairing.match.sum(), figures


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


class Fixed(Square):
    """Makes its tensors on the CPU, wherever it is."""

    def rows(self, prediction, target):
        return ((prediction - target).square() * torch.linspace(0.5, 1.5, prediction.shape[1])).mean(1)


class Selects(Square):
    """Selects rows by what they hold, which no rehearsed step can."""

    def forward(self, prediction, target, pairing, at):
        some = pairing.weight > 0
        return (self.rows(prediction[some], target[some]) * pairing.weight[some]).sum(), {}


class Spare(Square):
    """Has a parameter that learns nothing."""

    def __init__(self, signal):
        super().__init__(signal)
        self.spare = nn.Parameter(torch.zeros(3))


class Alone(Square):
    """Is not finite for one row."""

    def rows(self, prediction, target):
        return super().rows(prediction, target) / (1 - 1 / len(prediction))


class WrongFar(Square):
    """Has a gradient that is not its own where a difference is large."""

    def rows(self, prediction, target):
        x = prediction - target
        return torch.where(x.abs() > 6, 2 * x.detach() - x, x).square().mean(1)


class PerImage(Square):
    """Takes the mean of each image, then that of images; keeps its contract."""

    own_mean = True
    least = 1

    def forward(self, prediction, target, pairing, at):
        rows, many = self.rows(prediction, target), max(1, pairing.sequences)
        zeros = torch.zeros(many, dtype=rows.dtype, device=rows.device)
        sums = zeros.index_add(0, pairing.sequence, rows)
        counts = zeros.index_add(0, pairing.sequence, torch.ones_like(rows))
        return (sums / counts.clamp(min=self.least)).sum() / many, {}


class EmptyImage(PerImage):
    """Divides by the rows of an image that has none."""

    def forward(self, prediction, target, pairing, at):
        self.least = 0 if len(prediction) > 1 else 1
        return super().forward(prediction, target, pairing, at)


class EvenImages(Square):
    """Takes each image to have as many rows."""

    def rows(self, prediction, target):
        rows = super().rows(prediction, target)
        return rows.view(-1, 3).flatten() if len(rows) > 1 else rows


class SameViews(Views):
    """Takes as many views of the student as of the teacher."""

    def forward(self, prediction, target, pairing, at):
        each = (prediction - target.flip(0)).square().mean((1, 2))
        match = pairing.match.flip(1).diagonal()
        return (each * match).sum() / match.sum().clamp(min=1), {}


class MeanFirst(Entropy):
    """Takes the mean before it weighs."""

    def forward(self, prediction, target, pairing, at):
        return F.cross_entropy(prediction, target, reduction="sum") * pairing.weight.mean().nan_to_num(), {}


class NanFigure(Square):
    """Logs a deviation that one row does not have."""

    def forward(self, prediction, target, pairing, at):
        spread = target.std() if target.shape[0] > 1 else target.new_tensor(float("nan"))
        return super().forward(prediction, target, pairing, at)[0], {"spread": spread}


class Unordered(Square):
    """Scales in the order of a set."""

    def rows(self, prediction, target):
        first = next(iter({f"word {number}" for number in range(99)}))
        return super().rows(prediction, target) * (1 + int(first.split()[1]))


LOSSES = {
    EmptyImage: "uneven",
    EvenImages: "uneven",
    SameViews: "lopsided",
    MeanFirst: "weights",
    NanFigure: "few",
    Unordered: "processes",
    Fixed: "moves",
    Selects: "moves",
    Spare: "learns",
    Alone: "few",
    WrongFar: "gradient",
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
    HalfOwnMean: "weights",
    WithItself: "meets",
    OfNone: "meets",
    Batched: "ranks",
    Overflows: "extremes",
    Moving: "restores",
}

SOUND = {"losses": (Square, Rounded, Bent, Entropy, OwnMean, Views, PerImage)}
