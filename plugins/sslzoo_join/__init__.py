"""Who guesses, where several guess at once? Any predictors side by side, each for a loss of its own."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from torch import Tensor, nn

from sslzoo import PartsOf, Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder


class Join(nn.Module):
    """Several predictors on one encoder, such as I-JEPA's and a head of prototypes.

    Their signals keep their names; where two predictors use one name, it becomes PREDICTOR_NAME (tokens_patch,
    pixels_patch). A teacher that projects copies the only projector there is, or that of the part it names
    (`ema`, project: PREDICTOR).

    Args:
        parts: predictors by name, each {use: WORD, key: value, ...}.
    """

    def __init__(self, encoder: Encoder, *, parts: Annotated[dict[str, Any], PartsOf("predictors")]) -> None:
        super().__init__()
        if len(parts) < 2:
            raise ValueError(f"parts: found {len(parts)}; two predictors or more, by name")
        self.parts = nn.ModuleDict(parts)
        often = Counter(key for part in self.parts.values() for key in part.outputs)  # type: ignore[union-attr]
        self.names = {
            name: {key: key if often[key] == 1 else f"{name}_{key}" for key in part.outputs}  # type: ignore[union-attr]
            for name, part in self.parts.items()
        }
        self.outputs: dict[str, Signal] = {
            self.names[name][key]: signal
            for name, part in self.parts.items()
            for key, signal in part.outputs.items()  # type: ignore[union-attr]
        }

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of all parts."""
        return nn.ModuleList(block for part in self.parts.values() for block in part.blocks)  # type: ignore[union-attr]

    @property
    def projector(self) -> nn.Module | None:
        """The only projector among the parts."""
        found = [part.projector for part in self.parts.values() if part.projector is not None]
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Every signal of every part."""
        said = {name: part(tokens, target, at) for name, part in self.parts.items()}
        return {self.names[name][key]: value for name, all_of in said.items() for key, value in all_of.items()}


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `join`."""
    return {"join": Join}
