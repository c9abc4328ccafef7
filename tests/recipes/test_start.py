"""The section `start` and `sslzoo import`: encoders that others trained, under the names that their released code gives, say what they said there.

The weights and what they say are the parity tests' (tests/parity/README.md): files are made of them as the authors do.
"""

import hashlib
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import sslzoo
from sslzoo import catalogue
from sslzoo.cli import cli
from sslzoo.errors import UserError
from sslzoo.run import published
from sslzoo.run.published import candidates, chosen

PARITY = Path(__file__).parent.parent / "parity" / "data"


def parity(name):
    tensors = load_file(PARITY / f"{name}_small.safetensors")
    return tensors, json.loads((PARITY / f"{name}_small.json").read_text())


def under(tensors, start, then=""):
    return {then + name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def recipe_of(folder, encoder, size, base="tiny/ijepa", **sections):
    """A shipped recipe with another encoder, for images of another size."""
    path = Path(sslzoo.__file__).parent.parent / "recipes" / f"{base}.yaml"
    tree = yaml.safe_load(path.read_text())
    tree |= {"encoder": encoder, "data": {"use": "scenes", "length": 64, "size": size}} | sections
    tree["targets"]["teacher"].pop("layers", None)
    for view in tree["views"].values():
        view["size"] = size
    tree["evaluate"]["view"] |= {"size": size, "resize": size}
    written = folder / "here.yaml"
    written.write_text(yaml.safe_dump(tree))
    return written


def vit(model, **more):
    shape = {"width": model["embed_dim"], "depth": model["depth"], "heads": model["num_heads"]}
    return {"use": "vit", **shape, "mlp_ratio": float(model["mlp_ratio"]), "patch": model["patch_size"], **more}


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refused(*words):
    """A person's mistake: told without a traceback, with exit code 2 (`sslzoo.cli.main`)."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def taken(folder, recipe, file, *words):
    """The encoder of a run that begins with a file's."""
    said = call("import", recipe, file, "--out", folder / "run", *words)
    return sslzoo.load_encoder(folder / "run"), said


def close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < tolerance


def test_ijepa(tmp_path):
    """The authors' file: two encoders and a predictor wrapped by DDP, an optimizer, numbers; fixed positions."""
    tensors, facts = parity("ijepa")
    encoder = under(tensors, "init.encoder.", "module.")
    target = {name: value.half() for name, value in encoder.items()}
    file = tmp_path / "vit.pth.tar"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    predictor = under(tensors, "init.predictor.", "module.")
    torch.save(
        {"encoder": encoder, "target_encoder": target, "predictor": predictor, "opt": optimizer, "epoch": 3}, file
    )
    size = tensors["step0.images"].shape[-1]
    shape = {"width": facts["dim"], "depth": facts["depth"], "heads": facts["heads"], "patch": facts["patch"]}
    recipe = recipe_of(tmp_path, {"use": "vit", **shape}, size)

    there = "'encoder.module', 'target_encoder.module'"
    both = refused("import", recipe, file, "--out", tmp_path / "run")
    assert f"holds 2 such encoders; choose one with take: {there}" in both
    other = refused("import", recipe, file, "--out", tmp_path / "run", "--take", "opt")
    assert f"architecture under 'opt'; there is: {there}" in other
    assert not (tmp_path / "run").exists()

    ours, said = taken(tmp_path, recipe, file, "--take", "encoder")
    assert "teacher, student: 40 weights from 'encoder.module' of vit.pth.tar" in said
    close(ours(tensors["step0.images"]).patches, tensors["step0.target_tokens"])
    student = sslzoo.load_encoder(tmp_path / "run", "student")
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in student.state_dict().items())

    (tmp_path / "half").mkdir()
    halved = taken(tmp_path / "half", recipe, file, "--take", "target_encoder")[0]
    assert all(value.dtype == torch.float32 for value in halved.state_dict().values())
    close(halved(tensors["step0.images"]).patches, tensors["step0.target_tokens"], 0.02)


def test_mae(tmp_path):
    """Decoder weights lie beside the encoder's, under no name of their own."""
    tensors, facts = parity("mae")
    file = tmp_path / "mae.pth"
    torch.save({"model": under(tensors, "init."), "args": Namespace(lr=1e-3)}, file)
    image = tensors["images"]
    width = tensors["init.cls_token"].shape[-1]
    depth = len({name.split(".")[2] for name in tensors if name.startswith("init.blocks.")})
    patch = tensors["init.patch_embed.proj.weight"].shape[-1]
    shape = {"width": width, "depth": depth, "heads": facts["heads"], "patch": patch, "class_token": True}
    hidden = tensors["init.blocks.0.mlp.fc1.weight"].shape[0] / width
    recipe = recipe_of(tmp_path, {"use": "vit", **shape, "mlp_ratio": hidden}, image.shape[-1])
    ours, said = taken(tmp_path, recipe, file)
    assert "left aside: " in said
    assert "decoder_pred" in said or "more" in said
    context = sslzoo.Patches(tensors["ids_keep"])
    seen = ours(image, context)
    close(torch.cat([seen.prefix, seen.patches], 1), tensors["latent"])


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_dino_and_ibot(tmp_path, name):
    """Whole checkpoints: a student wrapped by DDP and a teacher with their heads, options, centers."""
    tensors, facts = parity(name)
    student = under(tensors, "init.", "module.")
    masked = name == "ibot"
    teacher = {one: value for one, value in under(tensors, "init.").items() if "masked_embed" not in one}
    file = tmp_path / "checkpoint.pth"
    torch.save(
        {"student": student, "teacher": teacher, "args": Namespace(arch="vit"), "loss": {"c": torch.ones(2)}}, file
    )
    more = {"class_token": True, "positions": "learned", "resample": "offset", "image": facts["model"]["img_size"]}
    encoder = vit(facts["model"], **more, hidden="fill" if masked else "drop")
    size = tensors["step0.crop.0"].shape[-1]
    recipe = recipe_of(tmp_path, encoder, size)
    words = ["--take", "teacher"]
    if masked:
        told = refused("import", recipe, file, "--out", tmp_path / "run", *words)
        assert told.endswith("nearest is 'teacher.backbone':\n    mask_token is missing")
        words += ["--without", "mask_token"]
    ours, said = taken(tmp_path, recipe, file, *words)
    assert ("as the seed starts them: mask_token" in said) == masked
    crops = torch.cat([tensors["step0.crop.0"], tensors["step0.crop.1"]])
    tokens = ours(crops)
    theirs = tensors["step0.teacher.backbone"]
    close(tokens.summary, theirs[:, 0] if theirs.ndim == 3 else theirs)


def test_msn(tmp_path):
    tensors, facts = parity("msn")
    file = tmp_path / "msn.pth.tar"
    weights = under(tensors, "init.encoder.", "module.")
    torch.save({"target_encoder": weights, "prototypes": tensors["init.prototypes"]}, file)
    encoder = vit(
        facts["model"], class_token=True, positions="learned", resample="plain", image=facts["model"]["img_size"]
    )
    recipe = recipe_of(tmp_path, encoder, tensors["step0.crop.0"].shape[-1])
    ours, _ = taken(tmp_path, recipe, file)
    close(ours(tensors["step0.crop.0"]).summary, tensors["step0.target.backbone"], 1e-4)


def test_data2vec(tmp_path):
    """Two biases of three, scales of layers under BEiT's names, a table of relative positions."""
    tensors, facts = parity("data2vec")
    file = tmp_path / "data2vec.pt"
    torch.save({"model": under(tensors, "init.")}, file)
    model = facts["model"]
    more = {"class_token": True, "positions": "relative", "image": model["img_size"], "hidden": "fill"}
    recipe = recipe_of(tmp_path, vit(model, **more, layer_scale=model["init_values"]), model["img_size"])
    ours, said = taken(tmp_path, recipe, file)
    assert "left aside: " in said
    assert "lm_head" in said
    last = tensors["step0.teacher.blocks"]
    for own, theirs in zip(ours(tensors["step0.images"], None, len(last)).layers, last, strict=True):
        close(own, theirs)


def test_cae(tmp_path):
    tensors, facts = parity("cae")
    file = tmp_path / "cae.pth"
    torch.save({"model": under(tensors, "init.")}, file)
    model = facts["model"]
    more = {"class_token": True, "positions": "sincos-rows", "layer_scale": model["init_values"]}
    size = tensors["step0.images"].shape[-1]
    wrong = recipe_of(tmp_path, vit(model, **more | {"positions": "sincos"}), size)
    told = refused("import", wrong, file, "--out", tmp_path / "run")
    assert "is not the fixed one of this encoder; the recipe's encoder wants other positions" in told
    recipe = recipe_of(tmp_path, vit(model, **more), size)
    ours, _ = taken(tmp_path, recipe, file, "--take", "model.encoder")
    seen = torch.stack([(~row).nonzero().flatten() for row in tensors["step0.mask"].bool()])
    tokens = ours(tensors["step0.images"], sslzoo.Patches(seen))
    close(torch.cat([tokens.prefix, tokens.patches], 1), tensors["step0.encoder"])


def test_capi(tmp_path):
    tensors, facts = parity("capi")
    file = tmp_path / "capi.safetensors"
    save_file({name: value.contiguous() for name, value in under(tensors, "init.student.").items()}, file)
    model = facts["model"]
    shape = {"width": model["embed_dim"], "depth": model["encoder_depth"], "heads": model["num_heads"]}
    encoder = {"use": "vit-rope", "patch": model["patch_size"], "registers": model["n_registers"], **shape}
    recipe = recipe_of(tmp_path, encoder, tensors["step0.images"].shape[-1])
    ours, _ = taken(tmp_path, recipe, file)
    close(ours(tensors["step0.images"]).patches, tensors["step0.teacher.backbone"])


def test_a_residual_network_of_timms(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=10).eval()
    file = tmp_path / "resnet.pth"
    torch.save(theirs.state_dict(), file)
    recipe = recipe_of(tmp_path, {"use": "resnet", "model": "resnet18"}, 64, "tiny/byol", optim={"lr": 1e-3})
    ours, said = taken(tmp_path, recipe, file)
    assert "left aside: fc.weight, fc.bias" in said
    pixels = torch.randn(2, 3, 64, 64)
    close(ours(pixels).summary, theirs.forward_features(pixels).mean((2, 3)))


ENCODER = {"use": "vit", "width": 24, "depth": 2, "heads": 3, "patch": 8}


def made(**other):
    keys = {name: value for name, value in ENCODER.items() if name != "use"}
    return catalogue().find("encoders", "vit").make(**keys | other)


def recipe_to_train(folder):
    teacher = {"teacher": {"use": "ema", "momentum": 0.9}}
    return recipe_of(
        folder, ENCODER, 32, targets=teacher, run={"steps": 3, "batch": 4, "precision": "fp32", "workers": 0}
    )


def test_a_run_goes_on_from_it_and_its_own_checkpoint_comes_into_another(tmp_path):
    recipe = recipe_to_train(tmp_path)
    call("train", recipe, "--out", tmp_path / "first", "--no-evaluate", "--set", "run.seed=5")
    saved = sorted((tmp_path / "first" / "checkpoints").iterdir())[-1]
    ours, _ = taken(tmp_path, recipe, saved, "--take", "method.student.encoder")
    student = sslzoo.load_encoder(tmp_path / "first", "student").state_dict()
    assert all(torch.equal(value, student[name]) for name, value in ours.state_dict().items())
    short = ["--set", "evaluate.train.length=32", "--set", "evaluate.test.length=16"]
    assert "untrained" in call("eval", tmp_path / "run", "--untrained", "--probe", "knn", *short)
    assert "resumed from step-000000000.safetensors" in call("train", tmp_path / "run", "--no-evaluate")
    assert "done" in call("status", tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def weights_of(run, step=3):
    return load_file(run / "checkpoints" / f"step-{step:09d}.safetensors")


def test_a_recipe_that_starts_from_a_file_is_an_import_that_goes_on(tmp_path):
    """And a run goes on without the file, but never begins again with another one, nor from its seed."""
    recipe, file = recipe_to_train(tmp_path), tmp_path / "weights.pth"
    torch.save(made(init=0.1).state_dict(), file)
    asked = ["--set", f"start.file={file}"]
    said = call("train", recipe, *asked, "--out", tmp_path / "whole", "--no-evaluate")
    assert "teacher, student: 28 weights from the file itself of weights.pth" in said
    taken(tmp_path, recipe, file)
    call("train", tmp_path / "run", "--no-evaluate")
    one, other = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(other[name], value) for name, value in one.items())
    plain = recipe_to_train(tmp_path)
    call("train", plain, "--out", tmp_path / "plain", "--no-evaluate")
    assert any(not torch.equal(weights_of(tmp_path / "plain")[name], value) for name, value in one.items())

    told = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())["start"]
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "start" in refused("train", plain, "--out", tmp_path / "whole")
    file.rename(tmp_path / "moved.pth")
    assert "steps 3 to 3" in call("train", recipe, *asked, "--out", tmp_path / "whole", "--no-evaluate")
    assert (tmp_path / "whole" / "checkpoints" / "step-000000000.safetensors").exists()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "state.json").unlink()
    (tmp_path / "run" / "attempts.jsonl").unlink()
    assert f"there is no file {file}" in refused("train", tmp_path / "run", "--no-evaluate")
    torch.save(made(init=0.2).state_dict(), file)
    assert f"{file} is not the file it was: sha256 {told['sha256']} then" in refused("train", tmp_path / "run")


def test_its_status_and_health_are_told_before_any_step(tmp_path):
    recipe, file = recipe_to_train(tmp_path), tmp_path / "weights.pth"
    torch.save(made().state_dict(), file)
    taken(tmp_path, recipe, file)
    assert "not started" in call("status", tmp_path / "run")
    with pytest.raises(AssertionError, match="no line of metrics yet"):
        call("doctor", tmp_path / "run")


def test_what_is_refused(tmp_path):
    recipe, file = (
        recipe_of(tmp_path, ENCODER, 32, targets={"teacher": {"use": "ema", "momentum": 0.9}}),
        tmp_path / "weights.pth",
    )

    def told(*words):
        said = refused("import", recipe, file, "--out", tmp_path / "run", *words)
        assert not (tmp_path / "run").exists()
        return said

    assert f"there is no file {file}" in told()
    file.write_bytes(b"not a file of tensors")
    assert "weights.pth" in told()
    torch.save({"model": {"weight": torch.ones(3)}, "made": Path("x")}, file)
    assert "would be executed, so the file is not opened" in told()
    torch.save({"model": {"weight": torch.ones(3)}}, file)
    assert told().endswith("holds no encoder of the recipe's architecture")
    torch.save({"model": made(width=48).state_dict()}, file)
    assert "nearest is 'model'" in told()
    assert "patch_embed.proj.weight is [48, 3, 8, 8], the recipe's [24, 3, 8, 8]" in told()
    assert "start.without: norm.wight: the encoder has no such weight; did you mean norm.weight?" in told(
        "--without", "norm.wight"
    )
    refused("import", recipe, tmp_path, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"depth": 3}, "blocks.2.norm1.weight is not the recipe's"),
        ({"layer_scale": 0.1}, "blocks.0.ls1.gamma is not the recipe's"),
        ({"class_token": True}, "it has cls_token [1, 1, 24], which the recipe's encoder lacks (class_token)"),
        ({"registers": 4}, "it has reg_token [1, 4, 24], which the recipe's encoder lacks (registers)"),
        ({"positions": "learned", "image": 32}, "is not the fixed one of this encoder"),
    ],
)
def test_an_encoder_that_has_more_is_another(tmp_path, other, told):
    keys = {name: value for name, value in ENCODER.items() if name != "use"}
    part = catalogue().find("encoders", "vit").make(**keys)
    found = candidates(part, {f"model.{name}": value for name, value in made(**other).state_dict().items()})
    with pytest.raises(UserError, match=re.escape(told)):
        chosen(found, Path("weights.pth"), None)


def test_a_file_that_is_none_is_told(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(made().state_dict(), whole, _use_new_zipfile_serialization=False)
    content = whole.read_bytes()
    pieces = [b"", b"<html>404</html>", b"version https://git-lfs", *(content[:end] for end in range(1, 4000, 97))]
    for piece in pieces:
        (tmp_path / "cut.pth").write_bytes(piece)
        with pytest.raises(UserError, match="cut.pth cannot be read as what torch.save wrote"):
            published.read(tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(content[:100])
    with pytest.raises(UserError, match="cut.safetensors cannot be read: "):
        published.read(tmp_path / "cut.safetensors")


def test_own_checkpoints_offer_no_moments_and_no_encoder_twice(tmp_path):
    """A residual network is found under two prefixes, and an optimizer's moments have all names and shapes."""
    part = catalogue().find("encoders", "resnet").make(model="resnet18")
    tensors = {f"method.student.encoder.{name}": value for name, value in part.state_dict().items()}
    tensors |= {f"optim.exp_avg.encoder.{name}": torch.zeros_like(value) for name, value in part.named_parameters()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "own.safetensors")
    read = published.read(tmp_path / "own.safetensors")
    assert chosen(candidates(part, read), tmp_path, None).prefix == "method.student.encoder"
    assert chosen(candidates(part, read), tmp_path, "method.student.encoder.net").prefix == "method.student.encoder.net"


def test_paths_with_variables_and_rare_letters_and_the_sum_that_is_wanted(tmp_path):
    recipe, file = recipe_to_train(tmp_path), tmp_path / "w\U0001f600.pth"
    torch.save(made().state_dict(), file)
    short = ["--out", tmp_path / "unset", "--no-evaluate", "--set", "start.file=${SSLZOO_NOWHERE}/w.pth"]
    assert "start.file" in refused("train", recipe, *short)
    pinned = "start.sha256=" + "ab" * 32
    told = refused("import", recipe, file, "--out", tmp_path / "run", "--set", pinned)
    assert f"is not the file it was: sha256 {'ab' * 32} then" in told
    taken(tmp_path, recipe, file)


def test_an_imported_encoder_stands_beside_trained_ones_in_a_table(tmp_path):
    recipe, file = recipe_to_train(tmp_path), tmp_path / "weights.pth"
    torch.save(made(init=0.1).state_dict(), file)
    short = [
        "--set",
        "evaluate.train.length=32",
        "--set",
        "evaluate.test.length=16",
        "--set",
        "evaluate.probes={k: {use: knn}}",
    ]
    call("train", recipe, "--out", tmp_path / "mine", *short)
    call("import", recipe, file, "--out", tmp_path / "run", *short, "--set", "name=released")
    call("eval", tmp_path / "run", "--untrained")
    told = json.loads(next((tmp_path / "run" / "eval").glob("*.json")).read_text())
    assert told["start"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    said = call("compare", tmp_path / "mine", tmp_path / "run", "--out", tmp_path / "page")
    assert "released" in said
    assert "left out" not in said
    assert "evaluated in different ways" not in said
    wrong = refused("eval", tmp_path / "mine", "--set", f"start.file={file}")
    assert "start: (absent) there, a file asked for" in wrong


def test_a_folder_with_a_run_is_left_as_it_is(tmp_path):
    recipe, file = recipe_to_train(tmp_path), tmp_path / "weights.pth"
    torch.save(made().state_dict(), file)
    taken(tmp_path, recipe, file)
    again = refused("import", recipe, file, "--out", tmp_path / "run")
    assert "holds a run already; choose another folder with --out" in again
