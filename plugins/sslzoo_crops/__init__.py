"""Which part of an image does a view show, and in which colours?"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

from sslzoo import hookimpl

Pair = tuple[float, float]
Triple = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


class Crop:
    """RandomResizedCrop, then at will flip, colour jitter, grey, blur and solarise; normalised.

    The defaults are I-JEPA's: a bilinear crop and nothing else.

    Args:
        size: side of the view in pixels, or [height, width].
        scale: share of the image's area that is cut out, [low, high].
        ratio: width over height of the cut, [low, high], drawn on a logarithmic scale.
        interpolation: nearest, bilinear, bicubic or lanczos (images that are not tensors).
        flip: how often the view is mirrored.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_rate: how often colours are jittered.
        grey: how often colour is dropped.
        blur: how often the view is blurred.
        blur_sigma: deviation of the blur in pixels, [low, high].
        solarise: how often bright pixels are inverted, from 0.5 on.
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
        grey: float = 0.0,
        blur: float = 0.0,
        blur_sigma: Pair = (0.1, 2.0),
        solarise: float = 0.0,
        mean: Triple = MEAN,
        std: Triple = STD,
    ) -> None:
        for name, (low, high) in {"scale": scale, "ratio": ratio, "blur_sigma": blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name}: found [{low:g}, {high:g}]; [low, high] with 0 < low <= high is wanted")
        if scale[1] > 1:
            raise ValueError(f"scale: found [{scale[0]:g}, {scale[1]:g}]; a cut covers at most the whole image, 1.0")
        rates = {"flip": flip, "jitter_rate": jitter_rate, "grey": grey, "blur": blur, "solarise": solarise}
        _check_rates(rates)
        self.size = _side(size)
        self.scale, self.ratio, self.interpolation = scale, ratio, _MODES[interpolation]
        self.rates, self.jitter, self.sigma = rates, jitter, blur_sigma
        self.mean, self.std = mean, std

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view [3 H W] and its box: top, left, height, width as fractions of the image."""
        height, width = F.get_size(image)
        top, left, tall, wide = self._cut(height, width)
        view = F.resized_crop(image, top, left, tall, wide, list(self.size), self.interpolation, antialias=True)
        view = F.horizontal_flip(view) if _happens(self.rates["flip"]) else view
        view = _tensor(view)
        view = self._coloured(view)
        box = torch.tensor([top / height, left / width, tall / height, wide / width])
        return _normalise(view, self.mean, self.std), box

    def _cut(self, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = (math.log(one) for one in self.ratio)
        for area, shape in torch.rand(10, 2).tolist():  # ten tries, as RandomResizedCrop
            area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                down, right = torch.rand(2).tolist()
                return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])  # the largest middle part of a legal shape
        wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def _coloured(self, view: Tensor) -> Tensor:
        if any(self.jitter) and _happens(self.rates["jitter_rate"]):
            view = _jitter(view, self.jitter)
        if _happens(self.rates["grey"]):
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        if _happens(self.rates["blur"]):
            sigma = self.sigma[0] + torch.rand(()).item() * (self.sigma[1] - self.sigma[0])
            view = F.gaussian_blur(view, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)
        return F.solarize(view, 0.5) if _happens(self.rates["solarise"]) else view


class Centre:
    """For evaluation: resize the shorter side, cut out the centre, normalise.

    Args:
        size: side of the view in pixels, or [height, width].
        resize: the shorter side after resizing; size / 0.875 if left out (256 for 224).
        interpolation: nearest, bilinear, bicubic or lanczos (images that are not tensors).
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
        self.mean, self.std = mean, std

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view [3 H W] and its box: top, left, height, width as fractions of the image."""
        image = _tensor(image)
        if min(image.shape[-2:]) != self.resize:
            image = F.resize(image, [self.resize], self.interpolation, antialias=True).clamp(0, 1)
        height, width = image.shape[-2:]
        view = F.center_crop(image, list(self.size))
        box = torch.tensor(
            [
                (1 - self.size[0] / height) / 2,
                (1 - self.size[1] / width) / 2,
                self.size[0] / height,
                self.size[1] / width,
            ]
        )
        return _normalise(view, self.mean, self.std), box


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


def _happens(rate: float) -> bool:
    # A view that never does something draws nothing for it.
    return rate > 0 and torch.rand(()).item() < rate


def _tensor(image: Any) -> Tensor:
    """Any image as float [3 H W] in [0, 1]."""
    return F.to_dtype(image if isinstance(image, Tensor) else F.pil_to_tensor(image), torch.float32, scale=True)


def _normalise(view: Tensor, mean: Triple, std: Triple) -> Tensor:
    return (view - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _jitter(view: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue in random order, each by a factor around 1 (hue: a shift around 0)."""
    factors = (torch.rand(4) * 2 - 1).tolist()
    for which in torch.randperm(4).tolist():
        shift = factors[which] * strength[which]
        if not strength[which]:
            continue
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[which]
        view = change(view, shift if which == 3 else max(0.0, 1 + shift))
    return view


@hookimpl
def sslzoo_views() -> dict[str, type]:
    """The views `crop` and `centre`."""
    return {"crop": Crop, "centre": Centre}
