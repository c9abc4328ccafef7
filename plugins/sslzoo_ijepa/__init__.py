"""I-JEPA's own parts: multi-block masks and predictors (Assran et al. 2023, arXiv 2301.08243)."""

from __future__ import annotations

from sslzoo import hookimpl
from sslzoo_ijepa.masks import Multiblock, MultiblockLegacy
from sslzoo_ijepa.predictors import Cross, Joint


@hookimpl
def sslzoo_masks() -> dict[str, type]:
    """The samplers `multiblock` and `multiblock-legacy`."""
    return {"multiblock": Multiblock, "multiblock-legacy": MultiblockLegacy}


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictors `ijepa` and `cross`."""
    return {"ijepa": Joint, "cross": Cross}
