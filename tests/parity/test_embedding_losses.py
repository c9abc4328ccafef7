"""Losses of joint-embedding methods at fixed inputs: values, gradients and centers of losses*.safetensors."""

import pytest
import torch
from tensors import close, files, part, read

from sslzoo import Pairing, Progress, Signal
from sslzoo.nn import Center

AT = Progress(0, 1)


def pairing(match=(), sequence=(), sequences=0):
    weight = torch.full((len(sequence),), 1 / max(1, len(sequence)))
    match, sequence = torch.tensor(match, dtype=torch.bool), torch.as_tensor(sequence, dtype=torch.long)
    return Pairing(weight, match, sequence, sequences)


def value(name, x, target=None, how=None, kind="image", at=AT, **keys):
    """Loss and gradient at x."""
    x = x.clone().requires_grad_()
    loss = part("losses", name, Signal(kind, x.shape[-1]), **keys)(x, target, how or pairing(), at)[0]
    return loss, torch.autograd.grad(loss, x)[0]


def temperatures(facts):
    return {"temperature": facts["student_temp"], "teacher_temperature": facts["teacher_temp"]}


@pytest.mark.parametrize("path", files("losses"))
def test_distillation_of_images_and_its_center(path):
    tensors, facts = read(path)
    facts = facts["dino"]
    center = Center(tensors["dino.0.teacher"].shape[-1], facts["center_momentum"]).train()
    for call, wanted in enumerate(facts["losses"]):
        teacher, student = tensors[f"dino.{call}.teacher"], tensors[f"dino.{call}.student"]
        match = [[v != u for u in range(len(teacher))] for v in range(len(student))]
        loss, grad = value("distill", student, center(teacher), pairing(match), **temperatures(facts))
        center.follow()
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        close(grad, tensors[f"dino.{call}.student_grad"])
        close(center.mean, tensors[f"dino.{call}.centre_after"])


@pytest.mark.parametrize("path", files("losses"))
def test_distillation_of_patches_is_a_mean_over_images(path):
    tensors, facts = read(path)
    facts = facts["ibot_patch"]
    center = Center(tensors["ibot.0.teacher"].shape[-1], facts["center_momentum"]).train()
    for call, wanted in enumerate(facts["losses"]):
        mask = tensors[f"ibot.{call}.mask"].flatten(1)
        how = pairing(sequence=mask.nonzero()[:, 0], sequences=len(mask))
        given = tensors[f"ibot.{call}.student"], center(tensors[f"ibot.{call}.teacher"])
        loss, grad = value("distill", *given, how, "patch", average="images", **temperatures(facts))
        center.follow()
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        close(grad, tensors[f"ibot.{call}.student_grad"])
        close(center.mean, tensors[f"ibot.{call}.centre_after"])


@pytest.mark.parametrize("path", files("losses"))
def test_assignment_to_prototypes(path):
    tensors, facts = read(path)
    facts, targets, prototypes = facts["msn"], tensors["msn.targets"], tensors["msn.prototypes"]
    anchors = tensors["msn.anchors"].unflatten(0, (-1, len(targets))).requires_grad_()
    keys = {"temperature": facts["temperature"], "sharpen": facts["sharpen"], "balance": facts["sinkhorn"]}
    keys |= {"prototypes": len(prototypes), "mean_entropy": facts["memax"]}
    loss = part("losses", "assign", Signal("image", targets.shape[-1]), **keys)
    loss.load_state_dict({"prototypes": prototypes})
    found, _ = loss(anchors, targets[None], pairing([[True]] * len(anchors)), AT)
    found.backward()
    assert found.item() == pytest.approx(facts["loss"], rel=1e-5)
    close(anchors.grad.flatten(0, 1), tensors["msn.anchors_grad"])


@pytest.mark.parametrize("path", files("losses"))
def test_contrast_of_two_views(path):
    tensors, facts = read(path)
    both = torch.stack([tensors["pair.x"], tensors["pair.y"]])
    loss, grad = value("nt_xent", both, temperature=facts["nt_xent"]["temperature"])
    assert loss.item() == pytest.approx(facts["nt_xent"]["loss"], rel=1e-5)
    close(grad[0], tensors["nt_xent.x_grad"])


@pytest.mark.parametrize("path", files("losses"))
def test_invariance_variance_and_covariance(path):
    tensors, facts = read(path)
    facts = facts["vicreg"]
    both = torch.stack([tensors["pair.x"], tensors["pair.y"]])
    terms = [value("invariance", both), value("variance", both, eps=facts["eps"]), value("covariance", both)]
    weights = [facts[name] for name in ("invariance", "variance", "covariance")]
    loss, grad = (sum(w * term[i] for w, term in zip(weights, terms, strict=True)) for i in (0, 1))
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    close(grad[0], tensors["vicreg.x_grad"])


@pytest.mark.parametrize("path", files("lejepa"))
def test_distance_from_a_gaussian_along_directions(path):
    tensors, facts = read(path)
    values = {name: facts[f"sigreg_{name}_values"] for name in ("x", "views")}
    facts = facts["sigreg"]
    keys = {"directions": facts["num_slices"], "knots": facts["n_points"], "reach": facts["t_max"]}
    loss = part("losses", "sigreg", Signal("image", facts["d"]), **keys)
    for name in ("x", "views"):
        for call in range(facts["calls"]):
            at, x = Progress(call, 100), tensors[f"sigreg.{name}"].clone().requires_grad_()
            directions = loss.draw(x, at)
            close(directions, tensors[f"sigreg.directions.call{call}"], 2e-6)
            start = f"sigreg.{name}.call{call}"
            close(loss.statistic(x, directions), tensors[f"{start}.statistic"])
            value, _ = loss(x if x.ndim == 3 else x[None], None, pairing(), at)
            assert value.item() == pytest.approx(values[name][call], rel=1e-5)
            value.backward()
            close(x.grad, tensors[f"{start}.grad"])
