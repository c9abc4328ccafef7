"""What a recipe says, and how it is told that it is wrong."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_text import GOOD

from sslzoo import PluginError, RecipeError, Schedule, UserError, catalogue
from sslzoo.recipe.build import build, build_method
from sslzoo.recipe.fit import _moving, check
from sslzoo.recipe.recipe import change, load, resolve, schedules
from sslzoo.recipe.resuming import differences
from sslzoo.recipe.schedule import Duration
from sslzoo.recipe.yamltext import value, written
from sslzoo.run import parallel
from sslzoo.run.data import Order
from sslzoo.train import length

FIRST_TWO_PASSES = """\
{path}: 3 problems

line 6  masks.image.target_scales
    'multiblock' (plugin ijepa 0.1.0) has no such key; did you mean target_scale?
    it takes: targets, target_scale, target_aspect, context_scale, context_aspect, min_keep, overlap, trim, keep, multiple

line 8  predictor.use
    no predictor is called 'i-jepa'; did you mean ijepa (plugin ijepa)?
    installed: {predictors}

line 12  losses.guess.target
    reads 'teachr.patch', but no target generator is called 'teachr'; did you mean teacher?
    there is: teacher"""


@pytest.fixture
def recipe(tmp_path):
    """Writes the good recipe, changed: pairs of old and new text."""

    def write(*changes):
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return str(path)

    return write


def problems(path, sets=(), plugins=()):
    """Places, lines and messages of everything wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        check(*load(path, sets, plugins))
    return {problem.place: (problem.line, problem.message) for problem in caught.value.problems}


def test_text_and_parts_are_told_at_once_with_lines_and_nearest_names(recipe):
    path = recipe(
        ("min_keep: 1", "target_scales: [0.1, 0.2]"), ("use: ijepa", "use: i-jepa"), ("teacher.patch", "teachr.patch")
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value) == FIRST_TWO_PASSES.format(
        path=path, predictors=", ".join(sorted(catalogue().parts["predictors"]))
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "place", "line", "says"),
    [
        (("name: good", "name: good\nname: again"), "name", 2, "stands twice; first on line 1"),
        (("name: good", "name: good\n<<: {run: {}}"), "<<", 2, "keys are not merged here"),
        (("optim:", "optimiser:"), "optimiser", 13, "did you mean optim?"),
        (("optim:", "optimiser:"), "optim", None, "this section is missing"),
        (("steps: 10", "steps: ten"), "run.steps", 14, "found 'ten'; expected a whole number"),
        (("steps: 10", "steps: 10, epochs: 3"), "run", 14, "give either steps or epochs"),
        (("batch: 4", "batch: 0"), "run.batch", 14, "found 0"),
        (("lr: 1e-3", "lr: fast"), "optim.lr", 13, "'fast'"),
        (("size: tiny", "size: tinny"), "encoder.size", 7, "found 'tinny'; expected "),
        (("use: ema", "momentum: 0.9"), "targets.teacher", 10, "a target generator is wanted: {use: NAME, ...}"),
        (("use: ema", "use: ema, momentum: {linnear: [0.9, 1]}"), "targets.teacher.momentum", 10, "linnear"),
        (("target: teacher.patch", "target: teacher.pach"), "losses.guess.target", 12, "did you mean teacher.patch?"),
        (("  image: {use: multi", "  imag: {use: multi"), "masks.imag", 6, "no group of views is called 'imag'"),
        (("size: 32}\nmasks", "size: 30}\nmasks"), "views.image", 4, "30"),
        (("min_keep: 1", "min_keep: 500"), "masks.image", 6, "500"),
        (("size: 32}\nmasks", "size: 32, role: context}\nmasks"), "views.image.role", 4, "has the role both"),
        (("size: 32}\nmasks", "size: 32, flip: $HOME}\nmasks"), "views.image.flip", 4, "found '$HOME'"),
        (
            ("use: scenes,", "use: torchvision, name: $DATA, root: ., split: train} #"),
            "data.name",
            2,
            "stand only in paths",
        ),
    ],
)
def test_each_mistake_is_told_where_it_stands(recipe, change, place, line, says):
    found = problems(recipe(change))
    assert place in found
    assert found[place][0] == line
    assert says in found[place][1]


def test_text_that_is_not_yaml_or_no_mapping_is_told_with_its_line(recipe, tmp_path):
    assert problems(recipe(("{use: ema}", "{use: ema")))["(text)"][0] in (10, 11, 12)
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "a recipe is a mapping of sections" in problems(str(tmp_path / "list.yaml"))["(text)"][1]


def test_environment_variables_stand_only_in_paths_and_must_be_set(recipe, monkeypatch, tmp_path):
    path = recipe(("use: scenes, length: 32, size: 32", "use: folder, root: '${IMAGES_HERE}/train'"))
    monkeypatch.delenv("IMAGES_HERE", raising=False)
    check(*load(path))  # validation opens no data
    with pytest.raises(RecipeError, match="the environment variable IMAGES_HERE is not set"):
        build(*load(path))
    monkeypatch.setenv("IMAGES_HERE", str(tmp_path))
    with pytest.raises(RecipeError, match=f"{tmp_path}/train is not a folder"):
        build(*load(path))


def test_sets_change_the_recipe_before_it_is_checked(recipe):
    sets = ["masks.image={use: random, hide: 0.6}", "run.steps=60", "run.save_every=7", "optim.weight_decay=1e-2"]
    read, _ = load(recipe(), [*sets, "run.monitor_every=2 epochs", "optim.lr={linear: [1e-3, 0]}"])
    assert read.masks["image"] == {"use": "random", "hide": 0.6}
    assert (read.run.steps, read.run.save_every) == (60, Duration(7, "steps"))
    assert read.run.monitor_every == Duration(2, "epochs")
    assert isinstance(read.optim_keys.weight_decay, Schedule)
    line, message = problems(recipe(), ["run.stepps=3"])["run.stepps"]
    assert line == 0  # no line of the file says so
    assert "did you mean steps?" in message


def test_what_set_gave_is_told_as_such_and_the_rest_with_its_line(recipe):
    with pytest.raises(RecipeError) as told:
        load(recipe(("steps: 10", "steps: none")), ["masks.image={use: random, hid: 0.6}", "optim.lr=fast"])
    said = str(told.value)
    assert "--set  masks.image.hid\n" in said
    assert "--set  optim.lr\n    found 'fast'" in said
    assert "line 14  run.steps\n" in said


def test_epochs_replace_steps_when_set(recipe):
    read, _ = load(recipe(), ["run.epochs=3"])
    assert (read.run.steps, read.run.epochs) == (None, 3)


def test_a_pattern_that_holds_dots_stands_in_quotes(recipe):
    sets = ["""optim.groups."*.bias".weight_decay=0""", "optim.groups.'encoder.*.weight'.lr={linear: [1, 0.5]}"]
    groups = load(recipe(), sets)[0].optim["groups"]
    assert groups["*.bias"]["weight_decay"] == 0
    assert groups["encoder.*.weight"] == {"lr": {"linear": [1, 0.5]}}
    told = {
        "optim.groups.*.bias.weight_decay=0": 'optim.groups."*.bias".weight_decay',
        "optim.groups.*.bias={weight_decay: 0}": 'optim.groups."*.bias"',
        "optim.groups.*.bias.lr.warmup.steps=5": 'optim.groups."*.bias".lr.warmup.steps',
    }
    for wrong, right in told.items():
        assert (
            problems(recipe(), [wrong])[f"--set {wrong}"][1] == f"a pattern that holds dots stands in quotes: {right}"
        )


@pytest.mark.parametrize("wrong", ["run.steps", "=3", "name.first=3", "run.steps=[1", 'optim."lr=3', "a..b=3"])
def test_a_set_that_cannot_be_read_is_an_error(recipe, wrong):
    assert f"--set {wrong}" in problems(recipe(), [wrong])


def test_a_resolved_recipe_says_everything_and_resolves_to_itself(recipe, tmp_path):
    read, installed = load(recipe())
    text = resolve(read, installed)
    tree = yaml.safe_load(text)
    assert tree["masks"]["image"]["target_scale"] == [0.15, 0.2]
    assert tree["views"]["image"]["role"] == "both"
    assert "# plugin ijepa 0.1.0" in text
    assert "# torch " in text
    (tmp_path / "again.yaml").write_text(text)
    again = load(str(tmp_path / "again.yaml"))
    assert yaml.safe_load(resolve(*again)) == tree


def test_a_recipe_is_found_by_file_name_or_run_folder(recipe, tmp_path):
    assert load("tiny/ijepa")[0].name == load("tiny/ijepa", ["run.steps=5"])[0].name
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(GOOD)
    assert load(str(tmp_path / "run"))[0].name == "good"
    with pytest.raises(UserError, match="did you mean tiny/ijepa"):
        load("tiny/ijpea")


MASK = """
import torch
from sslzoo import Mask, Patches, hookimpl

class Corner:
    '''Sees the first patch and guesses the last.

    Args:
        where: which patch.
    '''
    ragged = False
    def __init__(self, *, where: int = 0) -> None:
        self.where = where
    def __call__(self, batch, grid, rng):
        one = torch.full((batch, 1), self.where)
        return Mask(Patches(one), Patches(one[:, None] + grid[0] * grid[1] - 1))

@hookimpl
def sslzoo_masks():
    return {"NAME": Corner}
"""


def test_a_plugin_file_is_found_relative_to_its_recipe_or_given_apart(recipe, tmp_path, monkeypatch):
    (tmp_path / "my_mask.py").write_text(MASK.replace("NAME", "corner"))
    monkeypatch.chdir("/")
    used = ("use: multiblock, min_keep: 1", "use: corner")
    with_file = load(recipe(used, ("name: good", "name: good\nplugins: [./my_mask.py]")))
    assert check(*with_file)
    assert str(tmp_path / "my_mask.py") in resolve(*with_file)
    assert check(*load(recipe(used), plugins=[tmp_path / "my_mask.py"]))
    assert "no mask sampler is called 'corner'" in problems(recipe(used))["masks.image.use"][1]


def test_two_plugins_with_one_name_are_an_error_naming_both(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(MASK.replace("NAME", "multiblock"))
    with pytest.raises(PluginError) as caught:
        load(recipe(), plugins=[tmp_path / "mine.py"])
    assert "multiblock" in str(caught.value)
    assert "ijepa" in str(caught.value)
    assert "mine.py" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_like_it", "cannot be imported: ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("import os; os._exit(0)", "cannot be imported: SystemExit: os._exit(0), which ends the whole run"),
        (MASK.replace("sslzoo_masks()", "sslzoo_maks()"), "did you mean sslzoo_masks?"),
        (MASK.replace("*, where: int = 0", "**keys").replace("= where", "= 0"), "swallow misspelt keys"),
        (
            MASK.replace("*, where: int = 0", "where: int = 0"),
            "where has a default, so it is meant as a key; keys stand behind",
        ),
        (
            MASK.replace("where: int", "where: 'torch.Foo'"),
            "annotation of its constructor cannot be read: AttributeError",
        ),
        (MASK.replace("where: int", "copy: int").replace("= where", "= copy"), "no key can be called copy"),
        (MASK.replace("where: int", "_where: int").replace("= where", "= _where"), "no key can be called _where"),
        (MASK.replace('return {"NAME": Corner}', "Corner"), "sslzoo_masks() returned nothing; a mapping of classes"),
        (MASK.replace('{"NAME": Corner}', "[Corner]"), "sslzoo_masks() returned [<class "),
        (MASK.replace("@hookimpl", ""), "offers nothing: a function marked @hookimpl is wanted"),
        (MASK.replace('"NAME": Corner', '"NAME": lambda: Corner()'), "for 'corner'; a class is wanted"),
    ],
)
def test_a_broken_plugin_is_an_error_with_its_name(recipe, tmp_path, text, says):
    (tmp_path / "mine.py").write_text(text.replace("NAME", "corner"))
    with pytest.raises((PluginError, RecipeError), match="mine.py") as caught:
        load(recipe(("use: multiblock, min_keep: 1", "use: corner")), plugins=[tmp_path / "mine.py"])
    assert says in str(caught.value)


def test_a_part_that_lacks_what_its_contract_asks_for_is_told_before_it_is_used(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(MASK.replace("NAME", "corner").replace("ragged = False", "raged = False"))
    read = load(recipe(("use: multiblock, min_keep: 1", "use: corner")), plugins=[tmp_path / "mine.py"])
    with pytest.raises(RecipeError, match=r"masks\.image(?s:.*)it has no `ragged: bool`; `sslzoo verify masks corner`"):
        check(*read)


def test_a_plugin_file_may_be_named_twice(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(MASK.replace("NAME", "corner"))
    read = recipe(("use: multiblock, min_keep: 1", "use: corner"))
    load(read, plugins=[tmp_path / "mine.py", tmp_path / "." / "mine.py"])


def test_a_key_that_the_engine_has_and_an_annotation_that_is_not_there_are_told(recipe, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MASK.replace("NAME", "corner").replace("where: int", "use: int").replace("= where", "= use"))
    with pytest.raises(RecipeError, match="has a key 'use', which is the engine's own here"):
        load(recipe(("use: multiblock, min_keep: 1", "use: corner")), plugins=[mine])
    mine.write_text(MASK.replace("NAME", "corner").replace("where: int", "where: 'Nowhere'"))
    with pytest.raises(PluginError, match="annotated with Nowhere, which is not there when it runs"):
        load(recipe(("use: multiblock, min_keep: 1", "use: corner")), plugins=[mine])


def test_the_environment_restricts_and_traces_plugins(recipe, monkeypatch, capfd):
    monkeypatch.setenv("SSLZOO_PLUGINS", "vit,datasets,crops")
    assert "no mask sampler is called 'multiblock'" in problems(recipe())["masks.image.use"][1]
    monkeypatch.setenv("SSLZOO_PLUGINS", "vit,datsets")
    with pytest.raises(PluginError, match="did you mean datasets"):
        load(recipe())
    monkeypatch.delenv("SSLZOO_PLUGINS")
    monkeypatch.setenv("SSLZOO_TRACE", "1")
    load(recipe())
    assert "sslzoo_masks" in capfd.readouterr().err


def test_every_part_starts_from_a_seed_of_its_own(recipe):
    """Swapping the predictor leaves the start of the encoder."""
    one, _ = build(*load(recipe()))
    other, _ = build(*load(recipe(("use: ijepa, width: 32", "use: cross, width: 64"))))
    for a, b in zip(one.student.encoder.parameters(), other.student.encoder.parameters(), strict=True):
        assert a.equal(b)
    third, _ = build(*load(recipe(), ["run.seed=1"]))
    first, other = (parts.student.encoder.blocks[0].mlp.fc1.weight for parts in (one, third))
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        (("lr: 1e-3", "lr: -1e-3"), "optim.lr", "found -0.001; expected a number or a schedule, 0 or more"),
        (("lr: 1e-3", "lr: true"), "optim.lr", "found true"),
        (("lr: 1e-3", "lr: .nan"), "optim.lr", "found nan"),
        (("lr: 1e-3", "lr: 1e-3, betas: [0.9, 1.0]"), "optim.betas", "each a number, from 0 to below 1"),
        (("lr: 1e-3", "lr: 1e-3, clip: 0"), "optim.clip", "above 0"),
        (("lr: 1e-3", "lr: 1e-3, clip_each: true"), "optim", "clips nothing without clip"),
        (("lr: 1e-3", "lr: 1e-3, clipp: 1"), "optim.clipp", "did you mean clip?"),
        (
            ("lr: 1e-3", 'lr: 1e-3, groups: {"*.bias": {weigth_decay: 0}}'),
            "optim.groups.*.bias.weigth_decay",
            "did you mean weight_decay?\nit takes: lr, weight_decay",
        ),
        (("lr: 1e-3", 'lr: 1e-3, groups: {"*.bais": {lr: 0}}'), "optim.groups.*.bais", "matches no parameter"),
        (("lr: 1e-3", "lr: {cosine: [1, 0], countng: one}"), "optim.lr", "did you mean counting?"),
        (("lr: 1e-3", "lr: {warmup: {epoch: 3, from: 0, to: 1}}"), "optim.lr", "did you mean epochs?"),
        (("lr: 1e-3", "lr: {warmup: {steps: 11, from: 0, to: 1}}"), "optim.lr", "longer than the run of 10 steps"),
        (("steps: 10", "steps: true"), "run.steps", "found true; expected a whole number or null, from 1 to"),
        (("workers: 0", "workers: 1000000"), "run.workers", "from 0 to 512"),
        (("workers: 0", "workers: 0, save_every: -1 epochs"), "run.save_every", "a duration is a number of steps"),
        (("workers: 0", "workers: 0, held: 3"), "run.held", "it is called monitor now"),
        (("steps: 10", "steps: " + "1" * 5000), "run.steps", "cannot be read as a value"),
        (("predict: pred", "predct: pred"), "losses.guess.predct", "did you mean predict?"),
        (("target: teacher.patch", "target: predictor.patch"), "losses.guess.target", "is what is predicted"),
        (("use: multiblock", "use: [a]"), "masks.image", "a mask sampler is wanted: {use: NAME, ...}"),
        (("size: 32}\nmasks", "size: 32, count: 0}\nmasks"), "views.image.count", "from 1 to 1024"),
        (("{use: ema}", "{use: ema, momentum: 1.5}"), "targets.teacher.momentum", "from 0 to 1"),
        (("name: good", "name: ../x"), "name", "a plain name is wanted"),
        (("name: good", "name: " + "x" * 300), "name", "a plain name is wanted"),
        (("name: good", 'name: "a\\0b"'), "name", "holds no NUL"),
        (("teacher:", "a.b:"), "targets.a.b", "a plain name is wanted"),
        (("guess:", "training:"), "losses.training", "a plain name is wanted"),
        (("teacher:", "training:"), "targets.training", "no word of the engine's own"),
        (("optim: {lr: 1e-3}", "optim:"), "optim", "a mapping is wanted"),
        (("optim: {lr: 1e-3}", "optim: {}"), "optim", "this section is empty"),
        (("name: good", "name: good\nevaluate: 3"), "evaluate", "a mapping is wanted"),
        (("name: good", "name: !mine x"), "name", "the tag !mine is not read here"),
        (("name: good", "name: good\nplugins: &a [*a]"), "plugins" + ".0" * 32, "nested more than 32 deep"),
        (("name: good", "name: good\nplugins: " + "[" * 3000), "(text)", "nested more than 32 deep"),
        (("use: multiblock, min_keep: 1", "use: multiblock-legacy"), "masks.image", "search for ever"),
    ],
)
def test_what_has_no_sense_is_refused_where_it_stands(recipe, change, place, says):
    found = problems(recipe(change))
    assert place in found
    assert says in found[place][1]


def test_bytes_that_are_no_utf8_and_alias_bombs_are_told(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: good\nviews: \xff\n")
    line, message = problems(str(path))["(text)"]
    assert line == 2
    assert "0xff is no UTF-8" in message
    bomb = "".join(f"b{n + 1}: &b{n + 1} [{', '.join([f'*b{n}'] * 9)}]\n" for n in range(9))
    path.write_text("b0: &b0 [x]\n" + bomb)
    assert any("more than 20,000 values" in message for _, message in problems(str(path)).values())


def test_dates_and_words_are_text_and_a_long_message_is_cut(recipe):
    assert load(recipe(("name: good", "name: 2020-01-01")))[0].name == "2020-01-01"
    assert len(problems(recipe(("size: tiny", f"size: {'x' * 9000}")))["encoder.size"][1]) < 400


@pytest.mark.parametrize("sets", [["run.steps=100", "run.epochs=null"], ["run.epochs=null", "run.steps=100"]])
def test_steps_and_no_epochs_mean_the_same_in_either_order(recipe, sets):
    read, _ = load(recipe(("steps: 10", "epochs: 3")), sets)
    assert (read.run.steps, read.run.epochs) == (100, None)


@pytest.mark.parametrize("name", ["1e3", "08", "12e4567", "5.e3", "on", "2020-01-01", "1_000"])
def test_a_name_that_looks_like_a_number_is_read_again(recipe, name, tmp_path):
    read, installed = load(recipe(("name: good", f"name: '{name}'")))
    (tmp_path / "again.yaml").write_text(resolve(read, installed))
    assert load(str(tmp_path / "again.yaml"))[0].name == name == yaml.safe_load(resolve(read, installed))["name"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ODD = st.from_regex(r"[-+]?[0-9_.:]{0,4}([eE][-+]?[0-9]{1,3})?", fullmatch=True)
VALUES = st.recursive(
    TEXTS | ODD | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | ODD, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES)
def test_what_is_written_reads_as_what_it_was(tree):
    again = value(written(tree))
    assert again == tree
    assert repr(again) == repr(tree)  # 1 is no true, and keys keep their order


def test_a_batch_of_one_image_is_rehearsed_with_one(recipe):
    """Batch norm takes no single row: `check` found nothing, with two images, and training died."""
    head = (
        ("predictor: {use: ijepa, width: 32, depth: 1, heads: 2}", "predictor: {use: head, norm: batch}"),
        ("masks:\n  image: {use: multiblock, min_keep: 1}\n", ""),
        ("{use: ema}", "{use: ema, project: true}"),
        ("predictor.patch, target: teacher.patch", "predictor.image, target: teacher.image"),
        ("  image: {use: crop, size: 32}\n", "  image: {use: crop, size: 32}\n  other: {use: crop, size: 32}\n"),
    )
    check(*load(recipe(*head)))
    _, message = problems(recipe(*head), ["run.batch=1"])["predictor"]
    assert "failed in a rehearsed step: ValueError: Expected more than 1 value per channel" in message
    assert check(*load(recipe(), ["run.batch=1"])).images == 1
    check(*load(recipe(*head), ["run.micro=4"]))  # splits nothing: batch norm is content


def test_a_resumed_run_may_lack_keys_that_came_later_and_change_free_ones(recipe):
    read, installed = load(recipe())
    had = yaml.safe_load(resolve(read, installed))
    assert differences(had, read, installed) == []
    del had["masks"]["image"]["keep"], had["optim"]["use"], had["views"]["image"]["role"]  # as of an earlier version
    had["run"] |= {"workers": 3, "micro": 2, "monitor": 7}
    assert differences(had, read, installed) == []
    had["encoder"]["size"] = "small"
    had["losses"]["other"] = {"use": "mse"}
    assert differences(had, read, installed) == [
        "encoder.size: 'small' there, 'tiny' asked for",
        "losses.other.use: 'mse' there, (absent) asked for",
    ]
    changed = load(recipe(), ["optim.clip=1.0"])
    assert differences(yaml.safe_load(resolve(read, installed)), *changed) == ["optim.clip: null there, 1.0 asked for"]


def test_a_short_run_of_a_recipe_keeps_its_warmups_within(recipe):
    read, installed = load(recipe(("lr: 1e-3", "lr: {warmup: {steps: 9, from: 0, to: 1}}")))
    with pytest.raises(RecipeError, match="longer than the run"):
        change(read, installed, ["run.steps=5"])
    assert change(read, installed, ["run.steps=5", "optim.lr.warmup.steps=5"]).run.steps == 5


def test_epochs_without_a_step_and_long_warmups_are_told_with_the_data(recipe):
    read, installed = load(recipe(("steps: 10", "epochs: 0.1"), ("batch: 4", "batch: 8")))
    with pytest.raises(RecipeError, match="run.epochs\n    found 0.1; epochs of 4 steps"):
        length(read, installed, Order(32, 8, 0), print)
    told = []
    read, installed = load(recipe(("lr: 1e-3", "lr: {warmup: {epochs: 2, from: 0, to: 1}}")))
    assert length(read, installed, Order(32, 4, 0), told.append) == 10
    assert "optim.lr: the run of 10 steps ends before the end of the warm-up of 2 epochs, at step 16" in told[0]
    pieces = "{piecewise: {0: 1e-3, 400 steps: {warmup: {steps: 9, from: 0, to: 1}}}}"
    assert length(*load(recipe(("lr: 1e-3", f"lr: {pieces}"))), Order(32, 4, 0), told.append) == 10
    assert told[1:] == [
        f"warning: optim.lr: the run of 10 steps ends before {what}"
        for what in (
            "the piece from 400 steps on, at step 400",
            "the end of the warm-up of 9 steps of the piece from 400 steps on, at step 409",
        )
    ]


def test_a_mapping_of_parts_is_no_schedule():
    places = [place for place, _ in schedules(*load("combos/ijepa_dino"))]
    assert "optim.lr" in places
    assert "predictor.parts" not in places


def test_a_range_is_no_schedule():
    found = dict(schedules(*load("tiny/ibot", ("masks.two.hide={linear: [0.1, 0.5]}",))))
    assert "masks.one.hide" not in found  # [0.1, 0.5], drawn for each image
    assert found["masks.two.hide"] == {"linear": [0.1, 0.5]}


HIDE = ("use: multiblock, min_keep: 1", "use: random, hide: {}")


@pytest.mark.parametrize(
    ("hide", "run"),
    [
        ("{linear: [0.5, 0.98]}", "steps: 200"),  # bad from 0.9688 on, at the last steps alone
        ("{linear: [0.5, 0.9999], over: 40 steps}", "steps: 60"),
        ("{piecewise: {0: 0.5, 40 epochs: 0.99}}", "steps: 100"),
        ("{piecewise: {0: {linear: [0.5, 0.99]}, 50 steps: 0.5}}", "steps: 1000"),
        ("{warmup: {epochs: 100, from: 0.5, to: 0.999, then: {cosine: 0.5}}}", "epochs: 800"),
    ],
)
def test_masks_that_cannot_be_drawn_late_in_a_run_are_told_before_it(recipe, hide, run):
    used = recipe((HIDE[0], HIDE[1].format(hide)), ("steps: 10", run))
    _, message = problems(used)["masks.image"]
    assert "hide" in message


@pytest.mark.parametrize("hide", ["{linear: [0.5, 0.9999], over: 40 steps}", "{piecewise: {0: 0.5, 40 steps: 0.99}}"])
def test_masks_that_a_short_run_does_not_reach_are_not_drawn(recipe, hide):
    """`check` ended in a traceback: it counted the arithmetic of a run of 64 steps."""
    assert check(*load(recipe((HIDE[0], HIDE[1].format(hide))))).flops > 0


@pytest.mark.parametrize(
    ("method", "sets", "place", "says"),
    [
        ("tiny/byol", "views={one: {use: crop, size: 64}}", "losses.agree", "1 view for the student and 1 for the"),
        ("tiny/lejepa", "views.global.role=context", "losses.agree", "no view is one that a teacher would read"),
    ],
)
def test_views_that_meet_no_other_are_told_before_a_loss_is_nan(method, sets, place, says):
    assert says in problems(method, [sets])[place][1]


def test_layer_decay_wants_blocks(recipe):
    read, installed = load(recipe(("lr: 1e-3", "lr: 1e-3, layer_decay: 0.75")))
    method = build_method(read, installed)
    assert list(_moving(read, installed, method)) == []
    method.student.encoder.blocks = torch.nn.ModuleList()
    (problem,) = _moving(read, installed, method)
    assert problem.place == "optim.layer_decay"
    assert "no blocks with parameters" in problem.message


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("one * 16", "a context that names 16; a grid of 4 x 4 has patches 0 to 15"),
        ("one - 2", "a context that names -1"),
        ("one * 1.0", "a context of float32, where int64 is wanted"),
        ("one[:, :0]", "a context of no patches"),
        ("one.numpy()", "a Mask that holds a ndarray; the contract says tensors"),
    ],
)
def test_a_mask_out_of_range_is_the_mask_samplers_fault(recipe, tmp_path, index, says):
    text = MASK.replace("NAME", "corner").replace("self.where)", "1)").replace("Patches(one)", f"Patches({index})")
    (tmp_path / "mine.py").write_text(text)
    used = recipe(("use: multiblock, min_keep: 1", "use: corner"))
    _, message = problems(used, plugins=[tmp_path / "mine.py"])["masks.image"]
    assert message.startswith("the mask sampler Corner returned")
    assert says in message


def test_blocks_that_several_lists_hold_are_split_over_processes_once():
    with torch.device("meta"):
        method = build_method(*load("combos/ijepa_dino"))
    blocks = list(parallel.transformer_blocks(method))
    assert len(blocks) == len(set(blocks)) >= 10
