"""What may a key of a part hold? Types to write beside keyword-only arguments; recipes are held to them.

Numbers have bounds, so that what makes no sense is refused where it stands, before anything is made of it:

    def __init__(self, *, width: Width = 384, hide: Fraction = 0.75, temperature: Positive = 0.1) -> None:

Any other bound is pydantic's: `Annotated[int, Field(ge=2, le=31)]`. A count that may be none: `Literal[0] | Count`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field


@dataclass(frozen=True)
class Free:
    """Marks a key that may change when a run is resumed, for it does not change what is computed.

    Written beside the type: `cache: Annotated[bool, Free()] = False`.
    """


@dataclass(frozen=True)
class PartsOf:
    """Marks a key that holds parts by name, each a mapping of `use` and its keys; the constructor gets them made.

    `parts: Annotated[dict[str, Predictor], PartsOf("predictors")]`: each is made of what the engine gives the
    constructor itself, so they are of its own family. Their keys are checked, written out and compared at a resume as
    those of any part.
    """

    family: str


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"found [{ends[0]:g}, {ends[1]:g}]; [low, high] with low <= high is wanted")
    return ends


# Counts. Their upper bounds are generous, and below what no machine would make.
Count = Annotated[int, Field(ge=1, le=1024)]  # layers, heads, blocks, copies
Width = Annotated[int, Field(ge=1, le=2**16)]  # channels of a layer
Codes = Annotated[int, Field(ge=2, le=2**18)]  # codes, prototypes, clusters
Classes = Annotated[int, Field(ge=1, le=2**18)]  # of a task
Side = Annotated[int, Field(ge=1, le=2**14)]  # pixels
GridCount = Annotated[int, Field(ge=1, le=2**16)]  # patches of a grid

MlpRatio = Annotated[float, Field(ge=0.25, le=64)]  # hidden channels over width
Deviation = Annotated[float, Field(ge=0, le=10)]  # of starting weights

Positive = Annotated[float, Field(gt=0)]  # temperatures, deviations
Epsilon = Annotated[float, Field(gt=0, le=1)]  # what keeps a quotient from 0 / 0
NotNegative = Annotated[float, Field(ge=0)]  # weights of terms, penalties
Rate = Annotated[float, Field(ge=0, le=1)]  # how often
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # what is dropped, or kept of a running mean
Share = Annotated[float, Field(gt=0, le=1)]  # some or all
Fraction = Annotated[float, Field(gt=0, lt=1)]  # some, not all
Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]  # [low, high]
_Aspect = Annotated[float, Field(ge=0.01, le=100)]
Aspects = Annotated[tuple[_Aspect, _Aspect], AfterValidator(_rising)]  # [low, high] of one side over the other
_Area = Annotated[float, Field(ge=1e-4, le=1)]
Areas = Annotated[tuple[_Area, _Area], AfterValidator(_rising)]  # [low, high] of an image's area
_Sigma = Annotated[float, Field(gt=0, le=1000)]
Sigmas = Annotated[tuple[_Sigma, _Sigma], AfterValidator(_rising)]  # [low, high] of a blur, in pixels
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_rising)]  # [low, high] of a whole
