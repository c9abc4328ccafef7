"""How are torchvision's own data sets used by name?"""

from __future__ import annotations

import fcntl
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

from sslzoo.errors import did_you_mean
from sslzoo.keys import Classes, Free
from sslzoo_datasets.images import rgb


class Torchvision:
    """A torchvision data set of labeled images, by name: CIFAR10, STL10, Flowers102, ...

    Task: class.

    Args:
        name: the class in torchvision.datasets.
        root: the folder it lies in.
        split: train, test, ..., where the data set has splits; a data set with a switch `train` takes train or test.
        download: fetch it if it is not there.
        classes: number of classes; taken from the data set, or counted, if left out.
    """

    def __init__(
        self,
        *,
        name: str,
        root: Annotated[Path, Free()],
        split: str = "train",
        download: Annotated[bool, Free()] = False,
        classes: Classes | None = None,
    ) -> None:
        from torchvision import datasets

        known = [one for one in datasets.__all__ if inspect.isclass(getattr(datasets, one))]
        if name not in known:
            raise ValueError(f"name: torchvision has no data set {name!r}{did_you_mean(name, known)}")
        make = getattr(datasets, name)
        takes = inspect.signature(make).parameters
        given: dict[str, Any] = {"root": str(root)}
        if "train" in takes:
            if split not in ("train", "test"):
                raise ValueError(f"split: found {split!r}; {name} has train and test")
            given["train"] = split == "train"
        elif "split" in takes:
            given["split"] = split
        elif split != "train":
            raise ValueError(f"split: found {split!r}; {name} has no splits")
        if "download" in takes:
            given["download"] = download
        try:
            with _alone(root) if given.get("download") else nullcontext():
                self.images = make(**given)
        except RuntimeError as error:
            raise ValueError(f"root: {root}: {error}") from error
        count = (
            classes
            or len(getattr(self.images, "classes", ()))
            or 1 + max(int(self._label(i)) for i in range(len(self)))
        )
        listed = self._listed()
        without = listed is not None and any(int(one) < 0 for one in listed)  # as of STL10's unlabeled images
        self.tasks: Mapping[str, int] = {} if without else {"class": count}
        names = tuple(map(str, getattr(self.images, "classes", ())))
        self.class_names: Mapping[str, Sequence[str]] = {"class": names} if len(names) == count else {}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> Any:
        """Image i as RGB."""
        return rgb(self.images[i][0])

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": int(self._label(i))} if self.tasks else {}

    def _label(self, i: int) -> Any:
        listed = self._listed()
        return self.images[i][1] if listed is None else listed[i]

    def _listed(self) -> Any:
        return getattr(self.images, "targets", getattr(self.images, "labels", getattr(self.images, "_labels", None)))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time: of several that would fetch the same files, the first does and the others find them.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".download.lock").open("a")
    except OSError as error:
        raise ValueError(f"root: {root} cannot be written: {error}") from error
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
