"""data2vec: relative positions, layer scale, filled patches, the mean of normalized layers; forward to final weights."""

import pytest
import torch
from tensors import (
    Optim,
    adamw,
    all_close,
    allowed,
    batch_of,
    close,
    compared,
    factors,
    files,
    mask_of,
    part,
    read,
    under,
    vit_of,
)

from sslzoo import Progress, Schedule, Student
from sslzoo.recipe.sections import Factors
from sslzoo.run import optim
from sslzoo.step import Method, Term, compute_loss

FILES = pytest.mark.parametrize("path", files("data2vec"))
NONE = Factors(weight_decay=0)


def ours_of(tensors):
    """Their tensors under our names: timm's layer scales, and one bias of queries, keys (0 there) and values."""
    ours = {}
    for name, value in tensors.items():
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        name = name.replace("rel_pos_bias.relative_position_bias_table", "relative.table")
        if name.endswith("q_bias"):
            other = tensors[name.replace("q_bias", "v_bias")]
            ours[name.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), other])
        elif not name.endswith(("v_bias", "relative_position_index")):
            ours[name] = value
    return ours


def ours_to_compare(named):
    """Our tensors by name, without what has no gradient but rounding."""
    return {name: compared(name, value) for name, value in named.items()}


def method_of(tensors, facts):
    model, layers = facts["model"], facts["target_layers"]
    assert layers == list(range(model["depth"]))[-len(layers) :]
    encoder = vit_of(
        model,
        class_token=True,
        positions="relative",
        hidden="fill",
        layer_scale=model["init_values"],
    )
    predictor = part("predictors", "linear", encoder, to="tokens")
    weights = ours_of(under(tensors, "init."))
    head = {f"out.{name}": weights.pop(f"lm_head.{name}") for name in ("weight", "bias")}
    encoder.load_state_dict(weights)
    predictor.load_state_dict(head)
    student = Student(encoder, predictor)
    norm = {"norm": "layer" if facts["target_layer_norm_last"] else "none", "renorm": facts["post_target_layer_norm"]}
    teacher = part("targets", "ema", student, momentum=facts["momentum"][0], layers=len(layers), **norm)
    loss = part("losses", "smooth_l1", predictor.outputs["patch"], beta=facts["l1_beta"])
    term = Term("predictor.patch", "teacher.patch", Schedule.parse(1.0))
    return Method(student, {"teacher": teacher}, {"guess": loss}, {"guess": term})


def optim_of(facts):
    opt = facts["opt"]
    warmup = {"epochs": opt["warmup_epochs"], "from": 0.0, "to": opt["lr"], "then": {"cosine": opt["min_lr"]}}
    return Optim(
        lr={"warmup": warmup, "counting": "inclusive"},
        weight_decay={"cosine": [opt["weight_decay"], opt["weight_decay_end"]]},
        betas=opt["betas"],
        eps=opt["eps"],
        clip=opt["clip_grad"] or None,
        groups={"*.bias": NONE, "*norm*.weight": NONE, "*.gamma": NONE, "encoder.cls_token": NONE},
    )


def hidden(tensors, step):
    return mask_of(tensors[f"step{step}.mask"].flatten(1))


def progress(facts, step):
    return Progress(step, facts["epochs"] * facts["iterations_per_epoch"], facts["iterations_per_epoch"])


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method, mask, images = method_of(tensors, facts), hidden(tensors, 0), tensors["step0.images"]
    teacher, at, batch = method.targets["teacher"], progress(facts, 0), None
    layers = teacher.encoder(images, None, facts["model"]["depth"]).layers
    close(torch.stack(layers), tensors["step0.teacher.blocks"])
    tokens = method.student.encoder(images, mask.context)
    close(torch.cat([tokens.prefix, tokens.patches], 1), tensors["step0.student.backbone"])
    close(method.student.predictor(tokens, mask.target, at)["patch"], tensors["step0.prediction"])
    batch = batch_of(images, mask)
    close(teacher(batch, None, at)["patch"], tensors["step0.target"])

    loss, _ = compute_loss(method, batch, at)
    assert loss.item() == pytest.approx(facts["losses"][0], rel=1e-5)
    loss.backward()
    grads = {name: one.grad for name, one in method.student.encoder.named_parameters()}
    grads |= {name.replace("out", "lm_head"): one.grad for name, one in method.student.predictor.named_parameters()}
    all_close(ours_to_compare(grads), ours_of(under(tensors, "step0.grad.")), allowed(facts, "step0.grad"))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    teacher, optimizer = method.targets["teacher"], adamw(method, settings)
    for step, wanted in enumerate(facts["losses"]):
        at = progress(facts, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        assert used["weight_decay"] == pytest.approx(facts["wd_used"][step], rel=1e-9)
        loss, _ = compute_loss(method, batch_of(tensors[f"step{step}.images"], hidden(tensors, step)), at)
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        loss.backward()
        norm = optim.clip(optimizer, settings.clip)
        assert norm.item() == pytest.approx(facts["grad_norm"][step], rel=1e-4)
        optim.step(optimizer, torch.tensor(True))
        teacher.momentum = Schedule.parse(facts["momentum"][step])  # held to the end of an epoch, where it anneals
        teacher.after_step(method.student, at)
    ours = {"student": dict(method.student.encoder.state_dict()), "teacher": dict(teacher.encoder.state_dict())}
    for who, weights in ours.items():
        theirs = ours_of(under(tensors, f"final.{who}."))
        head = {name: theirs.pop(name) for name in list(theirs) if name.startswith("lm_head")}
        all_close(ours_to_compare(weights), theirs, allowed(facts, "final"))
        if who == "student":
            predictor = method.student.predictor.state_dict()
            all_close(
                {name.replace("out", "lm_head"): one for name, one in predictor.items()},
                head,
                allowed(facts, "final.student"),
            )


@FILES
def test_the_schedules_over_the_whole_run(path):
    _, facts = read(path)
    settings = optim_of(facts)
    for step, (lr, decay) in enumerate(zip(facts["lr_curve"], facts["wd_curve"], strict=True)):
        assert settings.lr(progress(facts, step)) == pytest.approx(lr, rel=1e-9)
        assert settings.weight_decay(progress(facts, step)) == pytest.approx(decay, rel=1e-9)


@FILES
def test_the_parameters_that_do_not_decay(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    plain = {name for name, _ in optim.trainable(method) if factors(name, settings.groups)[1] == 0}
    theirs = set(ours_of({name: torch.zeros(1) for name in facts["no_decay_parameters"]}))
    theirs = {f"encoder.{name}" if not name.startswith("lm_head") else f"predictor.out.{name[8:]}" for name in theirs}
    assert plain == theirs
