"""Forward passes, gradients and training steps of reference codes, reproduced through the engine's own step.

I-JEPA, MAE, the negative cosine and the masks' statistics; the other methods have files of their own beside this one.
README.md says what the tensors are.
"""

import json
import math

import pytest
import torch
from tensors import (
    FOLDER,
    OURS,
    Optim,
    adamw,
    batch_of,
    close,
    compared,
    files,
    numbered,
    part,
    read,
    under,
    unread,
)

from sslzoo import Mask, Pairing, Patches, Progress, Rng, Schedule, Signal, Student
from sslzoo.nn import patchify, sincos
from sslzoo.recipe.sections import Factors
from sslzoo.run import optim
from sslzoo.step import Method, Term, compute_loss


def load(module, weights, renamed=lambda name: name):
    """Reference weights into our part: every one of ours is found, and only the fixed tables are left over."""
    own = {name: weights[renamed(name)] for name in module.state_dict()}
    module.load_state_dict(own)
    left = set(weights) - {renamed(name) for name in own}
    assert left <= {"pos_embed", "predictor_pos_embed", "decoder_pos_embed"}


def test_every_file_of_the_folder_is_read():
    assert not unread(FOLDER)


def test_a_folder_without_files_and_files_of_no_kind_are_told(tmp_path):
    assert unread(tmp_path / "typo") == [f"{tmp_path / 'typo'} holds no *.safetensors"]
    for name in ("msn_large.safetensors", "msn_large.json", "simclr.safetensors"):
        (tmp_path / name).touch()
    told = unread(tmp_path)
    assert [line.split("/")[-1].split()[0] for line in told] == ["simclr.safetensors", "simclr.safetensors"]


# --- I-JEPA ---


def predictor_name(name):
    return name.replace("blocks.", "predictor_blocks.")


def ijepa(tensors, facts):
    encoder = part(
        "encoders", "vit", width=facts["dim"], depth=facts["depth"], heads=facts["heads"], patch=facts["patch"]
    )
    keys = {"width": facts["pred_dim"], "depth": facts["pred_depth"], "heads": facts["heads"]}
    predictor = part("predictors", "ijepa", encoder, **keys)
    load(encoder, under(tensors, "init.encoder."))
    load(predictor, under(tensors, "init.predictor."), predictor_name)
    student = Student(encoder, predictor)
    momentum = {"linear": facts["ema"], "stretch": facts["ipe_scale"]}
    teacher = part("targets", "ema", student, momentum=Schedule.parse(momentum))
    loss = part("losses", "smooth_l1", predictor.outputs["patch"])
    term = Term("predictor.patch", "teacher.patch", Schedule.parse(1.0))
    return Method(student, {"teacher": teacher}, {"guess": loss}, {"guess": term})


def ijepa_optim(facts):
    warmup = {"epochs": facts["warmup_epochs"], "from": facts["start_lr"], "to": facts["ref_lr"]}
    warmup["then"] = {"cosine": facts["final_lr"]}
    ahead = {"counting": "one", "stretch": facts["ipe_scale"]}
    none = Factors(weight_decay=0)
    return Optim(
        lr={"warmup": warmup} | ahead,
        weight_decay={"cosine": [facts["wd"], facts["final_wd"]]} | ahead,
        betas=facts["betas"],
        eps=facts["eps"],
        groups={"*.bias": none, "*norm*.weight": none},
    )


def ijepa_mask(tensors, step):
    contexts = numbered(tensors, f"{step}.context_mask.")
    target = torch.stack(numbered(tensors, f"{step}.target_mask."), 1)  # b m q
    source = torch.arange(len(target)).repeat(len(contexts)) if len(contexts) > 1 else None
    return Mask(Patches(torch.cat(contexts)), Patches(target.repeat(len(contexts), 1, 1)), source)


def sequence_major(rows, mask):
    """Reference rows are blocks outermost, [(m b) q d]; ours are sequence by sequence, [(b m q) d]."""
    s, m, _ = mask.target.index.shape
    return rows.unflatten(0, (m, s)).transpose(0, 1).flatten(0, 2)


def progress(facts, step):
    return Progress(step, facts["ipe"] * facts["epochs"], facts["ipe"])


@pytest.mark.parametrize("path", files("ijepa"))
def test_ijepa_first_forward_and_gradients(path):
    tensors, facts = read(path)
    method, mask = ijepa(tensors, facts), ijepa_mask(tensors, "step0")
    images = tensors["step0.images"]
    teacher = method.targets["teacher"]
    close(teacher.encoder(images).patches, tensors["step0.target_tokens"])
    tokens = method.student.encoder(mask.rows(images), mask.context)
    close(tokens.patches, tensors["step0.context_tokens"])
    at = progress(facts, 0)
    guess = method.student.predictor(tokens, mask.target, at)["patch"]
    close(guess, sequence_major(tensors["step0.prediction"], mask))
    batch = batch_of(images, mask)
    target = teacher(batch, None, at)["patch"]
    close(target, sequence_major(tensors["step0.target"], mask))

    loss, _ = compute_loss(method, batch, at)
    assert loss.item() == pytest.approx(facts["losses"][0], rel=1e-5)
    loss.backward()
    wanted = under(tensors, "step0.grad.")
    for name, parameter in method.student.named_parameters():
        theirs = wanted.pop(predictor_name(name) if name.startswith("predictor.") else name)
        close(compared(name, parameter.grad), compared(name, theirs), 2e-5, name)
    assert not wanted


@pytest.mark.parametrize("path", files("ijepa"))
def test_ijepa_every_step_and_the_final_weights(path):
    tensors, facts = read(path)
    method, settings = ijepa(tensors, facts), ijepa_optim(facts)
    optimizer = adamw(method, settings)
    for step, loss_there in enumerate(facts["losses"]):
        at = progress(facts, step)
        used = optim.set_schedules(optimizer, settings, at)
        assert used["lr"] == pytest.approx(facts["lr"][step], rel=1e-9)
        assert used["weight_decay"] == pytest.approx(facts["wd_used"][step], rel=1e-9)
        assert method.targets["teacher"].momentum(at) == pytest.approx(facts["momentum"][step], rel=1e-9)
        loss, _ = compute_loss(method, batch_of(tensors[f"step{step}.images"], ijepa_mask(tensors, f"step{step}")), at)
        assert loss.item() == pytest.approx(loss_there, rel=1e-5)
        loss.backward()
        optim.step(optimizer, torch.tensor(True))
        method.targets["teacher"].after_step(method.student, at)
    finals = {"encoder": method.student.encoder, "target_encoder": method.targets["teacher"].encoder}
    finals["predictor"] = method.student.predictor
    for name, module in finals.items():
        theirs = under(tensors, f"final.{name}.")
        for key, value in module.state_dict().items():
            wanted = theirs[predictor_name(key) if name == "predictor" else key]
            close(compared(key, value), compared(key, wanted), 1e-4, key)


@pytest.mark.parametrize("path", files("ijepa"))
def test_ijepa_schedules_over_the_whole_run(path):
    _, facts = read(path)
    settings = ijepa_optim(facts)
    momentum = Schedule.parse({"linear": facts["ema"], "stretch": facts["ipe_scale"]})
    for step, (lr, decay, kept) in enumerate(
        zip(facts["lr_curve"], facts["wd_curve"], facts["momentum_curve"], strict=True)
    ):
        at = progress(facts, step)
        assert settings.lr(at) == pytest.approx(lr, rel=1e-9)
        assert settings.weight_decay(at) == pytest.approx(decay, rel=1e-9)
        assert momentum(at) == pytest.approx(kept, rel=1e-9)


@pytest.mark.parametrize("path", files("ijepa"))
def test_ijepa_position_tables(path):
    tensors, facts = read(path)
    grid = (facts["img"] // facts["patch"],) * 2
    close(sincos(grid, facts["dim"]), tensors["init.encoder.pos_embed"][0])
    close(sincos(grid, facts["pred_dim"]), tensors["init.predictor.predictor_pos_embed"][0])


# --- MAE ---


def decoder_name(name):
    return name.replace("blocks.", "decoder_blocks.")


def mae(tensors, facts):
    keys = {"width": facts["dim"], "depth": facts["depth"], "heads": facts["heads"], "patch": facts["patch"]}
    encoder = part("encoders", "vit", class_token=True, init="xavier", **keys)
    keys = {"width": facts["decoder_dim"], "depth": facts["decoder_depth"], "heads": facts["decoder_heads"]}
    predictor = part("predictors", "mae", encoder, **keys)
    weights = under(tensors, "init.")
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    predictor.load_state_dict({name: weights[_mae_decoder(name)] for name in predictor.state_dict()})
    student = Student(encoder, predictor)
    pixels = part("targets", "pixels", student, normalize=facts["norm_pix_loss"])
    loss = part("losses", "mse", predictor.outputs["patch"])
    term = Term("predictor.patch", "pixels.patch", Schedule.parse(1.0))
    return Method(student, {"pixels": pixels}, {"guess": loss}, {"guess": term})


def _mae_decoder(name):
    return name if name.startswith(("decoder_", "mask_token")) else decoder_name(name)


@pytest.mark.parametrize("path", files("mae"))
def test_mae_forward_and_gradients(path):
    tensors, facts = read(path)
    method, images = mae(tensors, facts), tensors["images"]
    patches = (facts["img"] // facts["patch"]) ** 2
    kept = int(patches * (1 - facts["mask_ratio"]))
    shuffle = tensors["ids_shuffle"]
    assert torch.equal(shuffle, tensors["noise"].argsort(1))
    assert torch.equal(shuffle[:, :kept], tensors["ids_keep"])
    mask = Mask(Patches(shuffle[:, :kept]), Patches(shuffle[:, None, kept:]))
    hidden = torch.ones(len(images), patches).scatter_(1, shuffle[:, :kept], 0.0)
    assert torch.equal(hidden, tensors["mask"])

    tokens = method.student.encoder(images, mask.context)
    close(torch.cat([tokens.prefix, tokens.patches], 1), tensors["latent"])
    close(tokens.summary, tensors["latent"][:, 0])
    at = Progress(0, 1)
    guess = method.student.predictor(tokens, mask.target, at)["patch"]
    where = mask.target.take(tensors["pred"]).flatten(0, 2)
    close(guess, where)
    close(patchify(images, (facts["patch"], facts["patch"])), tensors["target"])

    loss, _ = compute_loss(method, batch_of(images, mask), at)
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    loss.backward()
    wanted = under(tensors, "grad.")
    for module, renamed in ((method.student.encoder, lambda name: name), (method.student.predictor, _mae_decoder)):
        for name, parameter in module.named_parameters():
            close(compared(name, parameter.grad), compared(name, wanted.pop(renamed(name))), 2e-5, name)
    assert not wanted


# --- losses ---


@pytest.mark.parametrize("path", files("losses"))
def test_the_negative_cosine_of_image_signals(path):
    tensors, facts = read(path)
    x, y = tensors["pair.x"].requires_grad_(), tensors["pair.y"]
    loss = part("losses", "cosine", Signal("image", x.shape[-1]))
    pairing = Pairing(torch.zeros(0), torch.ones(1, 1, dtype=torch.bool), torch.zeros(0))
    value, _ = loss(x[None], y[None], pairing, Progress(0, 1))
    assert value.item() - 1 == pytest.approx(facts["byol_negative_cosine"]["loss"], rel=1e-5)
    value.backward()
    close(x.grad, tensors["byol_negative_cosine.x_grad"])


# --- masks ---

GRIDS = {"224_16": (14, 14), "224_14": (16, 16), "448_16": (28, 28), "32_4": (8, 8)}


@pytest.mark.parametrize("case", GRIDS)
def test_the_legacy_sampler_has_the_published_statistics(case):
    facts = json.loads((OURS / "multiblock_reference_stats.json").read_text())[case]
    grid = GRIDS[case]
    assert grid[0] * grid[1] == facts["patches"]
    sampler = part("masks", "multiblock-legacy", min_keep=10 if case != "32_4" else 4)
    context, target = [], []
    for step in range(600):
        mask = sampler(facts["batch"], grid, Rng(0, step, range(facts["batch"])))
        context.append(mask.context.index.shape[1])
        target.append(mask.target.index.shape[2])
    for ours, theirs in ((context, facts["context_tokens_mean"]), (target, facts["target_tokens_mean"])):
        ours = torch.tensor(ours, dtype=torch.float64)
        error = ours.std() * math.sqrt(1 / facts["batches"] + 1 / len(ours))  # sampling error of both means
        assert abs(ours.mean() - theirs) < 4 * error
