"""What is said of a whole image? A projection of the encoder's summary, with prototypes or a second guess at will."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.keys import Codes, Count, Deviation, Width
from sslzoo.nn import BatchNorm, WeightNorm, mlp, start_normal

ACTS = {"gelu": nn.GELU, "relu": partial(nn.ReLU, inplace=True)}


class Head(nn.Module):
    """A projection of the summary, that a teacher may copy (ema, project): signal image [s e].

    SimCLR v2: layers 3, norm batch, last norm. BYOL: norm batch, guess. MSN, VICReg, LeJEPA: layers 3, norm batch.
    DINO: layers 3, prototypes. iBOT: patches too, and they share the head.

    Args:
        width: channels of the projection.
        hidden: channels of the layers before.
        layers: linear layers.
        norm: what stands between a hidden layer and its activation: none, or batch (over all ranks).
        act: gelu or relu, after hidden layers.
        bias: give hidden layers a bias.
        last_bias: give the last layer a bias.
        last_norm: put a norm after the last layer too.
        embed: channels of a linear layer before the head, if given (LeJEPA's embedding).
        prototypes: score the normalized projection against this many directions; 0 for the projection itself.
        gain: let each prototype learn a gain (DINO: norm_last_layer false).
        guess: hidden channels of a guesser, one hidden layer more, that the teacher does not have; 0 for none (BYOL).
        patches: say the same of target patches: signal patch [t e]. The encoder keeps hidden patches (hidden: fill).
        init: deviation of the starting weights, prototypes apart; torch's own if left out.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: Width = 256,
        hidden: Width = 2048,
        layers: Count = 3,
        norm: Literal["none", "batch"] = "none",
        act: Literal["gelu", "relu"] = "gelu",
        bias: bool = True,
        last_bias: bool = True,
        last_norm: bool = False,
        embed: Width | None = None,
        prototypes: Literal[0] | Codes = 0,
        gain: bool = False,
        guess: Literal[0] | Width = 0,
        patches: bool = False,
        init: Deviation | None = None,
    ) -> None:
        super().__init__()
        if guess and prototypes:
            raise ValueError("guess, prototypes: a head has one of them at most")
        layer = partial(mlp, act=ACTS[act], norm=BatchNorm if norm == "batch" else None, bias=bias, last_bias=last_bias)
        body = layer([encoder.width if embed is None else embed, *[hidden] * (layers - 1), width], last_norm=last_norm)
        self.projector = Projector(
            encoder.width, embed, body, WeightNorm(width, prototypes, gain=gain) if prototypes else None
        )
        self.guess = layer([width, guess, width]) if guess else None
        self.patches = patches
        said = prototypes or width
        self.outputs = {"image": Signal("image", said)} | ({"patch": Signal("patch", said)} if patches else {})
        self.blocks = nn.ModuleList()
        if init is not None:
            self.apply(partial(start_normal, std=init))

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"image": [s e]}, and with `patches` {"patch": [t e]} of groups that have masks."""
        said = {"image": self._say(tokens.summary)}
        if self.patches and target is not None:
            said["patch"] = self._say(target.flat(tokens.at(target)))
        return said

    def _say(self, x: Tensor) -> Tensor:
        x = self.projector(x)
        return x if self.guess is None else self.guess(x)


class Projector(nn.Module):
    """Embedding, layers and prototypes of a head, one after another: [.. d] -> [.. e]."""

    def __init__(self, inputs: int, embed: int | None, body: nn.Module, prototypes: nn.Module | None) -> None:
        super().__init__()
        self.embed = None if embed is None else nn.Linear(inputs, embed)
        self.mlp, self.last_layer = body, prototypes

    def forward(self, x: Tensor) -> Tensor:
        """Projections, or scores of prototypes."""
        shape = x.shape[:-1]
        x = x.flatten(0, -2)  # batch norms look for channels in the second dimension
        x = self.mlp(x if self.embed is None else self.embed(x))
        x = x if self.last_layer is None else self.last_layer(F.normalize(x, dim=-1))
        return x.unflatten(0, shape)


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `head`."""
    return {"head": Head}
