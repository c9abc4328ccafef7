"""What the parity tests share: where the files lie, how they are read, and what close means.

Every KIND*.safetensors of a folder is tried (tests/parity/data, or the one SSLZOO_PARITY names); all sizes come from
the JSON beside each file.
"""

import json
import math
import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslzoo import Batch, Group, Mask, Patches, Progress, catalogue
from sslzoo.recipe.sections import OptimKeys
from sslzoo.run import data, optim
from sslzoo.run.processes import World

OURS = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("SSLZOO_PARITY", OURS))


KINDS = ("ijepa", "mae", "dino", "ibot", "msn", "lejepa", "cae", "data2vec", "capi", "losses")


def files(kind):
    """Those of the folder; another folder than ours may lack a kind, whose tests are then skipped."""
    assert kind in KINDS
    found = sorted(FOLDER.glob(f"{kind}*.safetensors"))
    assert found or FOLDER != OURS, f"no {kind}*.safetensors in {FOLDER}"
    return [pytest.param(path, id=path.stem) for path in found]


def unread(folder):
    """A sentence for each file that no test would read, and for a folder of which none would: else all were skipped."""
    found = sorted(folder.glob("*.safetensors"))
    told = [f"{path} is of no kind: {', '.join(KINDS)}" for path in found if not path.name.startswith(KINDS)]
    told += [f"{path} has no JSON beside it" for path in found if not path.with_suffix(".json").exists()]
    return told if found else [f"{folder} holds no *.safetensors"]


def read(path):
    """Tensors of a file, in float32 whatever it stores, and its settings."""
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    return tensors, json.loads(path.with_suffix(".json").read_text())


def under(tensors, start):
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def numbered(tensors, start):
    """Tensors called START0, START1, ... in order of their number."""
    return [tensors[f"{start}{n}"] for n in range(sum(name.startswith(start) for name in tensors))]


def part(family, name, *given, **keys):
    return catalogue().find(family, name).make(*given, **keys)


def vit_of(model, **own):
    """A ViT of the sizes that a file's JSON tells, with what is a method's own."""
    sizes = {"width": model["embed_dim"], "depth": model["depth"], "heads": model["num_heads"]}
    sizes |= {"mlp_ratio": float(model["mlp_ratio"]), "patch": model["patch_size"], "image": model["img_size"]}
    return part("encoders", "vit", **sizes, **own)


def close(ours, theirs, tolerance=1e-5, name=""):
    """Within a share of the largest value of theirs."""
    ours, theirs = ours.detach().double(), theirs.double()
    assert ours.shape == theirs.shape, name
    scale = theirs.abs().max().clamp(min=1e-12)
    assert ((ours - theirs).abs().max() / scale).item() < tolerance, name


def compared(name, value):
    """A tensor without the keys' third of a bias: it has no gradient but rounding, and no influence."""
    value = value.detach().clone()
    if name.endswith("qkv.bias"):
        value.unflatten(0, (3, -1))[1] = 0
    return value


def allowed(facts, kind, least=2e-5):
    """How far from a file's values ours may lie: 20 times as far as the reference's own in float64, of what begins so.

    A file that does not tell is allowed 1e-4.
    """
    told = facts.get("float64_deviation", {kind: {"max_relative_to_tensor_max": 5e-6}})
    own = [found["max_relative_to_tensor_max"] for name, found in told.items() if name.startswith(kind)]
    return max(least, 20 * max(own))


def all_close(ours, theirs, tolerance=1e-5):
    """Every tensor of ours and theirs, by name; neither has one that the other lacks."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        close(value, theirs[name], tolerance, name)


def mask_of(hidden):
    """[s N] -> Mask of what is seen and what is hidden; an image, and even all of them, may have nothing hidden."""
    length = hidden.sum(1)
    order, most = hidden.to(torch.uint8).argsort(dim=1, descending=True, stable=True), max(1, int(length.max()))
    seen = order.flip(1)[:, : hidden.shape[1] - int(length.min())]
    return Mask(Patches(seen, hidden.shape[1] - length), Patches(order[:, None, :most], length[:, None]))


def batch_of(images, mask=None, **more):
    """One group of one view, weighed as for one process."""
    groups = {"image": Group(images[None], torch.zeros(1, len(images), 4), mask, "both")} | more
    return data.weigh([Batch(groups, data.pair(groups))], World())[0]


class Optim(OptimKeys):
    """The section `optim`, with AdamW's own keys."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


def adamw(method, settings):
    """The optimizer of that section."""
    make = catalogue().find("optimizers", "adamw").make
    return make(optim.groups(method, settings), betas=settings.betas, eps=settings.eps)


def factors(name, groups):
    """What multiplies the learning rate and the weight decay of a parameter."""
    found = [factor for pattern, factor in groups.items() if fnmatchcase(name, pattern)]
    at = Progress(0, 1)
    return math.prod(one.lr(at) for one in found), math.prod(one.weight_decay(at) for one in found)
