"""How does any image file become an RGB image, upright and right in its brightness? All data sets read here."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


def read(source: Path | bytes) -> Image.Image:
    """An image file, or its content, as RGB: turned as its EXIF says, scaled as `rgb` does, first frame.

    Raises:
        OSError: it cannot be read, for whatever reason; one above Pillow's limit (`Image.MAX_IMAGE_PIXELS`) too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is odd: it says nothing of the image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return rgb(image)
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # EXIF that cannot be read says nothing of the image
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def digest(lines: Iterable[str]) -> str:
    """A short hash of a list: the fingerprint of a data set."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode(errors="surrogateescape") + b"\n")
    return found.hexdigest()[:16]
