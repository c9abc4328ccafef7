"""CAE: regressor, decoder and aligned latents; from the first forward to the final weights."""

import pytest
import torch
from tensors import Optim, adamw, all_close, allowed, batch_of, close, factors, files, part, read, under
from test_data2vec import NONE, ours_of, ours_to_compare

from sslzoo import Mask, Patches, Progress, Schedule, Signal, Student
from sslzoo.nn import sincos
from sslzoo.run import optim
from sslzoo.step import Method, Term, compute_loss

FILES = pytest.mark.parametrize("path", files("cae"))
ONE = Schedule.parse(1.0)


class Given(torch.nn.Module):
    """A tokenizer that knows the ids of a step."""

    def __init__(self, codes):
        super().__init__()
        self.outputs, self.ids = {"code": Signal("patch", codes, ids=True)}, None

    def forward(self, batch, student, at):
        target = batch.groups["image"].mask.target
        return {"code": target.flat(target.take(self.ids[..., None]))[:, 0]}


def predictor_of(tensors):
    """Their regressor and decoder under our names."""
    ours = {}
    for name, value in tensors.items():
        name = name.replace("regresser.regressor_blocks.", "blocks.").replace("regresser.norm.", "norm.")
        name = name.replace("decoder.decoder_blocks.", "decoder.blocks.")
        name = name.replace("encoder_to_regresser_norm.", "projector.norm.")
        name = name.replace("encoder_to_regresser.", "projector.embed.")
        if ".cross_attn.q_bias" in name or ".cross_attn.v_bias" in name:
            name = name.replace("_bias", ".bias")
        name = name.replace("cross_attn.", "").replace("_cross", "")
        ours[name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2") if name.startswith("blocks.") else name] = (
            value
        )
    head = {name: value for name, value in ours.items() if name.startswith("decoder.")}
    return {name: value for name, value in ours.items() if name not in head} | ours_of(head)


def weights_of(tensors, start):
    found = {name: one for name, one in under(tensors, start).items() if not name.endswith("pos_embed")}
    found = {name: one for name, one in found.items() if not name.startswith("alignment_encoder")}
    encoder = ours_of(under(found, "encoder."))
    return encoder, predictor_of({name: one for name, one in found.items() if not name.startswith("encoder.")})


def method_of(tensors, facts):
    model = facts["model"]
    shape = {"width": model["embed_dim"], "depth": model["depth"], "heads": model["num_heads"]}
    shape |= {"mlp_ratio": float(model["mlp_ratio"]), "patch": model["patch_size"]}
    kind = {"class_token": True, "positions": "sincos-rows", "layer_scale": model["init_values"]}
    encoder = part("encoders", "vit", **shape, **kind)
    predictor = part(
        "predictors",
        "regressor",
        encoder,
        codes=model["num_classes"],
        depth=model["regressor_depth"],
        decoder_depth=model["decoder_depth"],
        heads=model["decoder_num_heads"],
        width=model["decoder_embed_dim"],
        mlp_ratio=float(model["mlp_ratio"]),
        layer_scale=model["decoder_layer_scale_init_value"],
    )
    ours = weights_of(tensors, "init.")
    encoder.load_state_dict(ours[0])
    predictor.load_state_dict(ours[1])
    student = Student(encoder, predictor)
    projects = dict.fromkeys(("project", "project_patches"), predictor.projector is not None)
    teacher = part("targets", "ema", student, momentum=Schedule.parse(0), norm="none", sees="targets", **projects)
    losses = {
        "code": part("losses", "cross_entropy", predictor.outputs["code"]),
        "align": part("losses", "mse", predictor.outputs["latent"]),
    }
    terms = {
        "code": Term("predictor.code", "tokens.code", ONE),
        "align": Term("predictor.latent", "teacher.patch", Schedule.parse(facts["align_loss_weight"])),
    }
    return Method(student, {"tokens": Given(model["num_classes"]), "teacher": teacher}, losses, terms)


def optim_of(facts):
    opt = facts["opt"]
    warmup = {"epochs": opt["warmup_epochs"], "from": 0.0, "to": opt["lr"], "then": {"cosine": opt["min_lr"]}}
    return Optim(
        lr={"warmup": warmup, "counting": "inclusive"},
        weight_decay={"cosine": [opt["weight_decay"], opt["weight_decay_end"]]},
        betas=opt["betas"],
        eps=opt["eps"],
        clip=opt["clip_grad"] or None,
        groups={"*.bias": NONE, "*norm*": NONE, "*gamma*": NONE},
    )


def step_of(tensors, facts, method, step):
    hidden = tensors[f"step{step}.mask"].to(torch.uint8)
    many = int(hidden[0].sum())
    context = hidden.argsort(dim=1, stable=True)[:, : hidden.shape[1] - many]
    target = hidden.argsort(dim=1, descending=True, stable=True)[:, None, :many]
    method.targets["tokens"].ids = tensors[f"step{step}.token_ids"]
    at = Progress(step, facts["epochs"] * facts["iterations_per_epoch"], facts["iterations_per_epoch"])
    return batch_of(tensors[f"step{step}.images"], Mask(Patches(context), Patches(target))), at


def compare(named, theirs, tolerance, left_out):
    """Ours and theirs by name, but for what the file lists as without a true gradient."""
    named = {name: one for name, one in named.items() if not name.endswith(left_out)}
    all_close(ours_to_compare(named), {name: theirs[name] for name in theirs if not name.endswith(left_out)}, tolerance)


def left_out(facts):
    return tuple(facts["no_gradient_suffixes"]) or ("no such name",)


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method = method_of(tensors, facts)
    batch, at = step_of(tensors, facts, method, 0)
    mask, images = batch.groups["image"].mask, tensors["step0.images"]
    tokens = method.student.encoder(images, mask.context)
    close(torch.cat([tokens.prefix, tokens.patches], 1), tensors["step0.encoder"])
    said = method.student.predictor(tokens, mask.target, at)
    close(said["latent"], tensors["step0.latent_predict"].flatten(0, 1))
    close(said["code"], tensors["step0.logits"])
    close(method.targets["teacher"](batch, None, at)["patch"], tensors["step0.latent_target"].flatten(0, 1))

    loss, _ = compute_loss(method, batch, at)
    assert loss.item() == pytest.approx(facts["losses"][0], rel=1e-5)
    loss.backward()
    encoder, predictor = weights_of(tensors, "step0.grad.")
    for module, theirs in ((method.student.encoder, encoder), (method.student.predictor, predictor)):
        grads = {name: one.grad for name, one in module.named_parameters()}
        compare(grads, theirs, allowed(facts, "step0.grad"), left_out(facts))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    teacher, optimizer = method.targets["teacher"], adamw(method, settings)
    for step, wanted in enumerate(facts["losses"]):
        batch, at = step_of(tensors, facts, method, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        assert used["weight_decay"] == pytest.approx(facts["wd_used"][step], rel=1e-9)
        loss, metrics = compute_loss(method, batch, at)
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        assert metrics["loss/code"].item() == pytest.approx(facts["losses_cross_entropy"][step], rel=1e-5)
        align = facts["align_loss_weight"] * metrics["loss/align"].item()
        assert align == pytest.approx(facts["losses_align_weighted"][step], rel=1e-5)
        loss.backward()
        assert optim.clip(optimizer, settings.clip).item() == pytest.approx(facts["grad_norm"][step], rel=1e-4)
        optim.step(optimizer, torch.tensor(True))
        teacher.after_step(method.student, at)
    encoder, predictor = weights_of(tensors, "final.")
    compare(method.student.encoder.state_dict(), encoder, allowed(facts, "final.encoder"), left_out(facts))
    compare(method.student.predictor.state_dict(), predictor, allowed(facts, "final"), left_out(facts))
    compare(teacher.encoder.state_dict(), ours_of(aligned(tensors)), allowed(facts, "final.alignment"), left_out(facts))


@FILES
def test_the_parameters_that_do_not_decay(path):
    tensors, facts = read(path)
    method, settings = method_of(tensors, facts), optim_of(facts)
    plain = {name for name, _ in optim.trainable(method) if factors(name, settings.groups)[1] == 0}
    for names, wanted in ((facts["no_decay_parameters"], plain), (facts["decay_parameters"], None)):
        encoder, predictor = weights_of({f"init.{name}": torch.zeros(1) for name in names}, "init.")
        there = {f"encoder.{name}" for name in encoder} | {f"predictor.{name}" for name in predictor}
        assert there == (wanted if wanted is not None else {name for name, _ in optim.trainable(method)} - plain)


def aligned(tensors):
    found = under(tensors, "final.alignment_encoder.")
    return {name: one for name, one in found.items() if not name.endswith("pos_embed")}


@FILES
def test_the_position_tables_count_rows_first(path):
    tensors, facts = read(path)
    side = facts["model"]["img_size"] // facts["model"]["patch_size"]
    for name in ("init.encoder.pos_embed", "init.rd_pos_embed"):
        table = tensors[name][0]
        close(sincos((side, side), table.shape[1], rows_first=True), table[1:])


@FILES
def test_the_schedules_over_the_whole_run(path):
    _, facts = read(path)
    settings = optim_of(facts)
    for step, (lr, decay) in enumerate(zip(facts["lr_curve"], facts["wd_curve"], strict=True)):
        at = Progress(step, facts["epochs"] * facts["iterations_per_epoch"], facts["iterations_per_epoch"])
        assert settings.lr(at) == pytest.approx(lr, rel=1e-9)
        assert settings.weight_decay(at) == pytest.approx(decay, rel=1e-9)
