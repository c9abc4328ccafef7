"""Is a JPEG that is decoded in part, or at a reduced scale, what the whole of it shows?"""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sslzoo_crops import Center, Crop

from sslzoo import ImageError, Photo, catalogue
from sslzoo.rng import seed_shared
from sslzoo.run.data import Micros, Order, Sources, Split, Views


def scene(height, width, seed=0):
    """Like a photograph: shapes of every size with edges, more of the large than of the small, and some grain."""
    rng = np.random.default_rng(seed)
    x = np.full((height, width, 3), 128.0)
    rows, columns = np.mgrid[:height, :width]
    for radius in 0.4 * height / (1 + np.arange(60)):
        row, column, color = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, 255, 3)
        x[np.hypot(rows - row, columns - column) < radius] = color
    return Image.fromarray((x + rng.normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8))


def encoded(image, **how):
    held = io.BytesIO()
    image.save(held, "jpeg", **{"quality": 90, **how})
    return held.getvalue()


SMALL, LARGE = scene(240, 320), scene(1000, 1300, 1)


def plain(content, box, size, interpolation):
    top, left, height, width = box
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    part = whole.crop((left, top, left + width, top + height))
    shown = part.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1).float()


@pytest.mark.parametrize("how", [{}, {"subsampling": 0}, {"progressive": True}])
def test_at_full_scale_the_pixels_are_pillows(how):
    content = encoded(SMALL, **how)
    found = Photo(content).cut((10, 20, 200, 250), (200, 250))  # no resizing: nothing is left but decoding
    assert torch.equal(found.float(), plain(content, (10, 20, 200, 250), (200, 250), "bilinear"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(("image", "box"), [(SMALL, (11, 7, 201, 240)), (LARGE, (37, 101, 901, 1003))])
def test_a_cut_is_within_a_gray_level_of_the_whole_image_resized(image, box, interpolation):
    content, size = encoded(image), (96, 112)  # of the large image, at half the scale and at a quarter
    found = Photo(content).cut(box, size, interpolation).float()
    assert (found - plain(content, box, size, interpolation)).abs().mean() < 1 + 4 * (interpolation == "nearest")


@pytest.fixture
def asked(monkeypatch):
    """Height and width of whatever is decoded."""
    import simplejpeg

    found, decode = [], simplejpeg.decode_jpeg

    def noted(*args, **how):
        pixels = decode(*args, **how)
        found.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    return found


def test_a_reduced_scale_leaves_twice_the_views_pixels(asked):
    content = encoded(LARGE)
    for side in (501, 250, 125, 60, 20):
        Photo(content).cut((0, 0, 1000, 1000), (side, side))
    assert asked == [(1000, 1300), (500, 650), (250, 325), (125, 163), (125, 163)]


def test_many_views_of_a_photo_decode_it_once_at_each_scale(asked):
    content = encoded(LARGE)
    photo, boxes = Photo(content), [(0, 0, 900, 900), (5, 5, 200, 200), (9, 0, 450, 450)]
    views = [photo.cut(box, (96, 96)) for box in boxes * 3]
    assert asked == [(250, 325), (1000, 1300), (500, 650)]
    for box, view in zip(boxes * 3, views, strict=True):
        assert torch.equal(view, Photo(content).cut(box, (96, 96)))


def test_views_do_not_depend_on_what_was_decoded_before():
    contents = [encoded(SMALL), encoded(LARGE)]
    alone = [Photo(content).cut((0, 0, 200, 200), (64, 64)) for content in contents]
    photos = [Photo(content) for content in contents]
    for _ in range(2):
        for photo, wanted in zip(photos, alone, strict=True):
            photo.cut((50, 50, 20, 20), (10, 10))
            assert torch.equal(photo.cut((0, 0, 200, 200), (64, 64)), wanted)


def test_it_is_a_pillow_image_to_those_who_want_one():
    photo = Photo(encoded(SMALL))
    assert isinstance(photo, Image.Image)
    assert (photo.mode, photo.size) == ("RGB", (320, 240))
    assert np.array_equal(np.asarray(photo), np.asarray(Image.open(io.BytesIO(encoded(SMALL)))))
    assert photo.resize((8, 8)).size == (8, 8)


@pytest.mark.parametrize("make", [lambda: Crop(size=64, scale=(0.3, 1.0), flip=0.5), lambda: Center(size=64)])
def test_views_of_a_photo_are_those_of_the_image(make):
    content = encoded(LARGE)
    for seed in range(4):
        seed_shared(seed)
        found, box = make()(Photo(content))
        seed_shared(seed)
        wanted, other = make()(Image.open(io.BytesIO(content)).convert("RGB"))
        assert torch.equal(box, other)
        assert (found.float() - wanted.float()).abs().mean() < 1


@pytest.mark.parametrize("lost", [0.3, 0.9])
def test_a_torn_file_is_unreadable_whoever_looks(lost):
    content = encoded(SMALL)
    torn = content[: int(len(content) * (1 - lost))]
    with pytest.raises(ImageError, match="truncated"):
        Photo(torn).cut((0, 0, 240, 320), (32, 32))
    with pytest.raises(ImageError, match="truncated"):
        np.asarray(Photo(torn))


def test_what_the_decoder_complains_of_is_for_pillow_to_judge():
    content = bytearray(encoded(SMALL))
    content[len(content) // 2 : len(content) // 2 + 40] = b"\x55" * 40  # Pillow reads it, with a wrong part
    found = Photo(bytes(content)).cut((0, 0, 240, 320), (240, 320))
    assert torch.equal(found.float(), plain(bytes(content), (0, 0, 240, 320), (240, 320), "bilinear"))


def test_another_image_stands_in_for_one_whose_pixels_are_torn(tmp_path):
    for number in range(8):
        content = encoded(scene(48, 64, number))
        (tmp_path / f"{number}.jpg").write_bytes(content[: len(content) // 2] if number == 3 else content)
    data = catalogue().find("datasets", "folder").make(root=tmp_path)
    views = {"a": Views(Crop(size=16), 2), "b": Views(Crop(size=8))}
    batch = Micros(Sources(data, views, {}), {"a": (1, 1), "b": (1, 1)}, Order(8, 8, 0), Split(8, 1, 1), 0)[0]
    (index, told), *more = batch.unreadable
    assert (index, more) == (3, [])
    assert "truncated" in told
    assert 3 not in batch.samples
    assert batch.groups["a"].pixels.dtype == torch.uint8
    assert batch.normalized().groups["a"].pixels.dtype == torch.float32
