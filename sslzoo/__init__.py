"""sslzoo: self-supervised learning from images, as sentences of named parts.

The names below are what plugins and scripts may rely on. They are imported on first use: `import sslzoo` loads neither
torch nor any plugin.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslzoo.contracts import (
        Batch,
        Features,
        Grid,
        Group,
        Mask,
        Pairing,
        Patches,
        Reading,
        Signal,
        Student,
        Tokens,
    )
    from sslzoo.errors import ImageError, PluginError, RecipeError, RunError, UserError
    from sslzoo.evaluate.trained import load_encoder, load_view
    from sslzoo.hooks import hookimpl
    from sslzoo.keys import Free, PartsOf
    from sslzoo.photo import Photo
    from sslzoo.plugins import catalogue, load
    from sslzoo.progress import Progress
    from sslzoo.recipe.build import make
    from sslzoo.recipe.schedule import Duration, Schedule
    from sslzoo.rng import Rng
    from sslzoo.run.parallel import all_mean, all_sum, gather, world_size

# DDP warns of every run whose parameters are all used, once a process and from C++, past Python's filters: looking for
# unused ones is how gradients are summed in one order (see run/parallel.py). Read when torch is imported; errors stay.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

_HOMES = {
    "contracts": "Batch Features Grid Group Mask Pairing Patches Reading Signal Student Tokens",
    "errors": "ImageError PluginError RecipeError RunError UserError",
    "evaluate.trained": "load_encoder load_view",
    "photo": "Photo",
    "hooks": "hookimpl",
    "keys": "Free PartsOf",
    "run.parallel": "all_mean all_sum gather world_size",
    "plugins": "catalogue load",
    "progress": "Progress",
    "rng": "Rng",
    "recipe.build": "make",
    "recipe.schedule": "Duration Schedule",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Batch",
    "Duration",
    "Features",
    "Free",
    "Grid",
    "Group",
    "ImageError",
    "Mask",
    "Pairing",
    "PartsOf",
    "Patches",
    "Photo",
    "PluginError",
    "Progress",
    "Reading",
    "RecipeError",
    "Rng",
    "RunError",
    "Schedule",
    "Signal",
    "Student",
    "Tokens",
    "UserError",
    "__version__",  # pyright: ignore[reportUnsupportedDunderAll] - worked out when asked for
    "all_mean",
    "all_sum",
    "catalogue",
    "gather",
    "hookimpl",
    "load",
    "load_encoder",
    "load_view",
    "make",
    "world_size",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("sslzoo")
    if name in _HOME_OF:
        return getattr(import_module(f"sslzoo.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'sslzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
