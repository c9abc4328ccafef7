"""Full fine-tuning: MAE's rates, a copy that learns, an encoder that does not, and going on where it was cut short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sslzoo_probes import FineTune, Heads, Linear
from sslzoo_probes.finetune import Tuned

from sslzoo import RecipeError, RunError, make
from sslzoo.cli import cli
from sslzoo.evaluate.bench import bench, untrained
from sslzoo.evaluate.drawn import DrawnEncoder, drawn
from sslzoo.evaluate.features import extract
from sslzoo.evaluate.images import Images
from sslzoo.evaluate.kept import Kept
from sslzoo.evaluate.rehearse import rehearse
from sslzoo.plugins import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.processes import World
from sslzoo.train import train

PLAIN = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "drop_path": 0.0, "warmup": 1.0}
SMALL = ("encoder={use: vit, width: 24, depth: 2, heads: 3, patch: 8, init: 0.1}", "run.workers=0")
SMALL += ("evaluate.train={use: scenes, split: train, length: 96, size: 32, cache: true}",)
SMALL += ("evaluate.test={use: scenes, split: test, length: 32, size: 32, cache: true}",)
SMALL += ("evaluate.view={use: center, size: 32, resize: 32}", "views.image.size=32", "targets.teacher.layers=2")
AUGMENT = "evaluate.augment={use: rand-augment, size: 32, scale: [0.5, 1.0]}"


def made_up(n=40, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return drawn(torch.randn(n, 16, generator=rng), torch.randint(4, (n,), generator=rng), 4)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Features of rendered scenes, with the images and an untrained encoder behind them."""
    recipe, installed = load("tiny/ijepa", (*SMALL, AUGMENT))
    opened = bench(recipe, installed)
    encoder = untrained(recipe, installed).student.encoder
    kept = Kept(tmp_path_factory.mktemp("kept"), {})
    found = []
    for data in (opened.train, opened.test):
        images = Images(encoder, data, opened.view, opened.augment, torch.device("cpu"), 64, 0, False, kept)
        features = extract(encoder, data, opened.view, device=torch.device("cpu"), pools=("mean",))
        found.append(replace(features, images=images, tasks={"color": features.tasks["color"]}))
    return found


def test_rates_fall_by_a_factor_from_block_to_block_and_vectors_and_tokens_do_not_decay():
    model = Tuned(DrawnEncoder(), "mean", 4, 0.0, 0)
    found = {}
    for group in FineTune(layer_decay=0.65).groups(model):
        for parameter in group["params"]:
            found[id(parameter)] = (group["lr_scale"], group["weight_decay"])
    depth = 2  # MAE: decay ** (depth + 1 - layer), layer 0 ahead of the blocks, the head's depth + 1
    for name, parameter in model.named_parameters():
        head = name.startswith(("head", "fc_norm", "encoder.norm"))
        layer = depth + 1 if head else int(name.split(".")[2]) + 1 if ".blocks." in name else 0
        wanted = (0.65 ** (depth + 1 - layer), 0.0 if parameter.ndim == 1 or name.endswith("cls_token") else 0.05)
        assert found[id(parameter)] == pytest.approx(wanted), name


def test_the_rate_warms_up_and_falls_along_half_a_cosine():
    probe = FineTune(epochs=20, batch=512, lr=1e-3, warmup=4, min_lr=0.0)
    assert [probe._rate(epoch) for epoch in (0, 2, 4, 12, 20)] == pytest.approx([0, 1e-3, 2e-3, 1e-3, 0])
    assert FineTune(batch=1024, min_lr=1e-6)._rate(100) == pytest.approx(1e-6)  # MAE's is not scaled by the batch
    with pytest.raises(ValueError, match="longer than the 3 epochs"):
        FineTune(epochs=3)


def test_a_copy_learns_what_the_frozen_encoder_does_not_tell(real):
    before = {name: value.clone() for name, value in real[0].images.encoder.state_dict().items()}
    torch.manual_seed(7)
    chances = torch.get_rng_state(), np.random.get_state()[1].copy()
    plain = [replace(one, images=replace(one.images, augment=None)) for one in real]
    found = FineTune(epochs=30, batch=16, lr=0.016, layer_decay=1.0, **PLAIN)(*plain, 0)
    frozen = Linear()(real[0], real[0], 0)["color/top1"]
    assert found["color/trained"] > frozen + 10
    after = real[0].images.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), chances[0])
    assert (np.random.get_state()[1] == chances[1]).all()


def test_cut_short_it_goes_on_where_it_was(real):
    probe = FineTune(epochs=4, batch=40, warmup=1)
    whole = probe(*real, 3)

    class Killed(Images):
        saves = 0

        def save(self, name, tensors):
            super().save(name, tensors)
            if tensors["epochs"] == 2:
                raise KeyboardInterrupt

    args = [getattr(real[0].images, name) for name in Images.__dataclass_fields__]
    with pytest.raises(KeyboardInterrupt):
        probe(replace(real[0], images=Killed(*args)), real[1], 3)
    asked = []

    class Counted(Images):
        def pages(self, batches, seed=None):
            asked.append(seed)
            return super().pages(batches, seed)

    again = probe(replace(real[0], images=Counted(*args)), real[1], 3)
    assert len([seed for seed in asked if seed is not None]) == 2  # two of the four epochs were done
    assert whole.keys() == again.keys()
    assert all(torch.equal(torch.as_tensor(whole[name]), torch.as_tensor(again[name])) for name in whole)
    assert not list(real[0].images.kept.folder.glob("*.half"))


@pytest.mark.parametrize("damage", ["a bit", "torn", "of another name"])
def test_a_state_that_is_damaged_or_anothers_is_not_gone_on_with(real, damage):
    images = real[0].images
    path = images.kept.half(images.encoder, "mine")
    images.save("mine", {"x": torch.arange(6.0)})
    assert images.load("mine")["x"].equal(torch.arange(6.0))
    content = bytearray(path.read_bytes())
    if damage == "of another name":
        images.save("others", {"x": torch.zeros(6)})
        content = images.kept.half(images.encoder, "others").read_bytes()
        images.save("others", {})
    elif damage == "a bit":
        content[-1] ^= 1
    path.write_bytes(content[:-3] if damage == "torn" else content)
    assert images.load("mine") == {}
    images.save("mine", {})
    assert not list(path.parent.glob("*.half*"))


def test_the_models_of_killed_and_unbroken_are_equal_bit_for_bit():
    probe, features = FineTune(epochs=3, batch=16, warmup=1), made_up()
    args = (features.labels["kind"], "kind", 4, 0)
    whole = probe.trained(made_up().images, *args).state_dict()
    killed, save = made_up().images, type(features.images).save
    states = []
    killed.saved.clear()
    object.__setattr__(
        killed, "save", lambda name, tensors: (save(killed, name, tensors), states.append(killed.saved[name]))
    )
    probe.trained(killed, *args)
    (name,) = killed.saved
    half = made_up().images
    half.save(name, states[0])
    resumed = probe.trained(half, *args).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_micro_batches_give_the_gradient_of_the_whole():
    args = (made_up().labels["kind"], "kind", 4, 0)
    settings = {**PLAIN, "mixup": 0.8, "epochs": 2, "batch": 40}
    one, some = (FineTune(**settings, micro=micro).trained(made_up().images, *args).state_dict() for micro in (None, 7))
    assert all(torch.allclose(one[name], some[name], atol=2e-4) for name in one)


def test_heads_read_augmented_features_anew_in_each_epoch_and_may_use_lars():
    features = made_up()
    seeds = []
    images = features.images
    object.__setattr__(images, "pools", lambda names, seed: seeds.append(seed) or dict.fromkeys(names, features.x))
    settings = {"features": ("mean",), "norms": (True,), "lrs": (0.1,), "penalties": (0.0,), "epochs": 3}
    augmented = Heads(**settings, augment=True)(features, made_up(seed=1), 0)
    assert len(set(seeds)) == 3
    assert augmented["kind/top1"] == Heads(**settings)(made_up(), made_up(seed=1), 0)["kind/top1"]
    with pytest.raises(RunError, match="needs a key augment"):
        Heads(augment=True)(drawn(features.x, features.labels["kind"], 4, augmented=False), features, 0)

    heads = Heads(**settings | {"penalties": (0.1,)}, optimizer="lars", batch=64)
    (head,) = heads.trained(features, "kind", torch.arange(40), 4, 0)
    start = Heads(**settings | {"epochs": 1, "lrs": (1e-30,)}).trained(features, "kind", torch.arange(40), 4, 0)[0]
    moved = (head[1].weight - start[1].weight).norm() / start[1].weight.norm()
    # three steps of LARS, each at most rate * trust (0.001) of the weights' norm: at 0.1 / 4, 1, 1.9 and 2.71 of it
    assert 0 < moved < 0.1 / 4 * 0.001 * (1 + 1.9 + 2.71) * 1.01


def test_what_does_not_suit_is_told_before_the_run():
    tune = "evaluate.probes={tuned: {use: finetune, epochs: 5, feature: class}}"
    recipe, installed = load("tiny/ijepa", (*SMALL, tune))
    with pytest.raises(RecipeError, match="class token, and the encoder has none"):
        rehearse(recipe, installed, data=False)
    capi = load("tiny/capi", ("evaluate.probes={tuned: {use: finetune, epochs: 5}}",))
    with pytest.raises(RecipeError, match=r"RopeEncoder|drop_path.*set it to 0"):
        rehearse(*capi, data=False)
    heads = load("tiny/ijepa", (*SMALL, "evaluate.probes={h: {use: heads, augment: true, features: [mean]}}"))
    with pytest.raises(RecipeError, match="needs a key augment"):
        rehearse(*heads, data=False)
    sizes = load("tiny/ijepa", (*SMALL, AUGMENT.replace("size: 32", "size: 64")))
    with pytest.raises(RecipeError, match=r"evaluate\.augment"):
        rehearse(*sizes, data=False)


def test_a_run_is_fine_tuned_from_the_command_line_by_one_process(tmp_path, monkeypatch):
    sets = (*SMALL, "run.steps=1", "run.batch=4", "run.monitor=0", "data.length=4", "data.size=32")
    recipe, installed = load("tiny/ijepa", sets)
    train(recipe, installed, check(recipe, installed), tmp_path / "run", World())
    tune = "evaluate.probes={tuned: {use: finetune, epochs: 1, warmup: 0, batch: 48}}"
    found = CliRunner().invoke(cli, ["eval", str(tmp_path / "run"), "--set", tune, "--set", AUGMENT, "--json"])
    assert found.exit_code == 0, found.output
    assert "tuned/color/trained" in json.loads(found.stdout)["step 1"]
    (path,) = (tmp_path / "run" / "eval").glob("*.json")
    assert json.loads(path.read_text())["augment"]["operations"] == 2

    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="1 process was asked for, but torchrun started 2"):
        CliRunner().invoke(cli, ["eval", str(tmp_path / "run")], catch_exceptions=False)


def test_the_augmented_view_draws_from_the_engine_alone():
    view = make(catalogue(), "views", {"use": "rand-augment", "size": 32, "erase": 1.0})
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    from sslzoo.run.data import look

    first, box = look(view, image, 5)
    assert (first.shape, first.dtype, box.shape) == ((3, 32, 32), torch.float32, (4,))
    assert torch.equal(first, look(view, image, 5)[0])
    assert not torch.equal(first, look(view, image, 6)[0])
