"""Numbers without sense are refused by every key of every shipped part and section, where they stand."""

import copy
import math
from functools import reduce
from pathlib import Path

import pytest
import yaml
from recipe_text import GOOD

from sslzoo import Duration, Free, RecipeError, Schedule, catalogue
from sslzoo.recipe.recipe import SETTINGS, load
from sslzoo.recipe.sections import ENGINE_KEYS
from sslzoo.recipe.signature import keys_of, takes

INSTALLED = catalogue()
EVALUATE = {"train": {"use": "scenes"}, "test": {"use": "scenes"}, "view": {"use": "center"}}
EVALUATE["probes"] = {"p": {"use": "knn"}}
TREE = yaml.safe_load(GOOD) | {"evaluate": EVALUATE}
HOME = {  # where a part of each family stands in that recipe
    "datasets": "evaluate.train",
    "views": "views.image",
    "masks": "masks.image",
    "encoders": "encoder",
    "predictors": "predictor",
    "targets": "targets.teacher",
    "losses": "losses.guess",
    "optimizers": "optim",
    "probes": "evaluate.probes.p",
}
NONSENSE = {"negative": -1, "nan": math.nan, "inf": math.inf, "true": True, "absurd": 10**7}
NONSENSE |= {"beyond float32": 1e300, "nothing to float32": 1e-300}
# Where one of them is no nonsense after all:
SENSIBLE = {
    ("seed", "negative"): "any whole number is a seed",
    ("seed", "absurd"): "any whole number is a seed",
    ("length", "absurd"): "scenes are rendered when asked for: ten million burden nobody",
    ("steps", "absurd"): "a long run",
    ("images", "absurd"): "of a large data set, as many as it has",
    ("weight", "negative"): "a term may be turned around",
}


def models():
    """Every part and section: its place in the recipe, what stands there already, its keys."""
    for family, parts in INSTALLED.parts.items():
        for part in parts.values():
            yield pytest.param(HOME[family], {"use": part.name}, keys_of(part.make), id=f"{family}-{part.name}")
    for section, model in {**ENGINE_KEYS, **SETTINGS}.items():
        place = next((place for place in HOME.values() if place.split(".")[0] == section != "evaluate"), section)
        yield pytest.param(place, {}, model, id=f"section-{section}")


def is_number(key):
    kinds = (int, float, Schedule, Duration)
    return any(takes(key.annotation, kind) for kind in kinds) and not takes(key.annotation, bool)


def absurd(key):
    """Whether a count can be too large: not a fraction, nor a time."""
    return takes(key.annotation, int) and not any(takes(key.annotation, kind) for kind in (float, Duration))


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize(("place", "given", "model"), models())
def test_numbers_without_sense_are_refused_where_they_stand(place, given, model, kind, tmp_path, monkeypatch):
    wrong = [name for name, key in model.model_fields.items() if is_number(key) and (name, kind) not in SENSIBLE]
    wrong = [name for name in wrong if kind != "absurd" or absurd(model.model_fields[name])]
    if kind == "nothing to float32":
        wrong = [name for name in wrong if not takes(model.model_fields[name].annotation, Duration)]
    if not wrong:
        return
    tree = copy.deepcopy(TREE)
    *way, last = place.split(".")
    here = reduce(dict.__getitem__, way, tree)
    defaults = {name: model.model_fields[name].default for name in wrong}
    many = {name: len(default) if isinstance(default, tuple) else 0 for name, default in defaults.items()}
    here[last] |= given | {name: [NONSENSE[kind]] * n if n else NONSENSE[kind] for name, n in many.items()}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))  # every key on a line of its own
    monkeypatch.setattr("sslzoo.recipe.recipe.catalogue", lambda files: INSTALLED)  # hundreds of times the same
    with pytest.raises(RecipeError) as caught:
        load(str(path))
    lines = path.read_text().splitlines()
    refused = {p.place: (lines[p.line - 1].split(":")[0].strip(), p.message) for p in caught.value.problems}
    for name in wrong:
        line, message = refused.pop(f"{place}.{name}")
        assert line == name
        assert "found" in message
        assert "expected" in message or "wanted" in message or "a duration is" in message
    assert all("no such key" in message or "needs this key" in message for _, message in refused.values())


def test_what_happens_every_so_often_happens_after_some_time(tmp_path):
    wanted = {"run.save_every": "0", "run.milestones": "0 epochs", "run.monitor_every": "0", "evaluate.every": "0"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(TREE))
    with pytest.raises(RecipeError) as caught:
        load(str(tmp_path / "r.yaml"), [f"{place}={given}" for place, given in wanted.items()])
    assert {one.place for one in caught.value.problems} == set(wanted)
    assert all("expected a duration" in one.message and "above 0" in one.message for one in caught.value.problems)


def test_where_data_lie_may_change_when_a_run_is_resumed():
    fixed = [
        f"{part.name}.{name}"
        for part in INSTALLED.parts["datasets"].values()
        for name, key in keys_of(part.make).model_fields.items()
        if takes(key.annotation, Path) and not any(isinstance(mark, Free) for mark in key.metadata)
    ]
    assert not fixed
