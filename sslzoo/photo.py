"""How is no more of a JPEG decoded than a view shows? A Pillow image whose pixels come when they are asked for."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn.functional import interpolate

from sslzoo.errors import ImageError


class Photo(JpegImageFile):
    """A JPEG file. Whoever expects a Pillow image finds one, decoded on its first use; `cut` is the fast way to a part.

    Raises:
        SyntaxError: the content does not begin as a JPEG does. ImageError, later: the pixels cannot be decoded.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.content = content

    def load(self) -> Image.core.PixelAccess | None:
        """Decodes it as Pillow does; Pillow's own methods call this."""
        try:
            return super().load()
        except Exception as error:  # on broken bytes Pillow's decoders raise whatever their arithmetic does
            raise ImageError.of(error) from error

    def cut(
        self, box: tuple[int, int, int, int], size: Sequence[int], interpolation: str = "bilinear"
    ) -> UInt8[Tensor, "3 H W"]:
        """The box (top, left, height, width, in pixels) resized with antialiasing.

        At full scale the pixels resized are Pillow's, bit for bit. Where half, a quarter or an eighth of the scale
        leaves at least twice the pixels of the view each way, the image is decoded at that scale: then a view is within
        a gray level of what the whole image gives, in the mean (tests/parts/test_photo.py).

        Args:
            box: what is shown, inside the image.
            size: height and width of the result.
            interpolation: bilinear, bicubic, nearest or lanczos.
        """
        top, left, height, width = box
        room = min(height / size[0], width / size[1])
        scale = next((scale for scale in (8, 4, 2) if room >= 2 * scale), 1)
        whole = _decode(self, scale)
        if scale == 1 and interpolation in ("bilinear", "bicubic"):
            part = torch.from_numpy(whole[top : top + height, left : left + width]).permute(2, 0, 1)
            return interpolate(part[None], list(size), mode=interpolation, antialias=True)[0]
        down, across = whole.shape[0] / self.height, whole.shape[1] / self.width  # scaled sides are rounded up
        part = (left * across, top * down, (left + width) * across, (top + height) * down)
        view = Image.fromarray(whole).resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box=part)
        return torch.from_numpy(np.array(view)).permute(2, 0, 1)


class _Room(threading.local):
    """Pixels of the photo decoded last, by scale. Memory that is fresh for each image costs a tenth of decoding it."""

    def __init__(self) -> None:
        self.photo: Photo | None = None
        self.pixels: dict[int, np.ndarray] = {}
        self.buffers: dict[int, np.ndarray] = {}

    def buffer(self, scale: int, size: int) -> np.ndarray:
        """At least so many bytes, which the next photo at this scale gets too."""
        if scale not in self.buffers or self.buffers[scale].size < size:
            self.buffers[scale] = np.empty(size, np.uint8)
        return self.buffers[scale]


_room = _Room()


def _decode(photo: Photo, scale: int) -> np.ndarray:
    """All pixels [h w 3] at 1/scale: once for all views of a photo. They are overwritten when another is decoded."""
    import simplejpeg

    if _room.photo is not photo:
        _room.photo, _room.pixels = photo, {}
    if scale not in _room.pixels:
        try:
            _room.pixels[scale] = simplejpeg.decode_jpeg(
                photo.content,
                min_factor=scale,
                min_height=photo.height // scale,
                min_width=photo.width // scale,
                buffer=_room.buffer(scale, 3 * -(-photo.height // scale) * -(-photo.width // scale)),
            )
        except ValueError:  # it complains of more than Pillow does, who has the last word of what can be read
            _room.pixels[scale] = np.array(photo)
    return _room.pixels[scale]
