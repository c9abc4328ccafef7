"""What others may rely on: the public names, and that importing sslzoo loads little."""

import subprocess
import sys

import sslzoo

NAMES = [
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
    "__version__",
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


def test_public_names_are_pinned():
    assert sorted(sslzoo.__all__) == sorted(NAMES)
    for name in NAMES:
        assert getattr(sslzoo, name) is not None


def test_importing_loads_neither_torch_nor_plugins():
    code = "import sys, sslzoo, sslzoo.cli; print([m for m in sys.modules if m in ('torch', 'timm', 'sslzoo_vit')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(sslzoo, "Trainer")
