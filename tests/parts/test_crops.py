"""Does a view show what its box says, and happen as often as its rates say?"""

import pytest
import torch
from sslzoo_crops import Centre, Crop

from sslzoo.run.data import seed_views

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def places(height=96, width=128):
    """An image whose red is the row and green the column of each pixel, so a view tells where it was cut."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns, rows * 0]).to(torch.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_the_box_is_where_the_view_was_cut(seed):
    seed_views(seed)
    view, box = Crop(size=32, scale=(0.3, 1.0), **PLAIN)(places())
    top, left, height, width = (box * torch.tensor([96, 128, 96, 128])).tolist()
    seen = view * 255
    # Pixel centres of the resized cut, in rows and columns of the image.
    rows = top + (torch.arange(32) + 0.5) * height / 32 - 0.5
    columns = left + (torch.arange(32) + 0.5) * width / 32 - 0.5
    inner = slice(2, -2)  # at the rim the filter has less to average
    assert torch.allclose(seen[0, inner, 16], rows[inner], atol=0.75)
    assert torch.allclose(seen[1, 16, inner], columns[inner], atol=0.75)


def test_the_cut_keeps_to_scale_and_ratio():
    crop = Crop(size=16, scale=(0.3, 0.6), ratio=(0.75, 4 / 3), **PLAIN)
    for seed in range(60):
        seed_views(seed)
        _, box = crop(places())
        area, ratio = (box[2] * box[3]).item(), (box[3] * 128 / (box[2] * 96)).item()
        assert 0.28 <= area <= 0.62
        assert 0.7 <= ratio <= 1.4


def test_a_flip_happens_as_often_as_its_rate():
    crop, flipped = Crop(size=32, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.3, **PLAIN), 0
    for seed in range(400):
        seed_views(seed)
        view, _ = crop(places())
        flipped += bool(view[1, 0, 0] > view[1, 0, -1])
    assert 0.22 < flipped / 400 < 0.38


def test_views_are_normalised_with_the_given_statistics():
    seed_views(0)
    plain, _ = Crop(size=16, scale=(1.0, 1.0), **PLAIN)(places())
    seed_views(0)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    view, _ = Crop(size=16, scale=(1.0, 1.0), mean=mean, std=std)(places())
    wanted = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(view, wanted, atol=1e-6)


def test_the_centre_is_the_middle_and_takes_no_chances():
    centre = Centre(size=48, resize=96, **PLAIN)
    view, box = centre(places())
    again, _ = centre(places())
    assert torch.equal(view, again)
    assert box.tolist() == pytest.approx([0.25, 0.3125, 0.5, 0.375])
    assert torch.allclose(view * 255, places()[:, 24:72, 40:88].float(), atol=1e-4)


def test_one_seed_gives_one_view_with_every_augmentation_on():
    crop = Crop(size=24, flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=0.5, solarise=0.2)
    views = []
    for seed in (1, 1, 2):
        seed_views(seed)
        views.append(crop(places())[0])
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
