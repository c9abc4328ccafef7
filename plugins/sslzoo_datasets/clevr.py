"""How are the tasks of CLEVR told? By VTAB's definitions, from the data set's own layout."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image

from sslzoo.keys import Free
from sslzoo_datasets.images import digest, read

FEWEST, MOST = 3, 10  # objects of a scene
DEPTHS = (8.0, 8.5, 9.0, 9.5, 10.0)  # a distance falls in the class of how many of these lie strictly below it


class Clevr:
    """CLEVR v1.0 (Johnson et al. 2017) as it is unpacked: images/SPLIT/*.png and scenes/CLEVR_SPLIT_scenes.json.

    Tasks as in VTAB (Zhai et al. 2019): count, how many objects, 3 to 10 in 8 classes; distance, the camera's depth of
    the nearest object in 6 classes, with borders at 8, 8.5, 9, 9.5 and 10. The test images of VTAB and of VISSL are the
    15,000 of the split val, for those of the split test have no scenes.

    Args:
        root: the folder CLEVR_v1.0.
        split: train or val.
    """

    def __init__(self, *, root: Annotated[Path, Free()], split: Literal["train", "val"] = "train") -> None:
        path = root / "scenes" / f"CLEVR_{split}_scenes.json"
        try:
            scenes = json.loads(path.read_text())["scenes"]
            self.files = [str(scene["image_filename"]) for scene in scenes]
            self.labels = [labels(scene["objects"]) for scene in scenes]
        except OSError as error:
            text = f"root: {path} cannot be read ({error.strerror}); root is the folder CLEVR_v1.0"
            raise ValueError(text) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"root: {path} does not hold scenes of CLEVR v1.0: {error}") from error
        self.images = root / "images" / split
        self.tasks: Mapping[str, int] = {"count": MOST - FEWEST + 1, "distance": len(DEPTHS) + 1}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """Of the images' names, in order."""
        return digest(self.files)

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        return read((self.images / self.files[i]).read_bytes())

    def label(self, i: int) -> Mapping[str, int]:
        """The classes of image i."""
        return self.labels[i]


def labels(objects: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """The classes of a scene with these objects; raises ValueError if there are too few or too many."""
    if not FEWEST <= len(objects) <= MOST:
        raise ValueError(f"a scene of {len(objects)} objects; {FEWEST} to {MOST} are known")
    nearest = min(float(one["pixel_coords"][2]) for one in objects)
    return {"count": len(objects) - FEWEST, "distance": bisect_left(DEPTHS, nearest)}
