"""What is read from an encoder beside its own pooling, and features that are kept."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sslzoo import RecipeError, RunError, catalogue
from sslzoo.evaluate import figures
from sslzoo.evaluate.bench import bench
from sslzoo.evaluate.features import extract, pooled
from sslzoo.evaluate.figures import probe
from sslzoo.evaluate.kept import Kept
from sslzoo.evaluate.rehearse import rehearse
from sslzoo.recipe.build import build_method
from sslzoo.recipe.recipe import load
from sslzoo.run.data import ready

CPU = torch.device("cpu")
SETS = ("evaluate.train.length=24", "evaluate.test.length=16", "encoder.class_token=true", "encoder.registers=1")
HEADS = "evaluate.probes={heads: {use: heads, features: [mean, mean4, class, class4], epochs: 1}}"


@pytest.fixture(scope="module")
def opened():
    recipe, installed = load("tiny/ijepa", (*SETS, HEADS))
    return recipe, bench(recipe, installed), build_method(recipe, installed).student.encoder.eval()


def test_pools_are_those_of_blocks_run_one_by_one(opened):
    _, found, encoder = opened
    pixels = ready(found.view, torch.stack([found.view(found.test.image(i))[0] for i in range(3)]))
    outs = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: outs.append(out)) for block in encoder.blocks]
    with torch.no_grad():
        tokens = encoder(pixels, None, 4)
        normed = [encoder.norm(out) for out in outs]
    for hook in hooks:
        hook.remove()
    assert torch.allclose(pooled(encoder, tokens, "mean"), normed[-1][:, 2:].mean(1), atol=1e-6)
    assert torch.allclose(pooled(encoder, tokens, "mean4"), torch.cat([x[:, 2:].mean(1) for x in normed], 1), atol=1e-6)
    assert torch.allclose(pooled(encoder, tokens, "class"), normed[-1][:, 0], atol=1e-6)
    assert torch.allclose(pooled(encoder, tokens, "class4"), torch.cat([x[:, 0] for x in normed], 1), atol=1e-6)


def test_all_probes_share_one_extraction_and_the_next_evaluation_reads_it(opened, tmp_path, monkeypatch):
    _, found, encoder = opened
    kept, calls = Kept(tmp_path, {"view": "center"}), []
    monkeypatch.setattr("sslzoo.evaluate.bench.extract", lambda *a, **k: calls.append(1) or extract(*a, **k))
    first = found.probe(encoder, CPU, kept)[0]
    assert len(calls) == 2  # training and test images
    assert found.probe(encoder, CPU, kept)[0] == first
    assert len(calls) == 2
    found.probe(encoder, CPU, Kept(tmp_path, {"view": "another"}))
    assert len(calls) == 4
    with torch.no_grad():
        encoder.norm.bias += 1e-3  # another network
    found.probe(encoder, CPU, kept)
    assert len(calls) == 6
    (tmp_path / f"{kept.key(encoder, ['train', 0, found_pools(found), 'cpu'])}.safetensors").write_bytes(b"torn")
    found.probe(encoder, CPU, kept)
    assert len(calls) == 7


def test_other_images_of_the_same_names_are_extracted_anew(opened, tmp_path, monkeypatch):
    recipe, found, _ = opened
    installed, calls = catalogue(), []
    monkeypatch.setattr("sslzoo.evaluate.bench.extract", lambda *a, **k: calls.append(1) or extract(*a, **k))
    given = (recipe, installed, {"start": build_method(recipe, installed)}, 0, "student", tmp_path, CPU, print)
    probe(found, *given)
    probe(replace(found), *given)
    assert len(calls) == 2  # training and test images
    monkeypatch.setattr(type(found.test), "image", lambda _self, i: Image.new("RGB", (64, 64), (i, 0, 0)))
    probe(replace(found), *given)  # opened anew
    assert len(calls) == 4


def test_nothing_is_extracted_for_figures_that_cannot_be_written(opened, tmp_path, monkeypatch):
    recipe, found, _ = opened
    (tmp_path / "eval").write_text("mine")
    monkeypatch.setattr("sslzoo.evaluate.bench.extract", lambda *_, **__: pytest.fail("extracted in vain"))
    with pytest.raises(RunError, match="eval could not be written: File exists"):
        probe(found, recipe, catalogue(), {"start": None}, 0, "student", tmp_path, CPU, print)


def test_features_put_in_the_place_of_others_are_made_anew(opened, tmp_path, monkeypatch):
    _, found, encoder = opened
    kept, calls = Kept(tmp_path, {}), []
    monkeypatch.setattr("sslzoo.evaluate.bench.extract", lambda *a, **k: calls.append(1) or extract(*a, **k))
    first = found.probe(encoder, CPU, kept)[0]
    train, test = sorted(tmp_path.iterdir())
    for damage in ("swapped", "foreign", "changed"):
        one, two = train.read_bytes(), test.read_bytes()
        if damage == "swapped":
            train.write_bytes(two)
            test.write_bytes(one)
        elif damage == "foreign":
            save_file({"y": torch.zeros(3)}, train)
            save_file({"x": torch.zeros(3)}, test, {"tasks": "[1]", "features": test.stem, "crc32": "7"})
        else:
            train.write_bytes(one[:-1] + bytes([one[-1] ^ 1]))
            test.write_bytes(two[:-1] + bytes([two[-1] ^ 1]))
        calls.clear()
        assert found.probe(encoder, CPU, kept)[0] == first, damage
        assert len(calls) == 2, damage
        assert sorted(tmp_path.iterdir()) == [train, test]


def found_pools(found):
    return tuple(sorted({name for probe in found.probes.values() for name in probe.pools}))


def test_a_folder_of_features_keeps_to_its_bytes(opened, tmp_path):
    _, found, encoder = opened
    features = extract(encoder, found.test, found.view, device=CPU)
    size = features.x.nbytes
    kept = Kept(tmp_path, {}, most=5 * size)
    for place in range(8):
        kept.get(encoder, [place], CPU, lambda: features)
    left = list(tmp_path.glob("*.safetensors"))
    assert 0 < len(left) < 5
    assert len(list(tmp_path.iterdir())) == len(left)
    again = kept.get(encoder, [7], CPU, lambda: pytest.fail("the newest is there"))
    assert torch.equal(again.x, features.x)
    assert all(torch.equal(again.labels[task], features.labels[task]) for task in features.tasks)
    Kept(tmp_path / "none", {}, most=size // 2).get(encoder, [], CPU, lambda: features)
    assert not (tmp_path / "none").exists()


def test_what_an_encoder_lacks_is_told_before_a_run():
    probes = "evaluate.probes={heads: {use: heads, features: [class]}, deep: {use: heads, features: [mean4]}}"
    recipe, installed = load("tiny/ijepa", ("encoder.depth=2", "targets.teacher.layers=0", probes))
    with pytest.raises(RecipeError, match="need a class token") as error:
        rehearse(recipe, installed, data=False)
    assert "the encoder has 2 blocks" in str(error.value)


def test_test_images_among_the_training_images_are_counted_also_from_kept_features(tmp_path):
    sets = ("evaluate.train={use: scenes, split: test, length: 24, size: 64}", "evaluate.test.length=16")
    recipe, installed = load("tiny/ijepa", (*sets, "evaluate.probes={knn: {use: knn, k: [1]}}"))
    found, method = bench(recipe, installed), build_method(recipe, installed)
    said = []
    words = ({"trained": method}, 0, "student", tmp_path / "run", CPU, said.append, tmp_path / "kept")
    for _ in range(2):
        path = figures.probe(found, recipe, installed, *words)[1]
        content = json.loads(path.read_text())
        assert (content["overlap"], content["summary"]) == (16, "mean of patches")
        assert (
            "warning: 16 of 16 test images seem to be training images of the probes, too: their views are alike" in said
        )
        said.clear()
    classed, installed = load("tiny/ijepa", ("evaluate.test.length=16", "encoder.class_token=true", *SETS))
    words = ({"trained": build_method(classed, installed)}, 0, "student", tmp_path / "run", CPU, said.append)
    content = json.loads(figures.probe(bench(classed, installed), classed, installed, *words)[1].read_text())
    assert (content.get("overlap"), content["summary"]) == (None, "class token")


def test_which_summary_an_encoder_has_is_told_where_a_probe_reads_it_alone(tmp_path):
    """`heads` reads pools, and was called unfair for a class token that it did not read."""
    own = "evaluate.probes={heads: {use: heads, features: [mean], epochs: 1}}"
    recipe, installed = load("tiny/ijepa", ("evaluate.train.length=16", "evaluate.test.length=8", own))
    words = ({"trained": build_method(recipe, installed)}, 0, "student", tmp_path / "run", CPU, lambda _: None)
    assert "summary" not in json.loads(
        figures.probe(bench(recipe, installed), recipe, installed, *words)[1].read_text()
    )
