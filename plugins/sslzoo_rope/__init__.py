"""Who sees and who guesses, where positions turn queries and keys? A transformer without biases, and a reader of it."""

from __future__ import annotations

from sslzoo import hookimpl
from sslzoo_rope.encoder import RopeViT
from sslzoo_rope.predictor import RopeCross


@hookimpl
def sslzoo_encoders() -> dict[str, type]:
    """The encoder `vit-rope`."""
    return {"vit-rope": RopeViT}


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `cross-rope`."""
    return {"cross-rope": RopeCross}
