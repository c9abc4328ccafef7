"""Does an image file of any kind become the RGB image that it shows, or an unreadable image?"""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from sslzoo_datasets.images import read

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
COLORS = (np.indices((16, 16)).sum(0)[..., None] * [8, 4, 2]).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def shown(content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning for each image would fill a log
        image = read(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_brightness(kind):
    found = shown(encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), kind))
    assert np.abs(found - RAMP[..., None] * 255).max() <= 1


def test_big_endian_sixteen_bits_too():
    image = Image.frombytes("I;16B", (16, 16), (RAMP * 65535).astype(">u2").tobytes())
    assert np.abs(shown(encoded(image, "TIFF")) - RAMP[..., None] * 255).max() <= 1


def test_floats_from_black_0_to_white_1():
    found = shown(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"))
    assert np.abs(found - RAMP[..., None] * 255).max() <= 1


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (RAMP.astype(np.float32) * 255, "floats from 0 to 255; only"),
        (RAMP.astype(np.float32) - 0.5, "floats from -0.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "floats from nan"),
        ((RAMP * 2**30).astype(np.int32), "32 bits"),
        ((RAMP * 255).astype(np.int32), "32 bits"),
    ],
)
def test_numbers_without_a_known_scale_are_refused(array, told):
    with pytest.raises(OSError, match=told):
        read(encoded(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_show_what_they_show(mode):
    if mode == "YCbCr":
        content = encoded(Image.fromarray(COLORS).convert(mode), "TIFF")
    else:
        image = Image.fromarray(COLORS if mode in ("RGBA", "CMYK", "P") else (RAMP > 0.5).astype(np.uint8) * 255)
        image = image.quantize(256) if mode == "P" else image.convert(mode)
        content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    wanted = COLORS if mode in ("RGBA", "CMYK", "P", "YCbCr") else (RAMP[..., None] > 0.5) * np.full(3, 255.0)
    assert np.abs(shown(content) - wanted).max() <= 6


def test_transparency_is_dropped_without_a_word():
    palette = Image.fromarray(COLORS).quantize(16)
    plain = shown(encoded(palette))
    assert np.array_equal(shown(encoded(palette, transparency=bytes(range(0, 256, 16)))), plain)
    assert np.array_equal(shown(encoded(palette, transparency=3)), plain)
    clear = Image.fromarray(np.dstack([COLORS, np.zeros((16, 16), np.uint8)]))
    assert np.array_equal(shown(encoded(clear)), COLORS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_way_is_up(orientation):
    image = Image.fromarray(np.kron(COLORS[:8], np.ones((4, 4, 1))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "JPEG", quality=95, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert np.array_equal(shown(content), wanted)
    assert shown(content).shape[:2] == ((64, 32) if orientation > 4 else (32, 64))
    assert np.array_equal(shown(encoded(image, "PNG", exif=exif)).shape, wanted.shape)


def test_sixteen_bits_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray((RAMP[:8] * 65535).astype(np.uint16)), "PNG", exif=exif)
    assert np.abs(shown(content)[..., 0] - np.rot90(RAMP[:8], -1) * 255).max() <= 1


def test_exif_that_cannot_be_read_is_no_reason():
    content = encoded(Image.fromarray(COLORS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert shown(content).shape == (16, 16, 3)


@pytest.mark.parametrize("limit", [100, 200])
def test_an_image_above_pillows_limit_is_unreadable(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 256 pixels: an error above 200, a warning above 100
    with pytest.raises(OSError, match="DecompressionBomb"):
        read(encoded(Image.fromarray(COLORS)))


def test_broken_bytes_are_unreadable_and_nothing_else():
    whole = [encoded(Image.fromarray(COLORS), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]
    rng, unreadable = np.random.default_rng(0), 0
    for trial in range(200):
        content = bytearray(whole[trial % len(whole)])
        for place in rng.integers(0, len(content), 8):
            content[place] = rng.integers(256)
        try:
            assert read(bytes(content[: rng.integers(1, len(content) + 1)])).mode == "RGB"
        except OSError:
            unreadable += 1
    assert unreadable > 50
    for content in (b"", b"text"):
        with pytest.raises(OSError, match=f"{len(content)} bytes of no format that Pillow reads"):
            read(content)
