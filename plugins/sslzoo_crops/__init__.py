"""Which part of an image does a view show, and in which colors? torchvision's transforms, and the box of the cut.

Views are bytes: whoever reads them normalizes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from sslzoo import Photo, hookimpl
from sslzoo.keys import Areas, Aspects, NotNegative, Positive, Range, Rate, Side, Sigmas

Mean = tuple[Rate, Rate, Rate]
Std = tuple[Positive, Positive, Positive]
Jitter = tuple[NotNegative, NotNegative, NotNegative, Annotated[float, Field(ge=0, le=0.5)]]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


class Crop:
    """torchvision's RandomResizedCrop, then at will flip, color jitter, grayscale, blur and solarize.

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
        mean: what is subtracted from each channel, in [0, 1], on the way to the encoder.
        std: what each channel is divided by then.
    """

    def __init__(
        self,
        *,
        size: Side | tuple[Side, Side] = 224,
        scale: Areas = (0.3, 1.0),
        ratio: Aspects = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        flip: Rate = 0.0,
        jitter: Jitter = (0.0, 0.0, 0.0, 0.0),
        jitter_rate: Rate = 0.8,
        grayscale: Rate = 0.0,
        blur: Rate = 0.0,
        blur_sigma: Sigmas = (0.1, 2.0),
        solarize: Rate = 0.0,
        mean: Mean = MEAN,
        std: Std = STD,
    ) -> None:
        self.size = _side(size)
        self.crop = v2.RandomResizedCrop(self.size, scale, ratio)
        self.interpolation: Interpolation = interpolation
        self.flip = flip
        colors = [
            (jitter_rate * any(jitter), v2.RandomApply([v2.ColorJitter(*jitter)], jitter_rate)),
            (grayscale, v2.RandomGrayscale(grayscale)),
            (blur, v2.RandomApply([Blur(blur_sigma, min(self.size))], blur)),
            (solarize, v2.RandomSolarize(0.5, solarize)),
        ]
        self.colors = [change for rate, change in colors if rate > 0]  # what never happens draws nothing
        self.mean, self.std = list(mean), list(std)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view, bytes [3 H W], and its box: top, left, height, width as fractions of the image."""
        height, width = F.get_size(image)
        drawn = self.crop.make_params([image])
        top, left, tall, wide = (drawn[key] for key in ("top", "left", "height", "width"))
        view = _cut(image, (top, left, tall, wide), self.size, self.interpolation)
        if self.flip and torch.rand(1) < self.flip:  # as RandomHorizontalFlip draws
            view = view.flip(-1)
        if self.colors:  # computed in floats, rounded once
            view = F.to_dtype(view, torch.float32, scale=True)
            for change in self.colors:
                view = change(view)
            view = (view * 255).round().clamp(0, 255).to(torch.uint8)
        return view, torch.tensor([top / height, left / width, tall / height, wide / width])


class RandAugmented:
    """The training view of supervised fine-tuning (DeiT, MAE): crop, flip, timm's RandAugment and random erasing.

    Args:
        size: side of the view in pixels, or [height, width].
        scale: share of the image's area that is cut out, [low, high].
        ratio: width over height of the cut, [low, high], drawn on a logarithmic scale.
        interpolation: nearest, bilinear, bicubic or lanczos.
        flip: how often the view is mirrored.
        operations: changes by RandAugment to each view; 0 for none.
        magnitude: how strong they are, of 10.
        spread: standard deviation of the magnitude.
        erase: how often a part of the view is replaced by noise.
        mean: what is subtracted from each channel, in [0, 1].
        std: what each channel is divided by then.
    """

    def __init__(
        self,
        *,
        size: Side | tuple[Side, Side] = 224,
        scale: Areas = (0.08, 1.0),
        ratio: Aspects = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        flip: Rate = 0.5,
        operations: Annotated[int, Field(ge=0, le=16)] = 2,
        magnitude: Annotated[int, Field(ge=0, le=10)] = 9,
        spread: Annotated[float, Field(ge=0, le=10)] = 0.5,
        erase: Rate = 0.25,
        mean: Mean = MEAN,
        std: Std = STD,
    ) -> None:
        self.cut = Crop(size=size, scale=scale, ratio=ratio, interpolation=interpolation, flip=flip, mean=mean, std=std)
        self.size = self.cut.size
        words = f"rand-m{magnitude}-n{operations}-mstd{spread:.4f}-inc1"  # inc1: more magnitude, more change
        about: dict[str, Any] = {"translate_const": int(min(self.size) * 0.45)}
        about |= {"img_mean": tuple(round(255 * one) for one in mean)}
        about |= {"interpolation": Image.Resampling[interpolation.upper()]}
        self.change = rand_augment_transform(words, about) if operations else None
        for change in self.change.ops if self.change is not None else ():
            if change.name == "PosterizeIncreasing":  # at its strongest timm keeps 0 bits, which Pillow refuses
                change.level_fn = partial(_one_bit_at_least, change.level_fn)
        self.erase = RandomErasing(erase, mode="pixel", device="cpu") if erase else None

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view [3 H W], and its box: top, left, height, width as fractions of the image."""
        view, box = self.cut(image)
        if self.change is not None:
            view = F.pil_to_tensor(self.change(F.to_pil_image(view)))
        view = F.normalize(F.to_dtype(view, torch.float32, scale=True), self.cut.mean, self.cut.std)
        return view if self.erase is None else self.erase(view), box


class Center:
    """For evaluation: resize the shorter side, cut out the center.

    Args:
        size: side of the view in pixels, or [height, width].
        resize: the shorter side after resizing; size / 0.875 if left out (256 for 224). More where an oblong view would
            reach beyond the image.
        interpolation: nearest, bilinear, bicubic or lanczos.
        mean: what is subtracted from each channel, in [0, 1], on the way to the encoder.
        std: what each channel is divided by then.
    """

    def __init__(
        self,
        *,
        size: Side | tuple[Side, Side] = 224,
        resize: Side | None = None,
        interpolation: Interpolation = "bicubic",
        mean: Mean = MEAN,
        std: Std = STD,
    ) -> None:
        self.size = _side(size)
        self.resize = round(min(self.size) / 0.875) if resize is None else resize
        if self.resize < min(self.size):
            raise ValueError(f"resize: found {resize}, smaller than the size {self.size[0]} x {self.size[1]}")
        self.interpolation: Interpolation = interpolation
        self.mean, self.std = list(mean), list(std)

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """A view, bytes [3 H W], and its box: top, left, height, width as fractions of the image."""
        height, width = F.get_size(image)
        shorter = min(height, width)
        covers = (math.ceil(self.size[0] * shorter / height), math.ceil(self.size[1] * shorter / width))
        side = max(self.resize, *covers)
        tall, wide = side * height // shorter, side * width // shorter  # as torchvision rounds
        view = F.center_crop(_cut(image, (0, 0, height, width), (tall, wide), self.interpolation), list(self.size))
        part = self.size[0] / tall, self.size[1] / wide
        return view, torch.tensor([(1 - part[0]) / 2, (1 - part[1]) / 2, *part])


class Blur(v2.GaussianBlur):
    """torchvision's GaussianBlur with a kernel of three deviations each way, convolved by rows and then by columns.

    The class itself convolves with the whole square, which is the same filter at several times the cost
    (tests/parts/test_crops.py compares them; benchmarks/views.py has the cost).
    """

    def __init__(self, sigma: Range, side: int) -> None:
        half = min(math.ceil(3 * sigma[1]), side - 1)  # what is mirrored at the rim must lie in the view
        self.width = 2 * half + 1
        super().__init__(self.width, sigma)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blurs by rows, then by columns."""
        rows = F.gaussian_blur(inpt, [self.width, 1], params["sigma"])
        return F.gaussian_blur(rows, [1, self.width], params["sigma"])


_MODES = {mode.value: mode for mode in InterpolationMode}


def _one_bit_at_least(bits: Any, *magnitude: Any) -> tuple[int]:
    return (max(1, *bits(*magnitude)),)


def _side(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _cut(image: Any, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """A box (top, left, height, width) of any image, resized: bytes [3 H W]."""
    if isinstance(image, Photo):
        return image.cut(box, size, interpolation)
    view = F.resized_crop(image, *box, list(size), _MODES[interpolation], antialias=True)
    return view if isinstance(view, Tensor) else F.pil_to_tensor(view)


@hookimpl
def sslzoo_views() -> dict[str, type]:
    """The views `crop`, `rand-augment` and `center`."""
    return {"crop": Crop, "rand-augment": RandAugmented, "center": Center}
