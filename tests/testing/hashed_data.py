"""Data sets that are opened in another process: apart from others, whose imports would take their time there."""

from pathlib import Path
from types import MappingProxyType

from PIL import Image


class Named:
    """Its fingerprint is the same in each process."""

    tasks = MappingProxyType({})
    fingerprint = "three images"

    def __len__(self):
        return 3

    def image(self, i):
        return Image.new("RGB", (4, 4), (i, 0, 0))

    def label(self, i):
        return {}


class Hashed(Named):
    """Its fingerprint is another in each process."""

    def __init__(self):
        self.fingerprint = str(hash("three images"))


class Unordered(Named):
    """Its images stand in the order of a set."""

    def __init__(self):
        self.names = list({str(i) for i in range(250)})

    def __len__(self):
        return 250

    def image(self, i):
        return Image.new("RGB", (4, 4), (int(self.names[i]), 0, 0))


class Listed(Named):
    """Its images stand in the order in which their folder names them."""

    def __init__(self):
        self.names = [path.name for path in Path(__file__).parent.iterdir()]

    def image(self, i):
        return Image.new("RGB", (4, 4), (sum(self.names[i].encode()) % 256, i, 0))
