"""Which part of an image does a view show, and in which colors? torchvision's transforms, and the box of the cut."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from sslzoo import hookimpl

Pair = tuple[float, float]
Triple = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


class Crop:
    """torchvision's RandomResizedCrop, then at will flip, color jitter, grayscale, blur and solarize; normalized.

    The defaults are I-JEPA's: a bilinear crop and nothing else. docs/data.md has the settings of other methods.

    Args:
        size: side of the view in pixels, or [height, width].
        scale: share of the image's area that is cut out, [low, high].
        ratio: width over height of the cut, [low, high], drawn on a logarithmic scale.
        interpolation: nearest, bilinear, bicubic or lanczos.
        flip: how often the view is mirrored.
        jitter: strength of brightness, contrast, saturation and hue, as ColorJitter takes them.
        jitter_rate: how often colors are jittered.
        grayscale: how often color is dropped.
        blur: how often the view is blurred.
        blur_sigma: standard deviation of the blur in pixels, [low, high].
        solarize: how often bright pixels, from 0.5 on, are inverted.
        mean: what is subtracted from each channel, in [0, 1].
        std: what each channel is divided by.
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        scale: Pair = (0.3, 1.0),
        ratio: Pair = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        flip: float = 0.0,
        jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        jitter_rate: float = 0.8,
        grayscale: float = 0.0,
        blur: float = 0.0,
        blur_sigma: Pair = (0.1, 2.0),
        solarize: float = 0.0,
        mean: Triple = MEAN,
        std: Triple = STD,
    ) -> None:
        for name, (low, high) in {"scale": scale, "ratio": ratio, "blur_sigma": blur_sigma}.items():
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}: found [{low:g}, {high:g}]; [low, high] with 0 < low <= high is wanted")
        if scale[1] > 1:
            raise ValueError(f"scale: found [{scale[0]:g}, {scale[1]:g}]; a cut covers at most the whole image, 1.0")
        rates = {"flip": flip, "jitter_rate": jitter_rate, "grayscale": grayscale, "blur": blur, "solarize": solarize}
        _check_rates(rates)
        self.size = _side(size)
        self.crop = v2.RandomResizedCrop(self.size, scale, ratio, _MODES[interpolation])
        after = [
            (flip, v2.RandomHorizontalFlip(flip)),
            (jitter_rate * any(jitter), v2.RandomApply([_jitter(jitter)], jitter_rate)),
            (grayscale, v2.RandomGrayscale(grayscale)),
            (blur, v2.RandomApply([Blur(blur_sigma, min(self.size))], blur)),
            (solarize, v2.RandomSolarize(0.5, solarize)),
        ]
        self.after = [change for rate, change in after if rate > 0]  # what never happens draws nothing
        self.mean, self.std = _statistics(mean, std)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view [3 H W] and its box: top, left, height, width as fractions of the image."""
        height, width = F.get_size(image)
        cut = self.crop.make_params([image])
        view = _tensor(self.crop.transform(image, cut))
        for change in self.after:
            view = change(view)
        box = [cut["top"] / height, cut["left"] / width, cut["height"] / height, cut["width"] / width]
        return F.normalize(view, self.mean, self.std), torch.tensor(box)


class Center:
    """For evaluation: resize the shorter side, cut out the center, normalize.

    Args:
        size: side of the view in pixels, or [height, width].
        resize: the shorter side after resizing; size / 0.875 if left out (256 for 224).
        interpolation: nearest, bilinear, bicubic or lanczos.
        mean: what is subtracted from each channel, in [0, 1].
        std: what each channel is divided by.
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        resize: int | None = None,
        interpolation: Interpolation = "bicubic",
        mean: Triple = MEAN,
        std: Triple = STD,
    ) -> None:
        self.size = _side(size)
        self.resize = round(min(self.size) / 0.875) if resize is None else resize
        if self.resize < min(self.size):
            raise ValueError(f"resize: found {resize}, smaller than the size {self.size[0]} x {self.size[1]}")
        self.interpolation = _MODES[interpolation]
        self.mean, self.std = _statistics(mean, std)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view [3 H W] and its box: top, left, height, width as fractions of the image."""
        image = _tensor(image)
        if min(image.shape[-2:]) != self.resize:
            image = F.resize(image, [self.resize], self.interpolation, antialias=True).clamp(0, 1)
        height, width = image.shape[-2:]
        view = F.center_crop(image, list(self.size))
        tall, wide = self.size[0] / height, self.size[1] / width
        return F.normalize(view, self.mean, self.std), torch.tensor([(1 - tall) / 2, (1 - wide) / 2, tall, wide])


class Blur(v2.GaussianBlur):
    """torchvision's GaussianBlur with a kernel of three deviations each way, convolved by rows and then by columns.

    The class itself convolves with the whole square, which is the same filter at several times the cost
    (tests/parts/test_crops.py compares them; benchmarks/views.py has the cost).
    """

    def __init__(self, sigma: Pair, side: int) -> None:
        half = min(math.ceil(3 * sigma[1]), side - 1)  # what is mirrored at the rim must lie in the view
        self.width = 2 * half + 1
        super().__init__(self.width, sigma)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blurs by rows, then by columns."""
        rows = F.gaussian_blur(inpt, [self.width, 1], params["sigma"])
        return F.gaussian_blur(rows, [1, self.width], params["sigma"])


_MODES = {mode.value: mode for mode in InterpolationMode}


def _side(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size: found {size}; at least 1 pixel")
    return height, width


def _check_rates(rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}: found {rate:g}; a rate from 0 to 1")


def _statistics(mean: Triple, std: Triple) -> tuple[list[float], list[float]]:
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"mean, std: found {list(mean)}, {list(std)}; finite numbers, std above 0")
    return list(mean), list(std)


def _jitter(strength: tuple[float, float, float, float]) -> v2.ColorJitter:
    try:
        return v2.ColorJitter(*strength)
    except ValueError as error:
        raise ValueError(f"jitter: found {list(strength)}; {error}") from error


def _tensor(image: Any) -> Tensor:
    """Any image as float [3 H W] in [0, 1]."""
    return F.to_dtype(image if isinstance(image, Tensor) else F.pil_to_tensor(image), torch.float32, scale=True)


@hookimpl
def sslzoo_views() -> dict[str, type]:
    """The views `crop` and `center`."""
    return {"crop": Crop, "center": Center}
