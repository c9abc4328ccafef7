"""MSN: a masked anchor and focal ones, batch norms per resolution, prototypes and their balance, to final weights."""

import pytest
import torch
from tensors import Optim, adamw, allowed, close, compared, factors, files, numbered, part, read, under, vit_of
from test_dino import progress

from sslzoo import Batch, Group, Mask, Patches, Schedule, Student
from sslzoo.recipe.sections import Factors
from sslzoo.run import data, optim
from sslzoo.run.processes import World
from sslzoo.step import Method, Term, compute_loss, encode_and_predict

FILES = pytest.mark.parametrize("path", files("msn"))
NONE = Factors(weight_decay=0)
HEAD = {"fc1": "0", "bn1": "1", "fc2": "3", "bn2": "4", "fc3": "6"}


def ours(name):
    if name.startswith("encoder.fc."):
        layer, rest = name.removeprefix("encoder.fc.").split(".", 1)
        return f"predictor.projector.mlp.{HEAD[layer]}.{rest}"
    return name


def named(tensors):
    return {ours(name): value for name, value in tensors.items()}


def method_of(tensors, facts):
    model, how = facts["model"], facts["criterion"]
    encoder = vit_of(
        model,
        class_token=True,
        positions="learned",
        resample="plain",
    )
    norm = "batch" if model["use_bn"] else "none"
    predictor = part("predictors", "head", encoder, width=model["output_dim"], hidden=model["hidden_dim"], norm=norm)
    student = Student(encoder, predictor)
    weights = named(under(tensors, "init."))
    loss = part(
        "losses",
        "assign",
        predictor.outputs["image"],
        prototypes=how["num_proto"],
        temperature=how["temperature"],
        sharpen=Schedule.parse({"linear": [how["start_sharpen"], how["final_sharpen"]], "stretch": 1.25}),
        balance=3 if how["use_sinkhorn"] else 0,
        mean_entropy=how["memax_weight"] if how["me_max"] else 0.0,
        entropy=how["ent_weight"] if how["use_ent"] else 0.0,
    )
    loss.load_state_dict({"prototypes": weights.pop("prototypes")})
    student.load_state_dict(weights)
    momentum = {"linear": [facts["opt"]["start_momentum"], 1.0], "stretch": 1.25}
    teacher = part("targets", "ema", student, project=True, momentum=momentum)
    term = Term("predictor.image", "teacher.image", Schedule.parse(1.0))
    return Method(student, {"teacher": teacher}, {"assign": loss}, {"assign": term}).train()


def optim_of(facts):
    opt, ahead = facts["opt"], {"counting": "one", "stretch": 1.25}
    warmup = {"epochs": opt["warmup"], "from": opt["start_lr"], "to": opt["lr"], "then": {"cosine": opt["final_lr"]}}
    return Optim(
        lr={"warmup": warmup} | ahead,
        weight_decay={"cosine": [opt["weight_decay"], opt["final_weight_decay"]]} | ahead,
        betas=opt["betas"],
        eps=opt["eps"],
        groups={"*.bias": NONE, "*norm*.weight": NONE, "predictor.*.[14].weight": NONE, "losses.*": NONE},
    )


def batch_of(tensors, facts, step):
    crops, wide = numbered(tensors, f"step{step}.crop."), 1 + facts["rand_views"]
    order = tensors[f"step{step}.permutation"].expand(len(crops[0]) * facts["rand_views"], -1)
    kept = facts["kept_patches"]
    mask = Mask(Patches(order[:, :kept]), Patches(order[:, None, kept:]))

    def group(views, role, mask=None):
        return Group(torch.stack(views), torch.zeros(len(views), len(views[0]), 4), mask, role)

    groups = {"whole": group(crops[:1], "target"), "anchor": group(crops[1:wide], "context", mask)}
    groups |= {"focal": group(crops[wide:], "context")} if crops[wide:] else {}
    return data.weigh([Batch(groups, data.pair(groups))], World())[0]


def same(found, wanted, facts, tolerance):
    skipped = tuple(facts["no_gradient_suffixes"])  # what has no true gradient follows rounding noise
    for name, value in wanted.items():
        if not name.endswith(skipped) and ours(name) in found:
            close(compared(name, found[ours(name)]), compared(name, value), tolerance, name)


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method, batch, at = method_of(tensors, facts), batch_of(tensors, facts, 0), progress(facts, 0)
    start = {name: value.clone() for name, value in method.state_dict().items()}
    reading = encode_and_predict(method.student, batch, at)
    close(reading.tokens["anchor"].summary, tensors["step0.anchor.backbone.full"])
    if "focal" in reading.tokens:
        close(reading.tokens["focal"].summary, tensors["step0.anchor.backbone.focal"])
    close(reading.signals["image"].flatten(0, 1), tensors["step0.anchor.head"], 1e-4)
    target = method.targets["teacher"](batch, reading, at)["image"]
    close(method.targets["teacher"].encoder(batch.groups["whole"].pixels[0]).summary, tensors["step0.target.backbone"])
    close(target[0], tensors["step0.target.head"], 1e-4)
    close(method.losses["assign"].assignments(target, at)[0], tensors["step0.targets"], 2e-4)
    method.load_state_dict(start)
    loss, _ = compute_loss(method, batch, at)
    loss.backward()
    found = {name: one.grad for name, one in method.student.named_parameters()}
    found["prototypes"] = method.losses["assign"].prototypes.grad
    wanted = under(tensors, "step0.grad.")
    assert set(found) == set(map(ours, wanted))
    same(found, wanted, facts, allowed(facts, "step0.grad"))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    optimizer, teacher = adamw(method, settings), method.targets["teacher"]
    no_decay = {name for name, _ in optim.trainable(method) if factors(name, settings.groups)[1] == 0}
    assert no_decay == {
        ours(name).replace("prototypes", "losses.assign.prototypes") for name in facts["no_decay_parameters"]
    }
    for step in range(facts["steps"]):
        at = progress(facts, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        assert used["weight_decay"] == pytest.approx(facts["wd_used"][step], rel=1e-9)
        assert teacher.momentum(at) == pytest.approx(facts["momentum"][step], rel=1e-9)
        assert method.losses["assign"].sharpen(at) == pytest.approx(facts["sharpen"][step], rel=1e-9)
        loss, metrics = compute_loss(method, batch_of(tensors, facts, step), at)
        assert loss.item() == pytest.approx(facts["losses"][step], rel=1e-4)
        for ours_there, theirs in (("cross_entropy",) * 2, ("mean_entropy", "memax"), ("entropy",) * 2):
            wanted = facts[f"losses_{theirs}"][step]
            assert metrics[f"assign/{ours_there}"].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(method.student.parameters(), facts["opt"]["clip_grad"])
        assert norm.item() == pytest.approx(facts["grad_norm_encoder"][step], rel=1e-3)
        optim.step(optimizer, torch.tensor(True))
        teacher.after_step(method.student, at)
    found = dict(method.student.state_dict()) | {"prototypes": method.losses["assign"].prototypes}
    same(found, under(tensors, "final."), facts, allowed(facts, "final"))
    followed = {f"predictor.{name}": value for name, value in teacher.projector.state_dict(prefix="projector.").items()}
    followed |= teacher.encoder.state_dict(prefix="encoder.")
    theirs = {f"encoder.{name}": value for name, value in under(tensors, "final.target_encoder.").items()}
    assert set(followed) == set(map(ours, theirs))
    same(followed, theirs, facts, allowed(facts, "final.target"))
