"""Rendered scenes against geometry worked out another way."""

import pickle

import numpy as np
import pytest
import torch

from sslzoo import catalogue

Scenes = catalogue().find("datasets", "scenes").make
from sslzoo_datasets import rendering, scenes  # noqa: E402
from sslzoo_datasets.rendering import COLORS, RADII, Layout, render  # noqa: E402
from sslzoo_datasets.scenes import DEPTHS  # noqa: E402


def scene(shape=(0,), color=(1,), center=((0, 0, 0.8),), radius=(0.8,), eye=(9.0, 0.0, 0.8), light=(9.0, 3.0, 9.0)):
    n = len(shape)
    f = np.float32
    return Layout(
        np.array(shape), np.array(color), np.zeros(n, bool), np.array(radius, f), np.array(center, f),
        np.zeros(n, f), np.array(eye, f), np.array(light, f),
    )  # fmt: skip


def test_an_image_is_a_function_of_seed_split_and_number():
    data = Scenes(length=50, size=32)
    assert torch.equal(data.image(7), Scenes(length=10, size=32).image(7))
    assert data.image(7).dtype == torch.uint8
    assert data.image(7).shape == (3, 32, 32)
    for other in (data.image(8), Scenes(split="test", size=32).image(7), Scenes(seed=1, size=32).image(7)):
        assert not torch.equal(data.image(7), other)


def test_train_and_test_share_no_scene():
    train = {Scenes(length=300).layout(i).center.tobytes() for i in range(300)}
    test = {Scenes(split="test", length=300).layout(i).center.tobytes() for i in range(300)}
    assert len(train) == len(test) == 300
    assert not train & test


def test_kept_images_are_the_same_and_travel_to_workers():
    plain, kept = Scenes(length=5, size=24), Scenes(length=5, size=24, cache=True)
    assert torch.equal(kept.image(3), plain.image(3))
    assert torch.equal(kept.image(3), plain.image(3))
    assert torch.equal(pickle.loads(pickle.dumps(plain)).image(2), plain.image(2))


def test_labels_are_those_of_the_layout_worked_out_by_hand():
    data = Scenes(length=200)
    for i in range(200):
        layout, label = data.layout(i), data.label(i)
        forward = np.array([0, 0, 0.3]) - layout.eye
        forward /= np.linalg.norm(forward)
        depth = [float(np.dot(center - layout.eye, forward)) for center in layout.center]
        nearest = int(np.argmin(depth))
        assert label["count"] == len(depth) - 3
        assert label["distance"] == sum(min(depth) > edge for edge in DEPTHS)
        assert label["shape"] == layout.shape[nearest]
        assert label["color"] == layout.color[nearest]


def test_classes_are_as_frequent_as_they_should_be():
    data = Scenes(length=6000)
    labels = [data.label(i) for i in range(6000)]
    for task in ("count", "distance", "shape", "color"):
        share = np.bincount([label[task] for label in labels], minlength=data.tasks[task]) / 6000
        if task == "shape":
            assert share.min() > 0.28
        else:
            even = 1 / data.tasks[task]
            assert np.abs(share - even).max() < 5 * np.sqrt(even * (1 - even) / 6000) + 0.01


def test_objects_do_not_touch_and_stand_on_the_ground():
    data = Scenes(length=300)
    for i in range(300):
        layout = data.layout(i)
        assert np.allclose(layout.center[:, 2], layout.radius)
        assert set(np.round(layout.radius, 3)) <= set(np.float32(RADII).round(3))
        for a in range(len(layout.radius)):
            for b in range(a):
                apart = np.linalg.norm(layout.center[a, :2] - layout.center[b, :2])
                assert apart > layout.radius[a] + layout.radius[b]


def red(image):
    return (image[0].astype(int) - image[1] > 25) & (image[0].astype(int) - image[2] > 25)


def test_the_outline_of_a_sphere_is_the_circle_of_its_cone():
    picture = render(scene(), (192, 192))
    rows, columns = np.nonzero(red(picture))
    # Seen from distance D a sphere of radius r fills a cone of half angle asin(r / D); the view's is atan(0.40).
    view = np.array([0, 0, 0.3]) - np.array([9.0, 0.0, 0.8])
    distance = 9.0
    wide = 2 * np.tan(np.arcsin(0.8 / distance)) / (2 * 0.40) * 192
    assert abs((columns.max() - columns.min() + 1) - wide) < 3
    assert abs(rows.max() - rows.min() + 1 - wide) < 4
    assert view[0] < 0


def test_the_nearer_object_hides_the_farther():
    near, far = (3.0, 0.0, 0.8), (-3.0, 0.0, 0.8)
    for order in ((near, far), (far, near)):
        colors = (COLORS.index("red"), COLORS.index("blue")) if order[0] == near else (2, 1)
        picture = render(scene((0, 0), colors, order, (0.8, 0.8)), (96, 96))
        assert red(picture)[48 - 6 : 48 + 6, 44:52].mean() > 0.5
        alone = render(scene((0,), (2,), (far,)), (96, 96))
        assert (alone[2].astype(int) - alone[0] > 25).any()


def test_an_object_casts_a_shadow_away_from_the_light():
    lit = render(scene(light=(0.0, 6.0, 6.0), eye=(9.0, 0.0, 6.0)), (128, 128)).astype(float).mean(0)
    unlit = (
        render(scene(center=((0, 0, -50),), light=(0.0, 6.0, 6.0), eye=(9.0, 0.0, 6.0)), (128, 128))
        .astype(float)
        .mean(0)
    )
    darker = unlit - lit > 15
    darker &= ~red(render(scene(light=(0.0, 6.0, 6.0), eye=(9.0, 0.0, 6.0)), (128, 128)))
    assert darker.sum() > 40
    sides = np.nonzero(darker)[1]
    # The camera looks along -x with +y to its right: light from +y throws the shadow to the left of the object.
    assert np.mean(sides < 64) > 0.9


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_each_shape_fills_about_its_own_area(shape):
    share = red(render(scene((shape,)), (128, 128))).mean()
    full = (2 * 0.8 / 9 / (2 * 0.40)) ** 2  # of the square around it, at its center's distance
    expected = {0: np.pi / 4, 1: 1.2, 2: 1.05}[shape] * full
    assert 0.7 * expected < share < 1.5 * expected


def test_sizes_need_not_be_square():
    assert Scenes(size=(20, 40)).image(0).shape == (3, 20, 40)


def shadow_by_masks(scene, point, to_light, far):
    """As it was written before it was made faster."""
    dark = np.zeros(far.shape, bool)
    for k in range(len(scene.radius)):
        start = point - scene.center[k][:, None, None]
        along = (start * to_light).sum(0)
        reach = scene.radius[k] * np.float32(1.75)
        near = ((start * start).sum(0) - along * along < reach * reach) & (along < reach) & ~dark
        if near.any():
            enter, leave = rendering._interval(scene, k, start[:, near], to_light[:, near])
            dark[near] |= (enter < leave) & (leave > rendering.EPS) & (enter < far[near])
    return dark.astype(np.float32)


def surfaces_by_masks(scene, point, owner):
    """The same."""
    normal = np.zeros_like(point)
    normal[2] = 1
    color, shine = np.full_like(point, 0.42), np.zeros(owner.shape, np.float32)
    for k in range(len(scene.radius)):
        here = owner == k
        if not here.any():
            continue
        c, s = np.cos(scene.turn[k]), np.sin(scene.turn[k])
        x, y, z = (point[:, here] - scene.center[k][:, None]) / scene.radius[k]
        x, y = c * x + s * y, c * y - s * x
        x, y, z = rendering._local_normal(rendering.SHAPES[scene.shape[k]], x, y, z)
        normal[:, here] = np.stack([c * x - s * y, s * x + c * y, z])
        color[:, here] = (rendering.RGB[scene.color[k]] ** 2)[:, None]
        shine[here] = 1.0 if scene.metal[k] else 0.12
    return normal, color, shine


def test_rendering_by_numbers_of_pixels_gives_the_bits_of_rendering_by_masks(monkeypatch):
    data = Scenes(size=(48, 64))
    found = [data.image(i) for i in range(40)]
    monkeypatch.setattr(rendering, "_shadow", shadow_by_masks)
    monkeypatch.setattr(rendering, "_surfaces", surfaces_by_masks)
    assert all(torch.equal(data.image(i), image) for i, image in enumerate(found))


def test_what_was_rendered_for_training_is_there_for_probing(monkeypatch):
    """In one process, of the same split, seed and size; another of these has its own."""
    keys = {"seed": 97, "size": 24, "cache": True}
    first = Scenes(length=6, **keys)
    there = [(first.image(i).clone(), first.label(i)) for i in range(6)]
    plain = Scenes(length=6, seed=97, size=24)
    assert [first.label(i) for i in range(6)] == [plain.label(i) for i in range(6)]

    monkeypatch.setattr(scenes, "render", lambda *_: pytest.fail("rendered again"))
    monkeypatch.setattr(scenes, "draw", lambda *_: pytest.fail("drawn again"))
    again = Scenes(length=4, **keys)
    assert all(torch.equal(again.image(i), there[i][0]) and again.label(i) == there[i][1] for i in range(4))
    monkeypatch.undo()
    for other in (Scenes(length=6, split="test", **keys), Scenes(length=6, seed=98, size=24, cache=True)):
        assert not torch.equal(other.image(0), there[0][0])
    longer = Scenes(length=9, **keys)
    assert torch.equal(longer.image(5), there[5][0])
    assert torch.equal(longer.image(8), Scenes(length=9, seed=97, size=24).image(8))
