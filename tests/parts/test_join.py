"""Several predictors side by side: their signals, their keys, the projector that a teacher may copy."""

import re

import pytest
import torch
import yaml
from sslzoo_vit import ViT

from sslzoo import Patches, PluginError, Progress, RecipeError, Student, catalogue, make
from sslzoo.recipe.recipe import load, resolve
from sslzoo.recipe.resuming import differences
from sslzoo.recipe.told import keys

AT = Progress(0, 10)
TWO = {
    "tokens": {"use": "ijepa", "width": 16, "depth": 1, "heads": 2},
    "pixels": {"use": "ijepa", "width": 8, "depth": 1, "heads": 2, "to": "pixels"},
    "head": {"use": "head", "width": 6, "hidden": 12, "prototypes": 5},
}


def joined(parts):
    torch.manual_seed(0)
    encoder = ViT(width=24, depth=1, heads=2, patch=4).eval()
    return encoder, make(catalogue(), "predictors", {"use": "join", "parts": parts}, encoder, place="predictor").eval()


def test_each_says_what_it_would_say_alone_under_a_name_of_its_own():
    encoder, both = joined(TWO)
    assert {name: (signal.kind, signal.width) for name, signal in both.outputs.items()} == {
        "tokens_patch": ("patch", 24),
        "pixels_patch": ("patch", 48),
        "image": ("image", 5),
    }
    tokens = encoder(torch.randn(2, 3, 8, 16), Patches(torch.tensor([[0, 3], [1, 2]])))
    target = Patches(torch.tensor([[[4, 5]], [[6, 7]]]))
    said = both(tokens, target, AT)
    assert torch.equal(said["tokens_patch"], both.parts["tokens"](tokens, target, AT)["patch"])
    assert torch.equal(said["pixels_patch"], both.parts["pixels"](tokens, target, AT)["patch"])
    assert set(both(tokens, None, AT)) == {"image"}
    assert both.projector is both.parts["head"].projector
    assert len(both.blocks) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": "wide"}, r"(?s)predictor\.parts\.tokens\.width.*found 'wide'"),
        ({"widht": 16}, r"(?s)predictor\.parts\.tokens\.widht.*did you mean width"),
        ({"heads": 3}, r"predictor\.parts\.tokens"),
    ],
)
def test_keys_are_checked_as_those_of_any_part(change, says):
    with pytest.raises(RecipeError, match=says):
        joined(TWO | {"tokens": TWO["tokens"] | change})


def test_a_teacher_copies_the_projector_it_is_told():
    encoder, both = joined(TWO | {"other": {"use": "head", "width": 4, "hidden": 12}})
    teacher = catalogue().find("targets", "ema").make
    made = teacher(Student(encoder, both), project="other", momentum=0.0)
    assert made.outputs["image"].width == 4
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.add_(1.0)
    made.after_step(Student(encoder, both), AT)
    theirs = both.parts["other"].projector.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in made.projector.state_dict().items())
    for project, says in [
        (True, "several parts of the predictor have a projector; name one: head, other"),
        ("tokens", "found 'tokens'; parts of the predictor with a projector: head, other"),
    ]:
        with pytest.raises(ValueError, match=says):
            teacher(Student(encoder, both), project=project)
    assert teacher(Student(*joined(TWO)), project=True).outputs["image"].width == 5


def test_one_alone_or_an_unknown_one_is_refused():
    with pytest.raises(RecipeError, match="two predictors or more"):
        joined({"head": TWO["head"]})
    with pytest.raises(PluginError, match=r"no predictor is called 'odd'"):
        joined(TWO | {"odd": {"use": "odd"}})


def test_a_part_may_come_from_a_plugin_file(tmp_path):
    file = tmp_path / "mine.py"
    offer = "@hookimpl\ndef sslzoo_predictors():\n    return {'mine': Mine}\n"
    file.write_text(
        f"from sslzoo import hookimpl\nfrom sslzoo_heads import Head\n\nclass Mine(Head):\n    pass\n\n{offer}"
    )
    encoder = ViT(width=24, depth=1, heads=2, patch=4)
    spec = {"use": "join", "parts": TWO | {"head": TWO["head"] | {"use": "mine"}}}
    assert type(make(catalogue([file]), "predictors", spec, encoder).parts["head"]).__name__ == "Mine"
    with pytest.raises(PluginError, match=r"no predictor is called 'mine'"):
        make(catalogue(), "predictors", spec, encoder)


RECIPE = """\
name: both
data: {use: scenes, length: 8, size: 32}
views: {image: {use: crop, size: 32}}
masks: {image: {use: multiblock, min_keep: 1, keep: 0.8}}
encoder: {use: vit, width: 24, depth: 1, heads: 3, patch: 8}
predictor:
  use: join
  parts: {a: {use: ijepa, width: 24, depth: 1, heads: 3}, b: {use: head, width: 6, hidden: 12}}
targets: {teacher: {use: ema}}
losses: {guess: {use: smooth_l1, predict: predictor.patch, target: teacher.patch}}
optim: {lr: 1.0e-3}
run: {steps: 2, batch: 4, device: cpu}
"""


def test_everything_wrong_with_its_parts_is_told_at_its_own_place(tmp_path):
    (tmp_path / "both.yaml").write_text(RECIPE)
    wrong = ["predictor.parts.a.widht=3", "predictor.parts.b.hidden=0", "predictor.parts.c={use: haed}"]
    wrong += ["predictor.parts.d=3", "predictor.parts.items={use: head}", "optim.lr=-1"]
    with pytest.raises(RecipeError) as told:
        load(str(tmp_path / "both.yaml"), wrong)
    assert {one.place: one.message.splitlines()[0].split("; did")[0] for one in told.value.problems} == {
        "predictor.parts.a.widht": "'ijepa' (plugin ijepa 0.1.0) has no such key",
        "predictor.parts.b.hidden": "found 0; expected a whole number, from 1 to 65536",
        "predictor.parts.c.use": "no predictor is called 'haed'",
        "predictor.parts.d": "found 3; a predictor is wanted: {use: NAME, ...}",
        "predictor.parts.items": "found 'items'; a plain name is wanted: letters, digits, _ and -, a letter or digit "
        "first, and no word of the engine's own",
        "optim.lr": "found -1; expected a number or a schedule, 0 or more",
    }


def test_defaults_and_plugins_of_its_parts_are_written_out_and_compared(tmp_path):
    (tmp_path / "both.yaml").write_text(RECIPE)
    recipe, installed = load(str(tmp_path / "both.yaml"))
    written = resolve(recipe, installed)
    tree = yaml.safe_load(written)
    assert {"heads", "ijepa", "join"} <= set(re.findall(r"# plugin (\S+) ", written))
    alone = {told.name for told in keys(installed.find("predictors", "head").make)}
    assert tree["predictor"]["parts"]["b"].keys() == {"use", *alone}
    assert not differences(tree, recipe, installed)
    tree["predictor"]["parts"]["a"]["init"] = 0.5  # as if a version before had another default
    assert differences(tree, recipe, installed) == ["predictor.parts.a.init: 0.5 there, 0.02 asked for"]
    del tree["predictor"]["parts"]["a"]["init"]  # as if the key came with a later version
    assert not differences(tree, recipe, installed)
