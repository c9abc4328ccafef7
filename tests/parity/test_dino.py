"""DINO and iBOT: crops of two sizes, shared heads, masks, centers, and whole runs of the published training loops."""

import pytest
import torch
from tensors import (
    Optim,
    adamw,
    allowed,
    close,
    compared,
    factors,
    files,
    mask_of,
    numbered,
    part,
    read,
    under,
    vit_of,
)

from sslzoo import Batch, Group, Progress, Schedule, Student
from sslzoo.recipe.sections import Factors
from sslzoo.run import data, optim
from sslzoo.run.processes import World
from sslzoo.step import Method, Term, compute_loss

FILES = pytest.mark.parametrize("path", [*files("dino"), *files("ibot")])
NONE = Factors(weight_decay=0)


def ours(name):
    """Our name of a tensor of theirs; iBOT's head for patches is the one for classes, stored twice."""
    name = name.replace("backbone.masked_embed", "encoder.mask_token").replace("backbone.", "encoder.")
    name = name.replace("last_layer2", "last_layer")
    name = name.replace("head.mlp.weight", "head.mlp.0.weight").replace(
        "head.mlp.bias", "head.mlp.0.bias"
    )  # of 1 layer
    return name.replace("head.", "predictor.projector.") if name.startswith("head.") else name


def named(tensors):
    """Under our names; what the file stores twice is the same."""
    found = {}
    for name, value in tensors.items():
        assert torch.equal(found.setdefault(ours(name), value), value), name
    return found


def method_of(tensors, facts):
    model, head, loss, masked = facts["model"], facts["head"], facts["loss"], facts["method"] == "ibot"
    encoder = vit_of(
        model,
        class_token=True,
        positions="learned",
        resample="offset",
        hidden="fill" if masked else "drop",
    )
    keys = {"width": head["bottleneck_dim"], "hidden": head["hidden_dim"], "layers": head["nlayers"]}
    keys |= {"prototypes": head["out_dim"], "gain": not head["norm_last_layer"], "patches": masked}
    keys |= {"act": head.get("act_in_head", "gelu")}
    student = Student(encoder, part("predictors", "head", encoder, **keys))
    weights = named(under(tensors, "init."))
    for name, value in student.state_dict().items():
        value.copy_(weights.pop(name).view_as(value))
    assert not weights
    momentum = {"cosine": [facts["opt"]["momentum_teacher"], 1.0], "counting": "zero"}
    keys = {"project": True, "project_patches": masked, "center": loss["center_momentum"], "momentum": momentum}
    teacher = part("targets", "ema", student, **keys)
    if masked:
        teacher.patch_center.momentum = loss["center_momentum2"]  # theirs has two; ours one key for both
    losses, terms = {}, {}
    for kind in ("image", "patch") if masked else ("image",):
        which = "_patch" if kind == "patch" else ""
        ends = {"from": loss[f"warmup_teacher{which}_temp"], "to": loss[f"teacher{which}_temp"]}
        warmup = {"epochs": loss["warmup_teacher_temp_epochs"], **ends}
        keys = {"temperature": loss["student_temp"], "average": "rows" if kind == "image" else "images"}
        keys["teacher_temperature"] = Schedule.parse({"warmup": warmup, "counting": "inclusive", "each": "epoch"})
        losses[kind] = part("losses", "distill", student.predictor.outputs[kind], **keys)
        weight = loss.get("lambda1" if kind == "image" else "lambda2", 1.0)
        terms[kind] = Term(f"predictor.{kind}", f"teacher.{kind}", Schedule.parse(weight))
    return Method(student, {"teacher": teacher}, losses, terms)


def optim_of(facts):
    opt = facts["opt"]
    warmup = {"epochs": opt["warmup_epochs"], "from": 0.0, "to": opt["base_lr"] * facts["batch"] / 256}
    groups = {"*.bias": NONE, "*norm*.weight": NONE}
    if opt["freeze_last_layer"]:
        thawed = {"piecewise": {0: 0, f"{opt['freeze_last_layer']} epochs": 1}}
        groups["*last_layer*"] = Factors(lr=Schedule.parse(thawed))
    return Optim(
        lr={"warmup": warmup | {"then": {"cosine": opt["min_lr"]}}, "counting": "inclusive"},
        weight_decay={"cosine": [opt["weight_decay"], opt["weight_decay_end"]]},
        betas=opt["betas"],
        eps=opt["eps"],
        clip=opt["clip_grad"] or None,
        clip_each=bool(opt["clip_grad"]),
        groups=groups,
    )


def batch_of(tensors, step):
    crops = numbered(tensors, f"step{step}.crop.")
    masks = numbered(tensors, f"step{step}.mask.")
    mask = mask_of(torch.cat(masks).flatten(1)) if masks else None
    wide, near = torch.stack(crops[:2]), torch.stack(crops[2:]) if crops[2:] else None
    groups = {"global": Group(wide, torch.zeros(*wide.shape[:2], 4), mask, "both")}
    groups |= {} if near is None else {"local": Group(near, torch.zeros(*near.shape[:2], 4), None, "context")}
    return data.weigh([Batch(groups, data.pair(groups))], World())[0]


def progress(facts, step):
    return Progress(step, facts["epochs"] * facts["iterations_per_epoch"], facts["iterations_per_epoch"])


def same(found, wanted, tolerance):
    """Every tensor of theirs is ours; ours have no other that trains."""
    for name, value in wanted.items():
        close(compared(name, found[name]).view_as(value), compared(name, value), tolerance, name)


def forward(method, batch):
    """What encoders and heads say, views outermost: classes, and tokens and patches of global crops."""
    student, teacher, said = method.student, method.targets["teacher"], {}
    for name, group in batch.groups.items():
        mask, pixels = group.mask, group.pixels.flatten(0, 1)
        tokens = student.encoder(pixels, None if mask is None else mask.context)
        said[name] = torch.cat([tokens.prefix, tokens.patches], 1), student.predictor.projector
        if name == "global":
            theirs = teacher.encoder(pixels)
            said["teacher"] = torch.cat([theirs.prefix, theirs.patches], 1), teacher.projector
    return {name: (tokens, head(tokens)) for name, (tokens, head) in said.items()}


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method, batch = method_of(tensors, facts), batch_of(tensors, 0)
    said = forward(method, batch)
    if facts["method"] == "ibot":
        close(said["global"][0], tensors["step0.student.backbone.global"])
        close(said["global"][1][:, 0], tensors["step0.student.head.class"])
        close(said["global"][1][:, 1:], tensors["step0.student.head.patch"])
        if "local" in said:  # there need be none
            close(said["local"][0], tensors["step0.student.backbone.local"])
            close(said["local"][1][:, 0], tensors["step0.student.head.local_class"])
        close(said["teacher"][0], tensors["step0.teacher.backbone"])
        close(said["teacher"][1][:, 0], tensors["step0.teacher.head.class"])
        close(said["teacher"][1][:, 1:], tensors["step0.teacher.head.patch"])
    else:
        for which, name in ((0, "backbone"), (1, "head")):
            both = torch.cat([said[group][which][:, 0] for group in batch.groups])
            close(both, tensors[f"step0.student.{name}"])
            close(said["teacher"][which][:, 0], tensors[f"step0.teacher.{name}"])
    loss, _ = compute_loss(method, batch, progress(facts, 0))
    assert loss.item() == pytest.approx(facts["losses"][0], rel=1e-5)
    loss.backward()
    found = {name: one.grad for name, one in method.student.named_parameters() if one.requires_grad}
    wanted = named(under(tensors, "step0.grad."))
    assert set(found) == set(wanted)
    same(found, wanted, allowed(facts, "step0.grad"))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    optimizer, teacher = adamw(method, settings), method.targets["teacher"]
    parts = {"image": "losses_class", "patch": "losses_patch"} if facts["method"] == "ibot" else {"image": "losses"}
    temperatures = {"image": "teacher_temp", "patch": "teacher_patch_temp"}
    for step in range(facts["steps"]):
        at = progress(facts, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9, abs=1e-12)
        assert used["weight_decay"] == pytest.approx(facts["wd_used"][step], rel=1e-9)
        assert teacher.momentum(at) == pytest.approx(facts["momentum"][step], rel=1e-9)
        loss, metrics = compute_loss(method, batch_of(tensors, step), at)
        for kind, listed in parts.items():
            used = method.losses[kind].teacher_temperature(at)
            assert used == pytest.approx(facts[temperatures[kind]][step], rel=1e-9)
            term = method.terms[kind].weight(at) * metrics[f"loss/{kind}"].item()
            assert term == pytest.approx(facts[listed][step], rel=1e-5)
        loss.backward()
        before = norms(method)
        assert before == pytest.approx({ours(name): one for name, one in facts["grad_norm"][step].items()}, rel=1e-3)
        optim.clip(optimizer, settings.clip, settings.clip_each)
        if step == 0:
            shares = {name: one / before[name] for name, one in norms(method).items()}
            wanted = {ours(name): one for name, one in facts["step0_clip_factor"].items()}
            assert shares == pytest.approx(wanted, rel=1e-3)
        optim.drop_frozen(optimizer)
        optim.step(optimizer, torch.tensor(True))
        teacher.after_step(method.student, at)
        close(teacher.center.mean, tensors[f"step{step}.center_after"].flatten())
        if teacher.patch_center is not None:
            close(teacher.patch_center.mean, tensors[f"step{step}.patch_center_after"].flatten())
    same(dict(method.student.state_dict()), named(under(tensors, "final.student.")), allowed(facts, "final.student"))
    followed = {f"predictor.{name}": value for name, value in teacher.projector.state_dict(prefix="projector.").items()}
    followed |= teacher.encoder.state_dict(prefix="encoder.")
    same(followed, named(under(tensors, "final.teacher.")), allowed(facts, "final.teacher"))
    close(teacher.center.mean, tensors["final.center"].flatten())
    if teacher.patch_center is not None:
        close(teacher.patch_center.mean, tensors["final.patch_center"].flatten())


def norms(method):
    return {name: p.grad.norm().item() for name, p in method.student.named_parameters() if p.requires_grad}


@FILES
def test_the_parameters_that_do_not_decay(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    plain = {name for name, _ in optim.trainable(method) if factors(name, settings.groups)[1] == 0}
    assert plain == set(map(ours, facts["no_decay_parameters"]))
    decayed = {name for name, _ in optim.trainable(method)} - plain
    assert decayed == set(map(ours, facts["decay_parameters"]))


@FILES
def test_schedules_over_the_whole_run(path):
    tensors, facts = read(path)
    settings, teacher = optim_of(facts), method_of(tensors, facts).targets["teacher"]
    curves = zip(facts["lr_curve"], facts["wd_curve"], facts["momentum_curve"], strict=True)
    for step, (lr, decay, momentum) in enumerate(curves):
        at = progress(facts, step)
        assert settings.lr(at) == pytest.approx(lr, rel=1e-9, abs=1e-12)
        assert settings.weight_decay(at) == pytest.approx(decay, rel=1e-9)
        assert teacher.momentum(at) == pytest.approx(momentum, rel=1e-9)


@pytest.mark.parametrize("path", files("ibot"))
def test_a_step_that_hides_nothing_asks_for_no_patch(path):
    """Half of the crops are whole, so in a small batch all may be: then theirs divides by 1, and says 0."""
    tensors, facts = read(path)
    tensors |= {name: torch.zeros_like(value) for name, value in tensors.items() if ".mask." in name}
    loss, metrics = compute_loss(method_of(tensors, facts), batch_of(tensors, 0), progress(facts, 0))
    assert metrics["loss/patch"].item() == 0
    assert loss.item() == pytest.approx(facts["loss"]["lambda1"] * metrics["loss/image"].item(), rel=1e-6)
