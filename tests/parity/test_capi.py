"""CAPI: rotary transformer, clusters that learn beside the student; from the first forward to the final weights."""

import copy

import pytest
import torch
from sslzoo_rope.layers import angles
from tensors import Optim, adamw, all_close, allowed, batch_of, close, factors, files, part, read, under

from sslzoo import Mask, Patches, Progress, Schedule, Student
from sslzoo.recipe.sections import Factors
from sslzoo.run import optim
from sslzoo.step import Method, Term, compute_loss

FILES = pytest.mark.parametrize("path", files("capi"))
ONE = Schedule.parse(1.0)


def ours_of(tensors, stack):
    """Encoder (stack encoder) or predictor (decoder) of theirs under our names; rotary frequencies are no weights here."""
    ours = {}
    for name, value in tensors.items():
        if name.endswith("rope.freqs"):
            continue
        if name.startswith(f"backbone.{stack}."):
            name = name.removeprefix(f"backbone.{stack}.").replace("residual1.norm", "norm1").replace("_proj.", ".")
            ours[name.replace("residual2.norm", "norm2").replace("residual1.fn.", "").replace("residual2.fn.", "")] = (
                value
            )
        elif stack == "encoder" and name == "backbone.registers":
            ours["registers"] = value
        elif stack == "encoder" and name == "backbone.patch_embed.weight":
            ours["patch_embed.weight"] = value.permute(0, 2, 3, 1).flatten(1)
        elif stack == "encoder" and name == "backbone.patch_embed.bias":
            ours["patch_embed.bias"] = value
        elif stack == "decoder" and name == "backbone.mask_token":
            ours["mask_token"] = value[None]
        elif stack == "decoder" and name.startswith("head.last_layer."):
            ours[name.replace("head.last_layer", "prototypes")] = value
    return ours


def method_of(tensors, facts):
    model, capi = facts["model"], facts["capi"]
    shape = {"width": model["embed_dim"], "depth": model["encoder_depth"], "heads": model["num_heads"]}
    encoder = part("encoders", "vit-rope", patch=model["patch_size"], registers=model["n_registers"], **shape)
    keys = {"depth": model["decoder_depth"], "heads": model["num_heads"], "prototypes": capi["num_clusters"]}
    predictor = part("predictors", "cross-rope", encoder, **keys)
    weights = under(tensors, "init.student.")
    encoder.load_state_dict(ours_of(weights, "encoder"))
    predictor.load_state_dict(ours_of(weights, "decoder"))
    student = Student(encoder, predictor)
    told = capi["clustering"]
    keys = {"temperature": told["target_temp"], "own_temperature": told["pred_temp"], "iterations": told["n_sk_iter"]}
    momentum = schedule(facts["opt"]["momentum_schedule"], "start_warmup_value")
    keys |= {"placewise": told["positionwise_sk"], "momentum": Schedule.parse(momentum)}
    teacher = part("targets", "clusters", student, clusters=capi["num_clusters"], **keys)
    teacher.head.load_state_dict(under(tensors, "init.teacher.head.layer."))
    losses = {
        "guess": part("losses", "soft_cross_entropy", predictor.outputs["patch"], temperature=capi["student_temp"]),
        "cluster": part("losses", "mean", teacher.outputs["misfit"]),
    }
    terms = {
        "guess": Term("predictor.patch", "teacher.patch", ONE),
        "cluster": Term("teacher.misfit", None, ONE),
    }
    return Method(student, {"teacher": teacher}, losses, terms)


def schedule(told, start=""):
    warmup = {"steps": told["warmup_iters"], "from": told.get(start, 0), "to": told["base_value"]}
    return {
        "warmup": warmup | {"then": {"cosine": told["final_value"]}},
        "counting": "inclusive",
        "truncate": told["truncate_cos"],
    }


def optim_of(facts):
    """One optimizer for both: the clusters' own learning rate and decay are factors of the student's."""
    opt, own = facts["opt"], facts["clustering_opt"]
    rates, others = opt["lr_schedule"], own["lr_schedule"]
    assert {k: v for k, v in rates.items() if k != "base_value"} == {
        k: v for k, v in others.items() if k != "base_value"
    }
    beside = Factors(
        lr=others["base_value"] / rates["base_value"], weight_decay=own["weight_decay"] / opt["weight_decay"]
    )
    return Optim(
        lr=schedule(rates),
        weight_decay=opt["weight_decay"],
        betas=opt["betas"],
        eps=opt["eps"],
        groups={
            "*.norm?.weight": Factors(weight_decay=opt["layernorm_wd_mult"]),
            "encoder.patch_embed.*": Factors(lr=opt["patch_embed_lr_mult"]),
            "encoder.*.bias": Factors(weight_decay=0),
            "targets.teacher.*": beside,
        },
    )


def step_of(tensors, facts, step):
    images = tensors[f"step{step}.images"]
    places = (facts["model"]["img_size"] // facts["model"]["patch_size"]) ** 2
    visible, asked = (tensors[f"step{step}.{kind}_indices"] for kind in ("visible", "predict"))
    # Flat indices into (b n): as many visible ones in each image; theirs of an image may stand among others'.
    rows = [
        torch.stack([index[index // places == image] % places for image in range(len(images))])
        for index in (visible, asked)
    ]
    mask = Mask(Patches(rows[0]), Patches(rows[1][:, None]))
    return batch_of(images, mask), Progress(step, facts["opt"]["total_iters"], facts["opt"]["total_iters"])


def by_image(rows, tensors, step, places):
    """Their rows, in the order of predict_indices, image by image as ours."""
    image = tensors[f"step{step}.predict_indices"] // places
    return rows[image.argsort(stable=True)]


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method, (batch, at) = method_of(tensors, facts), step_of(tensors, facts, 0)
    teacher, images, mask = method.targets["teacher"], tensors["step0.images"], batch.groups["image"].mask
    features = teacher.encoder(images).patches
    close(features, tensors["step0.teacher.backbone"])
    logits = teacher.head(torch.nn.functional.normalize(features, dim=-1))
    close(teacher.assignments(logits, at).transpose(0, 1), tensors["step0.teacher.assignments"], 1e-4)
    tokens = method.student.encoder(images, mask.context)
    close(tokens.patches, tensors["step0.student.encoder"])
    places = features.shape[1]
    said = method.student.predictor(tokens, mask.target, at)["patch"]
    bare = copy.deepcopy(method.student.predictor)
    bare.prototypes = None
    close(bare(tokens, mask.target, at)["patch"], by_image(tensors["step0.student.predictor"], tensors, 0, places))
    close(said, by_image(tensors["step0.student.head"], tensors, 0, places))
    targets = teacher(batch, None, at)
    close(targets["patch"], by_image(tensors["step0.targets"], tensors, 0, places), 1e-4)

    loss, metrics = compute_loss(method, batch, at)
    assert metrics["loss/guess"].item() == pytest.approx(facts["losses"][0], rel=1e-5)
    assert metrics["loss/cluster"].item() == pytest.approx(facts["losses_clustering"][0], rel=1e-5)
    loss.backward()
    wanted = under(tensors, "step0.grad.")
    student = under(wanted, "student.") or wanted
    for module, stack in ((method.student.encoder, "encoder"), (method.student.predictor, "decoder")):
        all_close(
            {n: p.grad for n, p in module.named_parameters()}, ours_of(student, stack), allowed(facts, "step0.grad")
        )
    for name, parameter in teacher.head.named_parameters():
        close(parameter.grad, wanted[f"teacher.head.layer.{name}"], allowed(facts, "step0.grad"))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    teacher, optimizer = method.targets["teacher"], adamw(method, settings)
    clusters = next(g for g in optimizer.param_groups if any(p is teacher.head.weight for p in g["params"]))
    for group in optimizer.param_groups:  # the clusters' optimizer has its own
        if any(parameter is one for one in group["params"] for parameter in teacher.head.parameters()):
            group |= {name: facts["clustering_opt"][name] for name in ("betas", "eps")}
    for step, wanted in enumerate(facts["losses"]):
        batch, at = step_of(tensors, facts, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        assert clusters["lr"] == pytest.approx(facts["clustering_lr"][step], rel=1e-9)
        assert teacher.momentum(at) == pytest.approx(facts["momentum"][step], rel=1e-9)
        loss, metrics = compute_loss(method, batch, at)
        assert metrics["loss/guess"].item() == pytest.approx(wanted, rel=2e-5)
        assert metrics["loss/cluster"].item() == pytest.approx(facts["losses_clustering"][step], rel=2e-5)
        assert metrics["guess/target_entropy"].item() == pytest.approx(facts["target_entropy"][step], rel=1e-4)
        loss.backward()
        optim.step(optimizer, torch.tensor(True))
        teacher.after_step(method.student, at)
    student, average = under(tensors, "final.student."), under(tensors, "final.student_ema.")
    all_close(method.student.encoder.state_dict(), ours_of(student, "encoder"), allowed(facts, "final.student"))
    all_close(method.student.predictor.state_dict(), ours_of(student, "decoder"), allowed(facts, "final.student"))
    all_close(teacher.encoder.state_dict(), ours_of(average, "encoder"), allowed(facts, "final.student_ema"))
    all_close(teacher.head.state_dict(), under(tensors, "final.teacher.head.layer."), allowed(facts, "final.teacher"))


@FILES
def test_rotary_frequencies_are_the_published_ones(path):
    tensors, _ = read(path)
    theirs = next(value for name, value in tensors.items() if name.endswith("rope.freqs"))
    for axis, place in enumerate(torch.eye(2)):
        close(angles(place[None, None], theirs.shape[1])[0, 0, 0], theirs[axis])


@FILES
def test_the_groups_of_parameters(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    found = {name: factors(name, settings.groups) for name, _ in optim.trainable(method)}
    for group in facts["parameter_groups"]:
        names = dict.fromkeys(group["names"], torch.zeros(1, 3, 1, 1))
        for stack, who in (("encoder", "encoder"), ("decoder", "predictor")):
            for name in ours_of(names, stack):
                assert found.pop(f"{who}.{name}") == (group["lr_multiplier"], group["wd_multiplier"]), name
    assert all(name.startswith("targets.teacher.head") for name in found)
