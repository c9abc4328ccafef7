"""How does any image file become an RGB image, upright and right in its brightness? All data sets read here."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sslzoo import Photo

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
DECODER = "simplejpeg"  # of a Photo; noted in runs, since other pixels are other data


def read(content: bytes) -> Image.Image:
    """The content of an image file as RGB: turned as its EXIF says, scaled as `rgb` does, first frame.

    JPEG files that need no more than decoding are a `Photo`, decoded when looked at.

    Raises:
        OSError: it cannot be read, for whatever reason; one above Pillow's limit (`Image.MAX_IMAGE_PIXELS`) too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is odd: it says nothing of the image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if content.startswith(b"\xff\xd8\xff"):
                photo = _limited(Photo(content))
                return photo if photo.mode == "RGB" and not _turned(photo) else rgb(photo)
            with Image.open(io.BytesIO(content)) as image:
                return rgb(image)
    except UnidentifiedImageError as error:  # whose words hold an address in memory
        raise OSError(f"{len(content)} bytes of no format that Pillow reads") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # on broken bytes Pillow's decoders raise whatever their arithmetic does
        raise OSError(f"{type(error).__name__}: {error}") from error


def rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB, eight bits a channel, upright; transparency is dropped, as by torchvision's loader.

    16-bit images keep their upper byte, floats are taken from 0 (black) to 1 (white).

    Raises:
        ValueError: its numbers have no known scale: floats beyond [0, 1], whole numbers of 32 bits.
    """
    image.load()
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = _upright(image)
    if sixteen:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "F":
        x = np.asarray(image)
        if not (x.min() >= 0 and x.max() <= 1):  # nan is neither
            raise ValueError(f"floats from {x.min():g} to {x.max():g}; only [0, 1] has a known scale: save eight bits")
        image = Image.fromarray((x * 255).round().astype(np.uint8))
    elif image.mode == "I":
        raise ValueError("whole numbers of 32 bits, whose scale nobody tells: save it with 8 or 16 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _limited(photo: Photo) -> Photo:
    if Image.MAX_IMAGE_PIXELS is not None and photo.width * photo.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{photo.width} x {photo.height} pixels are above Pillow's limit")
    return photo


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _turned(image) else image


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # EXIF that cannot be read says nothing of the image
        return False


def digest(lines: Iterable[str]) -> str:
    """A short hash of a list: the fingerprint of a data set."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode(errors="surrogateescape") + b"\n")
    return found.hexdigest()[:16]
