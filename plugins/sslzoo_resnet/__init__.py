"""Who sees, where whole images are seen? Residual networks of timm's, batch norms over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import Field
from timm.models.resnet import ResNet as TimmResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import Tensor, nn

from sslzoo import Grid, Patches, Tokens, hookimpl
from sslzoo.nn import batch_norm_over_ranks

CHANNELS = (64, 128, 256, 512)  # of the four stages, before `widen` (He et al. 2016)
# Two convolutions of 3 x 3, each of the whole input, and at least 32 channels to choose between them by.
KERNELS = {"kernel_size": [3, 3], "split_input": False, "rd_ratio": 1 / 16, "rd_divisor": 32}


class ResNet(nn.Module):
    """Residual network (timm's); its last map is the patches, their mean the summary. It sees whole images, no masks.

    He et al. 2016; SimCLR v2 (Chen et al. 2020) and BYOL (Grill et al. 2020) widen all channels.

    Args:
        model: timm's name, such as resnet50, resnet152 or wide_resnet50_2.
        widen: factor of all channels.
        selective: selective kernels and the stem and shortcuts of ResNet-D, as SimCLR v2 has them (a model of
            bottlenecks: resnet50 or deeper). timm's own skresnet50 is another network, with split inputs.
        stem: imagenet (7 x 7, or ResNet-D's three of 3 x 3; stride 2, pooled), or small (3 x 3 at full size, for images
            of 32 pixels).
    """

    ragged = False

    def __init__(
        self,
        *,
        model: str = "resnet50",
        widen: Annotated[int, Field(ge=1, le=64)] = 1,
        selective: bool = False,
        stem: Literal["imagenet", "small"] = "imagenet",
    ) -> None:
        super().__init__()
        net = _made(model, widen, selective)
        if stem == "small":
            net.conv1, net.maxpool = _stem(widen, 3, 1), nn.Identity()
        elif widen > 1 and not selective:
            net.conv1 = _stem(widen, 7, 2)
        self.net = batch_norm_over_ranks(net)
        self.width, self.step = int(net.num_features), 32 if stem == "imagenet" else 8

    @property
    def blocks(self) -> nn.ModuleList:
        """Residual blocks of all stages."""
        return nn.ModuleList(block for stage in self._stages() for block in stage)  # type: ignore[attr-defined]

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of the last map."""
        return math.ceil(size[0] / self.step), math.ceil(size[1] / self.step)

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of timm's and torchvision's networks by our names; their classifier keeps its own, `fc`."""
        ours = ("net.", "fc.")
        return {name if name.startswith(ours) else f"net.{name}": value for name, value in weights.items()}

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0) -> Tokens:
        """Tokens of whole images, [s 3 H W] -> [s N d]; `layers` are outputs of the last blocks of the last stage.

        Raises:
            ValueError: patches were hidden, or more layers asked for than the last stage has.
        """
        if context is not None:
            raise ValueError("a residual network sees whole images: leave out masks of its views")
        *first, last = self._stages()
        if not 0 <= layers <= len(last):  # type: ignore[arg-type]
            raise ValueError(f"layers: found {layers}; the last stage has {len(last)} blocks")  # type: ignore[arg-type]
        net = self.net
        x = net.maxpool(net.act1(net.bn1(net.conv1(pixels))))  # type: ignore[operator]
        for stage in first:
            x = stage(x)
        maps = []
        for block in last:  # type: ignore[attr-defined]
            x = block(x)
            maps.append(x)
        grid = (x.shape[-2], x.shape[-1])
        outs = tuple(one.flatten(2).transpose(1, 2) for one in maps)
        patches = outs[-1]
        index = torch.arange(patches.shape[1], device=x.device).expand(len(x), -1)
        return Tokens(patches, index, patches.mean(1), grid, layers=outs[len(outs) - layers :])

    def _stages(self) -> list[nn.Module]:
        return [self.net.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]


def _made(model: str, widen: int, selective: bool) -> TimmResNet:
    if not timm.is_model(model):
        raise ValueError(f"model: timm has no {model!r}; such as resnet18, resnet50, resnet152, wide_resnet50_2")
    keys: dict[str, Any] = {}
    if widen > 1 or selective:  # of timm's stems, the deep one can be made wider
        keys = {"channels": tuple(widen * one for one in CHANNELS)}
        keys |= {"stem_type": "deep", "stem_width": CHANNELS[0] * widen // 2}
    if selective:
        keys |= {"block": SelectiveKernelBottleneck, "block_args": {"sk_kwargs": KERNELS}, "avg_down": True}
    net = timm.create_model(model, num_classes=0, **keys)
    if not isinstance(net, TimmResNet):
        raise ValueError(f"model: {model!r} is no residual network; such as resnet18, resnet50, resnet152")
    return net


def _stem(widen: int, side: int, stride: int) -> nn.Conv2d:
    """One convolution in place of the first ones."""
    conv = nn.Conv2d(3, CHANNELS[0] * widen, side, stride, side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@hookimpl
def sslzoo_encoders() -> dict[str, type]:
    """The encoder `resnet`."""
    return {"resnet": ResNet}
