"""CLEVR's layout, and VTAB's two tasks at their borders."""

import json

import pytest
from PIL import Image

from sslzoo import RecipeError, catalogue
from sslzoo.recipe.build import make


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Scenes of 3 to 10 objects; the nearest at a border of the classes, or just behind it."""
    root = tmp_path_factory.mktemp("CLEVR_v1.0")
    (root / "images" / "val").mkdir(parents=True)
    (root / "scenes").mkdir()
    scenes = []
    for number, (count, near) in enumerate([(3, 7.2), (4, 8.0), (5, 8.01), (6, 9.0), (7, 9.2), (8, 10.0), (10, 10.5)]):
        name = f"CLEVR_val_{number:06d}.png"
        Image.new("RGBA", (48, 32), (number, 0, 0, 255)).save(root / "images" / "val" / name)
        objects = [{"pixel_coords": [1, 2, near + 0.3 * n]} for n in reversed(range(count))]
        scenes.append({"image_filename": name, "objects": objects})
    (root / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": scenes}))
    return root


def open_(root, split="val"):
    return make(catalogue(), "datasets", {"use": "clevr", "root": str(root), "split": split}, place="data")


def test_counts_and_distances_are_vtabs(root):
    found = open_(root)
    assert (len(found), dict(found.tasks)) == (7, {"count": 8, "distance": 6})
    assert [found.label(i)["count"] for i in range(7)] == [0, 1, 2, 3, 4, 5, 7]
    assert [found.label(i)["distance"] for i in range(7)] == [0, 0, 1, 2, 3, 4, 5]
    assert (found.image(3).mode, found.image(3).size, found.image(3).getpixel((0, 0))) == ("RGB", (48, 32), (3, 0, 0))


def test_a_folder_that_is_not_clevr_is_told_where_and_why(root, tmp_path):
    with pytest.raises(RecipeError, match=r"CLEVR_train_scenes.json cannot be read \(No such file"):
        open_(root, "train")
    (tmp_path / "scenes").mkdir()
    for text in ("no json", '{"scenes": [{"image_filename": "a.png", "objects": []}]}'):
        (tmp_path / "scenes" / "CLEVR_val_scenes.json").write_text(text)
        with pytest.raises(RecipeError, match="does not hold scenes"):
            open_(tmp_path)
