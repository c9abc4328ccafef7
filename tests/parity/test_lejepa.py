"""LeJEPA's published minimal example: one group of views, projector with batch norms, SIGReg, to the final weights."""

import pytest
import torch
from tensors import Optim, adamw, allowed, close, compared, files, part, read, under, vit_of
from test_dino import progress

from sslzoo import Batch, Group, Schedule, Student
from sslzoo.run import data, optim
from sslzoo.run.processes import World
from sslzoo.step import Method, Term, compute_loss, encode_and_predict

FILES = pytest.mark.parametrize("path", files("lejepa"))
HEAD = {"0": "0", "1": "1", "4": "3", "5": "4", "8": "6"}


def ours(name):
    """Their projector is torchvision's MLP, whose dropouts are counted."""
    if name.startswith("net.proj."):
        layer, rest = name.removeprefix("net.proj.").split(".", 1)
        return f"predictor.projector.mlp.{HEAD[layer]}.{rest}"
    return name.replace("net.backbone.head.", "predictor.projector.embed.").replace("net.backbone.", "encoder.")


def method_of(tensors, facts):
    model = facts["model"]
    encoder = vit_of(
        model,
        class_token=True,
        positions="learned",
    )
    keys = {"width": model["proj_dim"], "hidden": model["hidden_dim"], "embed": model["embedding_dim"]}
    student = Student(encoder, part("predictors", "head", encoder, norm="batch", act="relu", **keys))
    student.load_state_dict({ours(f"net.{name}"): value for name, value in under(tensors, "init.net.").items()})
    signal, weight = student.predictor.outputs["image"], facts["lamb"]
    keys = {"directions": facts["num_slices"], "knots": facts["knots"], "reach": facts["t_max"]}
    losses = {"agree": part("losses", "invariance", signal, against="mean")}
    losses["spread"] = part("losses", "sigreg", signal, **keys)
    terms = {"agree": Term("predictor.image", None, Schedule.parse(1 - weight))}
    terms["spread"] = Term("predictor.image", None, Schedule.parse(weight))
    return Method(student, {}, losses, terms).train()


def batch_of(tensors, step):
    pixels = tensors[f"step{step}.images"].transpose(0, 1)  # theirs are [b v ..]
    groups = {"image": Group(pixels, torch.zeros(*pixels.shape[:2], 4))}
    return data.weigh([Batch(groups, data.pair(groups))], World())[0]


def aim(method, tensors, step):
    """Gives SIGReg the directions of the reference."""
    gaussian = tensors[f"step{step}.gaussian"]
    method.losses["spread"].draw = lambda _x, _at: gaussian / gaussian.norm(dim=0)


def same(found, wanted, facts, tolerance):
    skipped = tuple(facts["no_gradient_suffixes"])
    for name, value in wanted.items():
        if not f"net.{name}".endswith(skipped):
            close(compared(name, found[ours(f"net.{name}")]), compared(name, value), tolerance, name)


@FILES
def test_the_first_forward_and_its_gradients(path):
    tensors, facts = read(path)
    method, batch, at = method_of(tensors, facts), batch_of(tensors, 0), progress(facts, 0)
    start = {name: value.clone() for name, value in method.state_dict().items()}
    reading = encode_and_predict(method.student, batch, at)
    views, b, _ = reading.signals["image"].shape
    embedding = method.student.predictor.projector.embed(reading.tokens["image"].summary).unflatten(0, (views, b))
    close(embedding.transpose(0, 1).flatten(0, 1), tensors["step0.embedding"])
    close(reading.signals["image"], tensors["step0.projection"], 2e-5)
    method.load_state_dict(start)
    aim(method, tensors, 0)
    compute_loss(method, batch, at)[0].backward()
    found = {name: one.grad for name, one in method.student.named_parameters()}
    wanted = under(tensors, "step0.grad.net.")
    assert set(found) == {ours(f"net.{name}") for name in wanted}
    same(found, wanted, facts, allowed(facts, "step0.grad", 1e-4))


@FILES
def test_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, opt = method_of(tensors, facts), facts["opt"]
    warmup = {"epochs": 1, "from": opt["start_factor"] * opt["lr"], "to": opt["lr"], "then": {"cosine": opt["eta_min"]}}
    settings = Optim(lr={"warmup": warmup}, weight_decay=opt["weight_decay"], betas=opt["betas"], eps=opt["eps"])
    optimizer = adamw(method, settings)
    for step in range(facts["steps"]):
        at = progress(facts, step)
        assert optim.set_schedules(optimizer, settings, at)["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        aim(method, tensors, step)
        loss, metrics = compute_loss(method, batch_of(tensors, step), at)
        assert loss.item() == pytest.approx(facts["losses_lejepa"][step], rel=1e-4)
        assert metrics["loss/agree"].item() == pytest.approx(facts["losses_invariance"][step], rel=1e-4)
        assert metrics["loss/spread"].item() == pytest.approx(facts["losses_sigreg"][step], rel=1e-4)
        loss.backward()
        optim.step(optimizer, torch.tensor(True))
    same(dict(method.student.state_dict()), under(tensors, "final.net."), facts, allowed(facts, "final.net"))
