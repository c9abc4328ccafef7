"""A temperature, and a share of hidden patches, may be any schedule of a recipe: at each step it is that step's number."""

import pytest
import torch

from sslzoo import Grid, Pairing, Progress, RecipeError, Rng, Schedule, Signal, Student, catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.recipe.signature import keys_of

CHANGING = {"linear": [0.2, 0.6]}
AT = Progress(5, 10)  # halfway: 0.4


def part(family, name, *given, **keys):
    return catalogue().find(family, name).make(*given, **keys)


def temperatures():
    for family in ("losses", "targets"):
        for name, one in catalogue().parts[family].items():
            for key in keys_of(one.make).model_fields:
                if key.endswith("temperature"):
                    yield family, name, key


def test_there_are_temperatures():
    assert len(list(temperatures())) >= 8


@pytest.mark.parametrize(("family", "name", "key"), temperatures())
def test_every_temperature_is_a_schedule(family, name, key):
    keys = keys_of(catalogue().find(family, name).make)
    assert keys.model_fields[key].annotation is Schedule
    assert isinstance(keys.model_fields[key].default, Schedule)


def value(name, kind, **keys):
    torch.manual_seed(0)
    loss = part("losses", name, Signal(kind, 6), **keys)
    prediction, target = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    pairing = Pairing(torch.full((8,), 1 / 8), ~torch.eye(2, dtype=torch.bool), torch.zeros(8, dtype=torch.long), 1)
    if kind == "patch":
        prediction, target = prediction.flatten(0, 1), target.flatten(0, 1).softmax(-1)
    if name == "cross_entropy":
        target = target.argmax(-1)
    return loss(prediction, target, pairing, AT)[0].item()


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("distill", "image", {}),
        ("assign", "image", {"prototypes": 8}),
        ("nt_xent", "image", {}),
        ("cross_entropy", "patch", {}),
        ("soft_cross_entropy", "patch", {}),
    ],
)
def test_a_loss_is_that_of_the_step_s_temperature(name, kind, more):
    found = value(name, kind, temperature=Schedule.parse(CHANGING), **more)
    assert found == pytest.approx(value(name, kind, temperature=0.4, **more), rel=1e-6)
    assert found != pytest.approx(value(name, kind, temperature=0.2, **more), rel=1e-3)


def test_clusters_are_those_of_the_step_s_temperatures():
    torch.manual_seed(0)
    encoder = part("encoders", "vit", width=16, depth=1, heads=2, patch=4)
    student = Student(encoder, part("predictors", "linear", encoder, to="tokens"))
    changing, constant = (
        part("targets", "clusters", student, clusters=8, temperature=given) for given in (Schedule.parse(CHANGING), 0.4)
    )
    logits = torch.randn(4, 3, 8)
    assert torch.equal(changing.assignments(logits, AT), constant.assignments(logits, AT))
    assert not torch.equal(changing.assignments(logits, Progress(0, 10)), constant.assignments(logits, AT))


@pytest.mark.parametrize("exact", [False, True])
def test_blocks_hide_the_step_s_share(exact):
    grid: Grid = (10, 10)
    changing, constant = (
        part("masks", "blocks", hide=given, smallest=4, exact=exact) for given in (Schedule.parse(CHANGING), 0.4)
    )
    found, wanted = (one(3, grid, Rng(0, 5, range(3), AT)) for one in (changing, constant))
    assert torch.equal(found.target.index, wanted.target.index)
    first = part("masks", "blocks", hide=Schedule.parse(CHANGING), exact=True)(3, grid, Rng(0, 0, range(3)))
    assert first.target.index.shape == (3, 1, 20)


def test_recipes_name_them():
    sets = ("losses.image.temperature={cosine: [0.1, 0.2]}", "masks.one.hide={linear: [0.1, 0.5]}")
    assert not check(*load("tiny/ibot", sets)).unused
    wrong = ("losses.image.temperature={cosine: [0.1, 0]}", "masks.one.hide={linear: [0.1, 1]}")
    with pytest.raises(RecipeError) as caught:
        load("tiny/ibot", wrong)
    assert all(place in str(caught.value) for place in ("losses.image.temperature", "masks.one.hide"))
