"""Does an optimizer keep its contract? Steps downhill, nothing without cause, and all that it knows is saved."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from sslzoo.contracts import Optimizer
from sslzoo.errors import RunError
from sslzoo.progress import Progress
from sslzoo.recipe.schedule import Schedule
from sslzoo.recipe.sections import OptimKeys
from sslzoo.run import checkpoint, optim
from sslzoo.run.parallel import full_tensor, split_as
from sslzoo.step import Method
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import as_two_ranks, student

LR, DECAY, GOAL = 0.01, 0.1, 2.0
HALF = "predictor.*"  # the parameters of a group of their own
Grad = Callable[[str, Tensor, int], Tensor | None]  # of a parameter by name, its value, and the step


class _Run:
    """A small encoder and predictor that an optimizer moves, as the engine does it."""

    def __init__(
        self, make: Make, *, decay: float = 0.0, half: Mapping[str, float] | None = None, split: bool = False
    ) -> None:
        self.method = Method(student(), {}, {}, {})
        nn.init.zeros_(
            self.method.student.get_parameter("predictor.guess.bias")
        )  # as many a last layer and gate begins
        if split:
            fully_shard(self.method)
        groups = {HALF: half} if half is not None else {}
        self.keys = OptimKeys(lr=Schedule.parse(LR), weight_decay=Schedule.parse(decay), groups=groups)  # type: ignore[arg-type]
        self.optimizer = make(optim.groups(self.method, self.keys))
        self.done = 0

    def steps(self, count: int, grad: Grad, *, lr: float | None = None, finite: bool = True) -> _Run:
        """Some steps with these gradients; at another learning rate if one is given."""
        keys = self.keys if lr is None else self.keys.model_copy(update={"lr": Schedule.parse(lr)})
        for _ in range(count):
            optim.set_schedules(self.optimizer, keys, Progress(0, 1))
            for name, parameter in optim.trainable(self.method):
                found = grad(name, full_tensor(parameter.detach()), self.done)
                parameter.grad = None if found is None else split_as(found, parameter)
            optim.drop_frozen(self.optimizer)
            optim.step(self.optimizer, torch.tensor(finite))
            self.done += 1
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters as they are now, by name."""
        return {name: full_tensor(x.detach()).clone() for name, x in optim.trainable(self.method)}


def _uphill(_name: str, weight: Tensor, step: int) -> Tensor:
    """The gradient of half the squared distance from GOAL, with some noise."""
    rng = torch.Generator().manual_seed(step)
    return weight - GOAL + 0.01 * torch.randn(weight.shape, generator=rng)


def _swinging(_name: str, weight: Tensor, step: int) -> Tensor:
    """Noise alone: even the sign of a running mean of it tells what came before."""
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))


def _none(_name: str, weight: Tensor, _step: int) -> Tensor:
    return torch.zeros_like(weight)


def _far(weights: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: (x - GOAL).norm().item() for name, x in weights.items()}


def _differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The first parameter that is not the same in both, bit for bit."""
    return next((name for name, x in one.items() if not torch.equal(x, other[name])), "")


made = offers(Optimizer, lambda make: _Run(make).optimizer)


@check(made)
def grouped(make: Make) -> str:
    """It is one of torch's, keeps the groups as they are given, and says whether it takes pieces of weights."""
    run = _Run(make, half={"lr": 0.5})
    if not isinstance(run.optimizer, torch.optim.Optimizer):
        raise Violation("a torch.optim.Optimizer", type(run.optimizer).__name__, "made with two groups")
    if not isinstance(run.optimizer.shards, bool):  # type: ignore[attr-defined]
        raise Violation("`shards`, true or false", repr(run.optimizer.shards), "made with two groups")  # type: ignore[attr-defined]
    found = [len(group["params"]) for group in run.optimizer.param_groups]
    wanted = [len(group["params"]) for group in optim.groups(run.method, run.keys)]
    for group in run.optimizer.param_groups:
        if lost := {"factors", "layer", "decays"} - set(group):
            raise Violation("groups with all that the engine wrote into them", f"without {', '.join(sorted(lost))}")
    if found != wanted:
        raise Violation(f"groups of {wanted} parameters", str(found), "made with two groups")
    return "takes pieces of weights" if run.optimizer.shards else "needs whole weights"  # type: ignore[attr-defined]


@check(grouped)
def repeats(make: Make) -> None:
    """The same gradients give the same weights, whatever the global generators hold."""
    found = []
    for seed in (1, 2):
        run = _Run(make)
        torch.manual_seed(seed)
        found.append(run.steps(4, _uphill).weights)
    if moved := _differ(*found):
        raise Violation("the same weights", f"another {moved}", "4 steps, under two global seeds")


@check(repeats)
def downhill(make: Make) -> None:
    """Every parameter moves against its gradient."""
    run = _Run(make, half={"lr": 0.5})  # two groups
    before = _far(run.weights)
    after = _far(run.steps(20, _uphill).weights)
    for name, far in after.items():
        if not far < before[name]:
            smallest = f"{name}, 20 steps at lr {LR} towards {GOAL:g}"
            raise Violation(f"nearer than {before[name]:.4g}", f"{far:.4g}", smallest)


@check(grouped)
def in_place(make: Make) -> None:
    """It moves weights where they lie: the network, its copies on other ranks and compiled code hold them there."""
    run = _Run(make)
    before = {name: (id(x), x.data_ptr()) for name, x in optim.trainable(run.method)}
    run.steps(3, _uphill)
    for name, x in optim.trainable(run.method):
        if before[name] != (id(x), x.data_ptr()):
            raise Violation("each weight's own memory, written into (add_, copy_)", f"another of {name}", "3 steps")


@check(repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    return _Run(make, decay=DECAY).steps(4, _uphill).weights


@check(repeats)
def still(make: Make) -> None:
    """At learning rate 0 nothing moves, decay or not; and a group's own learning rate is read at every step."""
    run = _Run(make, decay=DECAY).steps(3, _uphill)
    before = run.weights
    if moved := _differ(before, run.steps(2, _uphill, lr=0.0).weights):
        raise Violation("weights as they were", f"{moved} moved", f"step 4, lr 0, after three of lr {LR}")
    parted = _Run(make, decay=DECAY, half={"lr": 1e-9})
    before = parted.weights
    after = parted.steps(3, _uphill).weights
    for name, x in after.items():
        slow, gap = name.startswith("predictor."), (x - before[name]).abs().max().item()
        if slow == (gap > 1e-6):
            wanted = "hardly any" if slow else "some"
            raise Violation(f"{wanted} change of {name}", f"{gap:.1e}", f"two groups, lr {LR} and {LR * 1e-9:g}")


@check(repeats)
def untouched(make: Make) -> None:
    """A parameter without a gradient stays as it is, decay or not."""
    run = _Run(make, decay=DECAY)

    def some(name: str, weight: Tensor, step: int) -> Tensor | None:
        return None if "weight" in name and step != 1 else _uphill(name, weight, step)

    for step in range(3):  # the second has all gradients, so that there is momentum that must not go on
        before = run.weights
        after = run.steps(1, some).weights
        for name, x in after.items():
            if "weight" in name and step != 1 and not torch.equal(x, before[name]):
                raise Violation("weights as they were", f"{name} moved", f"step {step + 1}, no gradient")


@check(repeats)
def decays(make: Make) -> None:
    """Weights decay as their group says, and not where it says 0."""
    smallest = f"5 steps without gradients, lr {LR}, weight_decay {DECAY}; 0 for {HALF}"
    run = _Run(make, decay=DECAY, half={"weight_decay": 0.0})
    before = run.weights
    for name, x in run.steps(5, _none).weights.items():
        if name.startswith("predictor."):
            if not torch.equal(x, before[name]):
                raise Violation("no decay", f"{name} moved", smallest)
        elif before[name].any() and not x.norm() < before[name].norm():
            came = f"{x.norm().item():.6g} of {before[name].norm().item():.6g}"
            raise Violation(f"a smaller norm of {name}", came, smallest)


@check(repeats)
def skips(make: Make) -> None:
    """A step that is not finite leaves nothing behind: the first, or a later one."""

    def broken(_name: str, weight: Tensor, _step: int) -> Tensor:
        return torch.full_like(weight, math.nan)

    for before in (0, 2):
        one = _Run(make, decay=DECAY).steps(before, _uphill)
        other = _Run(make, decay=DECAY).steps(before, _uphill)
        one.steps(1, broken, finite=False)
        one.done -= 1
        if moved := _differ(one.weights, other.weights):
            raise Violation("weights as they were", f"{moved} moved", f"step {before + 1}, skipped")
        if moved := _differ(one.steps(3, _swinging).weights, other.steps(3, _swinging).weights):
            came = f"another {moved}: the skipped step left something in the optimizer's state"
            raise Violation("what would have come without it", came, f"step {before + 1} skipped, then 3 more")


@check(repeats)
def restores(make: Make) -> str:
    """Saved and restored, it goes on bit for bit: all that it knows is state, tensors by parameter."""
    for before in (0, 3, 12):
        one, other = (_Run(make, decay=DECAY) for _ in range(2))
        one.steps(before, _swinging)
        try:
            with tempfile.TemporaryDirectory() as folder:
                saved = checkpoint.save(Path(folder), before, one.method, one.optimizer)
                checkpoint.restore(checkpoint.read(saved), other.method, other.optimizer)
        except RunError as error:
            raise Violation("state that a checkpoint holds", str(error), f"saved after {before} steps") from error
        other.done = one.done
        if moved := _differ(one.steps(3, _uphill).weights, other.steps(3, _uphill).weights):
            came = f"another {moved}: something it knows is no state of a parameter"
            raise Violation(
                "what would have come without the restart", came, f"saved after {before} steps, then 3 more"
            )
    first = next(iter(one.optimizer.state.values()), {})
    return f"state: {', '.join(map(str, first)) or 'none'}"


@check(restores, slow=True)
def shards(make: Make) -> None:
    """With weights split over two ranks it gives what it gives with whole ones, or says that it needs those."""
    whole = _Run(make, decay=DECAY)
    if not whole.optimizer.shards:  # type: ignore[attr-defined]
        raise Skip("it says that it needs whole weights")
    wanted = whole.steps(4, _uphill).weights

    def split(_rank: int) -> Any:
        run = _Run(make, decay=DECAY, split=True).steps(4, _uphill)
        return {name: x.numpy() for name, x in run.weights.items()}

    found = as_two_ranks(split, make)[0]
    for name, x in wanted.items():
        gap = (x - torch.from_numpy(found[name])).abs().max().item()
        if not gap <= 1e-5 * max(1e-3, x.abs().max().item()) + 1e-7:  # nor nan
            raise Violation("the weights of one process", f"{name} differs by {gap:.1e}", "4 steps, two ranks")


CHECKS: tuple[Check, ...] = (made, grouped, repeats, in_place, downhill, still, untouched, decays)
CHECKS += (skips, restores, processes, shards)
