"""Does a view show what its box says, and happen as often as its rates say?"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter
from sslzoo_crops import Blur, Center, Crop
from torchvision.transforms import v2

from sslzoo.errors import did_you_mean
from sslzoo.rng import seed_shared
from sslzoo.run.data import ready

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def seen(crop, image):
    """A view as an encoder reads it, and its box."""
    view, box = crop(image)
    assert view.dtype == torch.uint8
    return ready(crop, view[None])[0], box


def places(height=96, width=128):
    """An image whose red is the row and green the column of each pixel, so a view tells where it was cut."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns, rows * 0]).to(torch.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_the_box_is_where_the_view_was_cut(seed):
    seed_shared(seed)
    view, box = seen(Crop(size=32, scale=(0.3, 1.0), **PLAIN), places())
    top, left, height, width = (box * torch.tensor([96, 128, 96, 128])).tolist()
    shown = view * 255
    # Pixel centers of the resized cut, in rows and columns of the image.
    rows = top + (torch.arange(32) + 0.5) * height / 32 - 0.5
    columns = left + (torch.arange(32) + 0.5) * width / 32 - 0.5
    inner = slice(2, -2)  # at the rim the filter has less to average
    assert torch.allclose(shown[0, inner, 16], rows[inner], atol=0.75)
    assert torch.allclose(shown[1, 16, inner], columns[inner], atol=0.75)


def test_the_cut_keeps_to_scale_and_ratio():
    crop = Crop(size=16, scale=(0.3, 0.6), ratio=(0.75, 4 / 3), **PLAIN)
    for seed in range(60):
        seed_shared(seed)
        _, box = crop(places())
        area, ratio = (box[2] * box[3]).item(), (box[3] * 128 / (box[2] * 96)).item()
        assert 0.28 <= area <= 0.62
        assert 0.7 <= ratio <= 1.4


def test_a_flip_happens_as_often_as_its_rate():
    crop, flipped = Crop(size=32, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.3, **PLAIN), 0
    for seed in range(400):
        seed_shared(seed)
        view, _ = crop(places())
        flipped += bool(view[1, 0, 0] > view[1, 0, -1])
    assert 0.22 < flipped / 400 < 0.38


def test_views_are_normalized_with_the_given_statistics():
    seed_shared(0)
    plain, _ = seen(Crop(size=16, scale=(1.0, 1.0), **PLAIN), places())
    seed_shared(0)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    view, _ = seen(Crop(size=16, scale=(1.0, 1.0), mean=mean, std=std), places())
    wanted = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(view, wanted, atol=1e-6)


def test_the_center_is_the_middle_and_takes_no_chances():
    center = Center(size=48, resize=96, **PLAIN)
    view, box = seen(center, places())
    again, _ = seen(center, places())
    assert torch.equal(view, again)
    assert box.tolist() == pytest.approx([0.25, 0.3125, 0.5, 0.375])
    assert torch.allclose(view * 255, places()[:, 24:72, 40:88].float(), atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (90, 40)])
@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_an_oblong_center_lies_in_the_image(size, shape):
    """What it shows is the image's, not black from beyond it: of a white image, all is white."""
    for center in (Center(size=size), Center(size=size, resize=48)):
        view, box = center(torch.full((3, *shape), 255, dtype=torch.uint8))
        top, left, tall, wide = box.tolist()
        assert view.shape == (3, *size)
        assert (view == 255).all()
        assert min(top, left) >= 0
        assert max(tall, wide) <= 1
        assert tall * shape[0] / size[0] == pytest.approx(wide * shape[1] / size[1], rel=0.04)  # pixels stay square


def test_one_seed_gives_one_view_with_every_augmentation_on():
    crop = Crop(size=24, flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2, blur=0.5, solarize=0.2)
    views = []
    for seed in (1, 1, 2):
        seed_shared(seed)
        views.append(crop(places())[0])
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def noise(height=96, width=128):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_view_is_what_torchvision_draws_and_does(seed):
    to_float = v2.ToDtype(torch.float32, scale=True)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), interpolation="bicubic"),
            to_float,
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.3),
            v2.RandomSolarize(0.5, 0.3),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    ours = Crop(
        size=32,
        scale=(0.2, 1.0),
        interpolation="bicubic",
        flip=0.5,
        jitter=(0.4, 0.4, 0.2, 0.1),
        grayscale=0.3,
        solarize=0.3,
    )
    seed_shared(seed)
    wanted = theirs(noise())
    seed_shared(seed)
    assert torch.allclose(seen(ours, noise())[0], wanted, atol=0.5 / 255 / 0.224 + 1e-6)  # rounded to bytes once


def test_blurring_by_rows_and_columns_is_the_blur_with_the_square_kernel():
    image = noise(40, 56).float() / 255
    ours = Blur((0.1, 2.0), 40)
    for sigma in (0.3, 1.0, 2.0):
        wanted = v2.GaussianBlur(13, (sigma, sigma))(image)
        assert torch.allclose(ours.transform(image, {"sigma": [sigma] * 2}), wanted, atol=1e-6)


def test_the_blur_is_pillows_as_published():
    rows = torch.arange(64)[:, None] // 16 % 2 * 120 + 60
    image = (rows + torch.arange(64) // 8 % 2 * 60).expand(3, 64, 64).to(torch.uint8)
    for sigma in (0.5, 1.0, 2.0):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma))
        ours = Blur((sigma, sigma), 64)(image.float()) - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
        assert ours[:, 8:-8, 8:-8].abs().mean() < 1.5  # Pillow's is three box blurs


def test_the_blur_fits_views_of_any_size():
    for size in (1, 2, 4, 7):
        view, _ = Crop(size=size, blur=1.0)(noise())
        assert view.shape == (3, size, size)
        assert view.isfinite().all()


def test_what_never_happens_draws_nothing():
    drawn = []
    for crop in (Crop(size=16), Crop(size=16, jitter=(0.4, 0.4, 0.4, 0.1), jitter_rate=0.0)):
        seed_shared(3)
        crop(noise())
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]


def test_old_words_are_told_their_new_names():
    from sslzoo.recipe.signature import keys_of

    keys = list(keys_of(Crop).model_fields)
    assert did_you_mean("grey", keys) == "; it is called grayscale now"
    assert did_you_mean("solarise", keys) == "; it is called solarize now"
    assert did_you_mean("centre", ["crop", "center"]) == "; it is called center now"


def test_many_views_of_an_image_read_it_once():
    from sslzoo.run.data import Micros, Order, Sources, Split, Views

    read = []

    class Counted:
        def __init__(self):
            self.tasks = {}

        def __len__(self):
            return 8

        def image(self, i):
            read.append(i)
            return noise()

    views = {"whole": Views(Crop(size=16), 2), "local": Views(Crop(size=8), 8, "context")}
    grids = {"whole": (1, 1), "local": (1, 1)}
    batch = Micros(Sources(Counted(), views, {}), grids, Order(8, 4, 0), Split(4, 1, 1), 0)[0]
    assert batch.groups["local"].pixels.shape[:2] == (8, 4)
    assert sorted(read) == sorted(batch.samples)


def documented():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    return yaml.safe_load("ijepa:" + text.split("```yaml\nijepa:")[1].split("```")[0])


PUBLISHED = documented()


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_published_views_of_the_docs_can_be_drawn(method):
    for spec in PUBLISHED[method].values():
        keys = {key: value for key, value in spec.items() if key not in ("use", "count", "role")}
        crop = Crop(**keys)
        seed_shared(0)
        view, _ = crop(noise())
        assert view.shape == (3, *crop.size)
        assert view.isfinite().all()
