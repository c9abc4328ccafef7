"""Optimizers that are wrong on purpose, each in one way; and the sound one they are made from."""

import torch


class Momentum(torch.optim.Optimizer):
    """m <- 0.9 m + g;  w <- (1 - lr decay) w - lr m."""

    shards = True

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, weight.grad, group["lr"], group["weight_decay"])

    def move(self, weight, grad, lr, decay):
        mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
        mean.mul_(0.9).add_(grad)
        weight.mul_(1 - lr * decay).add_(self.step_of(mean), alpha=-lr)

    def step_of(self, mean):
        return mean


class FirstGroup(Momentum):
    """Moves the first group of parameters and no other."""

    @torch.no_grad()
    def step(self, closure=None):
        groups, self.param_groups = self.param_groups, self.param_groups[:1]
        super().step()
        self.param_groups = groups


class Mute(Momentum):
    """Does not say whether it takes pieces of weights."""

    shards = None


class Ungrouped(Momentum):
    """Puts all parameters into one group, so factors of groups are lost."""

    def __init__(self, groups):
        super().__init__([{"params": [p for group in groups for p in group["params"]]}])
        for group in self.param_groups:
            group |= {"factors": [], "layer": 1.0, "decays": True}


class Upwards(Momentum):
    """Moves what is no matrix the wrong way."""

    def step_of(self, mean):
        return mean if mean.ndim > 1 else -mean


class Remembers(Momentum):
    """Keeps the learning rate of its first step."""

    first = None

    def move(self, weight, grad, lr, decay):
        self.first = lr if self.first is None else self.first
        super().move(weight, grad, self.first, decay)


class Restless(Momentum):
    """Decays whatever the learning rate."""

    def move(self, weight, grad, lr, decay):
        super().move(weight, grad, lr, 0.0)
        weight.mul_(1 - 1e-3 * decay)


class Coasting(Momentum):
    """Goes on along its momentum where there is no gradient."""

    def step(self, closure=None):
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            weight.grad = torch.zeros_like(weight) if weight.grad is None and self.state[weight] else weight.grad
        super().step()


class Decaying(Momentum):
    """Decays what has no gradient."""

    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is None:
                        weight.mul_(1 - group["lr"] * group["weight_decay"])


class OwnDecay(Momentum):
    """Decays by a number of its own."""

    def move(self, weight, grad, lr, decay):
        super().move(weight, grad, lr, 0.01)


class NoDecay(Momentum):
    """Does not decay."""

    def move(self, weight, grad, lr, decay):
        super().move(weight, grad, lr, 0.0)


class Noisy(Momentum):
    """Adds noise of torch's own generator."""

    def step_of(self, mean):
        return mean + 1e-6 * torch.randn(mean.shape)


class Poisoned(Momentum):
    """Says that it skips by itself, and skips the weights alone: its momentum is nan from then on."""

    _step_supports_amp_scaling = True

    def move(self, weight, grad, lr, decay):
        skipped = self.found_inf.item() > 0
        before = weight.clone()
        super().move(weight, grad, lr, decay)
        if skipped:
            weight.copy_(before)


class Counting(Momentum):
    """Counts its steps in an attribute, which no checkpoint holds."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        super().step()

    def step_of(self, mean):
        return mean * min(1.0, self.calls / 5)


class Hidden(Momentum):
    """Keeps its momentum in a list of its own."""

    def move(self, weight, grad, lr, decay):
        self.means = getattr(self, "means", {})
        self.state[weight]["mean"] = self.means.setdefault(weight, torch.zeros_like(weight))
        super().move(weight, grad, lr, decay)


class HiddenSign(Hidden):
    """Keeps its momentum in a list of its own, and takes only the sign of it."""

    def step_of(self, mean):
        return mean.sign()


class CountsLate(Momentum):
    """Counts its steps in an attribute, and goes faster from the tenth on."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        super().step()
        if self.steps > 10:
            super().step()


class Rows(Momentum):
    """Keeps a number for each row, and says that pieces of weights will do."""

    def move(self, weight, grad, lr, decay):
        self.state[weight].setdefault("rows", torch.zeros(2 * len(weight))).add_(1)
        super().move(weight, grad, lr, decay)


class WholeRows(Rows):
    """The same, but needs whole weights, which is no defect."""

    shards = False


class Piecewise(Momentum):
    """Divides by the norm of the piece that a rank has."""

    def step_of(self, mean):
        own = getattr(mean, "_local_tensor", mean)
        return mean * (1 / (own.norm().item() + 1e-6))


class Replaces(Momentum):
    """Gives each weight another memory."""

    def move(self, weight, grad, lr, decay):
        weight.data = weight.data.clone()
        super().move(weight, grad, lr, decay)


class Trusting(Momentum):
    """Steps as large as the weight, so what is zero stays zero (LARS without its guard)."""

    def move(self, weight, grad, lr, decay):
        super().move(weight, grad * self.ratio(weight.norm(), grad.norm()), lr, decay)

    def ratio(self, weight, grad):
        return weight / (grad + 1e-6)


class Guarded(Trusting):
    """Sound: LARS with its guard."""

    shards = False

    def ratio(self, weight, grad):
        return torch.where((weight > 0) & (grad > 0), super().ratio(weight, grad), 1.0)


class Unordered(Momentum):
    """Goes faster by the order of a set."""

    def step_of(self, mean):
        order = "".join(word[-1] for word in {f"word {number}" for number in range(9)})  # of them all: seldom alike
        return mean * (1 + int(order) / 1e9)


OPTIMIZERS = {
    Replaces: "in_place",
    Trusting: "downhill",
    Unordered: "processes",
    CountsLate: "restores",
    Rows: "restores",
    Mute: "grouped",
    Ungrouped: "grouped",
    Upwards: "downhill",
    FirstGroup: "downhill",
    Remembers: "still",
    Restless: "still",
    Coasting: "untouched",
    Decaying: "untouched",
    OwnDecay: "decays",
    NoDecay: "decays",
    Noisy: "repeats",
    Poisoned: "skips",
    Counting: "restores",
    Hidden: "restores",
    HiddenSign: "restores",
    Piecewise: "shards",
}
SOUND = {
    "optimizers": (
        Momentum,
        WholeRows,
        Guarded,
    )
}
