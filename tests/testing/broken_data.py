"""Views, data sets and probes that are wrong on purpose, each in one way; and the sound ones they are made from."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import torch
from hashed_data import Hashed, Listed, Unordered
from PIL import Image
from torchvision.transforms.v2 import functional as F  # noqa: N812


class Window:
    """A square of 24 pixels, cut anywhere; three times out of four turned over."""

    size = (24, 24)

    def __call__(self, image):
        x = image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)
        height, width = x.shape[-2:]
        top, left = self.corner(height - 24, width - 24)
        x = self.changed(x.float() / 255)[:, top : top + 24, left : left + 24]
        return x, self.box(top / height, left / width, 24 / height, 24 / width)

    def corner(self, down, across):
        return int(torch.randint(down + 1, ())), int(torch.randint(across + 1, ()))

    def changed(self, x):
        return x

    def box(self, *ends):
        return torch.tensor(ends)


class Larger(Window):
    """Is not of the size that it says."""

    size = (32, 32)


class WholeBox(Window):
    """Gives its box in whole numbers."""

    def box(self, *ends):
        return torch.tensor([24, 24, 24, 24])


class Beyond(Window):
    """Gives its box by its ends."""

    def box(self, top, left, height, width):
        return torch.tensor([top, left, top + height, left + width])


class Across(Window):
    """Gives its box as left, top."""

    def box(self, top, left, height, width):
        return torch.tensor([left, top, width, height])


class Everything(Window):
    """Says that it shows all of the image."""

    def box(self, *ends):
        return torch.tensor([0.0, 0.0, 1.0, 1.0])


class OwnChance(Window):
    """Draws from a generator of its own."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def corner(self, down, across):
        return int(self.random.integers(down + 1)), int(self.random.integers(across + 1))


class Tiring(Window):
    """Fades after a while."""

    calls = 0

    def changed(self, x):
        self.calls += 1
        return x if self.calls < 60 else x * 0.5


class InPlace(Window):
    """Darkens the image itself."""

    def __call__(self, image):
        seen = super().__call__(image)
        if isinstance(image, torch.Tensor):
            image.div_(2, rounding_mode="floor")
        return seen


class Shrinking(Window):
    """Shrinks the image itself, where it is one of Pillow's."""

    def __call__(self, image):
        if isinstance(image, Image.Image):
            image.thumbnail((40, 40))
            image = image.resize((40, 40))
        return super().__call__(image)


class Stuck(Window):
    """Keeps the first corner that it drew."""

    def corner(self, down, across):
        kept = self.__dict__.setdefault("kept", {})
        return kept.setdefault((down, across), super().corner(down, across))


class Doubled(Window):
    """Makes tensors brighter."""

    def __call__(self, image):
        x, box = super().__call__(image)
        return x * (3 if isinstance(image, torch.Tensor) else 1), box


class SetOrder(Window):
    """Turns colors in the order of a set."""

    def changed(self, x):
        for name in {f"turn {number}" for number in range(9)}:
            x = x.roll(1, 0) if name.endswith(("1", "4", "7")) else (x + int(name[-1]) / 100) ** 1.1
        return x


class Clocked(Window):
    """Cuts where the clock says, which stands still for a test's while."""

    def corner(self, down, across):
        return int(time.time() // 1000) % (down + 1), int(torch.randint(across + 1, ()))


class Kept(Window):
    """Keeps an image for each size."""

    def __init__(self):
        self.kept = {}

    def __call__(self, image):
        key = image.size if isinstance(image, Image.Image) else image.shape
        return super().__call__(self.kept.setdefault(key, image if isinstance(image, Image.Image) else image.clone()))


class Undivided(Window):
    """Gives pixels from 0 to 255 as floats."""

    def changed(self, x):
        return x * 255


class Threaded(Window):
    """Cuts in a thread that is started when it is made."""

    def __init__(self):
        self.threads = ThreadPoolExecutor(1)
        self.threads.submit(int).result()

    def __call__(self, image):
        return self.threads.submit(super().__call__, image).result()


class Middle(Window):
    """Sound: always the middle, in bytes."""

    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)

    def corner(self, down, across):
        return down // 2, across // 2

    def __call__(self, image):
        pixels, box = super().__call__(image)
        return (pixels * 255).round().byte(), box


VIEWS = {
    SetOrder: "processes",
    Clocked: "processes",
    Kept: "looks",
    Undivided: "shapes",
    Threaded: "workers",
    Stuck: "repeats",
    Doubled: "alike",
    Larger: "shapes",
    WholeBox: "shapes",
    Beyond: "boxes",
    OwnChance: "repeats",
    Tiring: "steady",
    Across: "cut",
    Everything: "cut",
    InPlace: "unchanged",
    Shrinking: "unchanged",
}


class Squares:
    """Three hundred images of one color each, with its number as the label."""

    tasks = MappingProxyType({"color": 5})
    class_names = MappingProxyType({"color": ("a", "b", "c", "d", "e")})

    def __len__(self):
        return 300

    def image(self, i):
        return torch.full((3, 4, 4), self.color(i), dtype=torch.uint8)

    def color(self, i):
        return 50 * (i % 5) + 1

    def label(self, i):
        return {"color": i % 5}


class RareGray(Squares):
    """The last image is gray."""

    def image(self, i):
        return Image.new("L", (4, 4)) if i == 299 else super().image(i)


class InOrder(Squares):
    """Reads on from where it is, whatever it is asked for."""

    place = 0

    def color(self, i):
        self.place += 1
        return self.place % 256


class OpenFile(Squares):
    """Holds a file open, whose place forked workers share."""

    def __init__(self):
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.file.write(bytes(50 * (i % 5) + 1 for i in range(300)))

    def color(self, i):
        self.file.seek(i)
        time.sleep(1e-3)
        return self.file.read(1)[0]


class RareLabel(Squares):
    """A label beyond the classes, late in the set."""

    def label(self, i):
        return {"color": 5 if i == 299 else i % 5}


class FickleLabel(Squares):
    """A label that changes."""

    def label(self, i):
        return {"color": int(torch.randint(5, ()))}


class Misnamed(Squares):
    """A name too few."""

    class_names = MappingProxyType({"color": ("a", "b", "c", "d")})


class NewEachTime(Squares):
    """Its fingerprint is another each time it is opened."""

    opened = 0

    def __init__(self):
        NewEachTime.opened += 1
        self.fingerprint = str(NewEachTime.opened)


class Grows(Squares):
    """Is longer each time it is opened."""

    opened = 300

    def __init__(self):
        super().__init__()
        Grows.opened += 1
        self.many = Grows.opened

    def __len__(self):
        return self.many


class Renumbered(Squares):
    """Numbers its classes anew each time it is opened."""

    opened = 0

    def __init__(self):
        super().__init__()
        Renumbered.opened += 1
        self.shift = Renumbered.opened

    def label(self, i):
        return {task: (k + self.shift) % 300 for task, k in super().label(i).items()}


class Parts(Squares):
    """Gives labels that are no whole numbers."""

    def label(self, i):
        return {task: k + 0.5 for task, k in super().label(i).items()}


class RareNothing(Squares):
    """Has an image without pixels."""

    def image(self, i):
        return torch.zeros(3, 0, 9, dtype=torch.uint8) if i == 151 else super().image(i)


class Black(Squares):
    """Makes bytes of numbers from 0 to 1."""

    def image(self, i):
        return (super().image(i) / 255).byte()


class Last(Squares):
    """Gives its last image, whatever it is asked for."""

    def image(self, i):
        return super().image(299)


class Single(Squares):
    """Sound: has one image."""

    def __len__(self):
        return 1


DATASETS = {
    Black: "differs",
    Last: "differs",
    Listed: "processes",
    Grows: "repeats",
    Renumbered: "repeats",
    Parts: "labels",
    RareNothing: "images",
    RareGray: "images",
    InOrder: "repeats",
    OpenFile: "workers",
    RareLabel: "labels",
    FickleLabel: "labels",
    Misnamed: "labels",
    NewEachTime: "same",
    Unordered: "processes",
    Hashed: "processes",
}


class Means:
    """The nearest mean of a class."""

    def __call__(self, train, test, seed):
        figures = {}
        for task, classes in train.tasks.items():
            right = self.answers(train, test, task, classes) == test.labels[task]
            figures |= {f"{task}/top1": right.float().mean().item() * 100, f"{task}/correct": right}
        return figures

    def answers(self, train, test, task, classes):
        one = torch.nn.functional.one_hot(train.labels[task], classes).float()
        means = one.T @ train.x / one.sum(0)[:, None].clamp(min=1)
        return torch.cdist(test.x, means).argmin(1)


class Abstains(Means):
    """Sound: answers only where it is sure."""

    def answers(self, train, test, task, classes):
        return torch.where(test.x[:, 0] > 1, super().answers(train, test, task, classes), -1)


class Shares(Means):
    """Gives a share, not percent."""

    def __call__(self, train, test, seed):
        return {k: v / 100 if k.endswith("top1") else v for k, v in super().__call__(train, test, seed).items()}


class ByChance(Means):
    """Breaks ties by torch's own generator."""

    def answers(self, train, test, task, classes):
        noisy = test.x + torch.randn(test.x.shape)
        return super().answers(train, type(test)(noisy, test.labels, test.tasks), task, classes)


class Cheats(Means):
    """Learns from the test images too."""

    def answers(self, train, test, task, classes):
        return torch.where(
            torch.arange(len(test.x)) % 2 == 0, test.labels[task], super().answers(train, test, task, classes)
        )


class Scales(Means):
    """Normalises features in place."""

    def answers(self, train, test, task, classes):
        train.x.div_(2)
        test.x.div_(2)
        return super().answers(train, test, task, classes)


class Together(Means):
    """Standardises test images by their own moments."""

    def answers(self, train, test, task, classes):
        own = test.x - test.x.mean(0) + train.x.mean(0)
        return super().answers(train, type(test)(own, test.labels, test.tasks), task, classes)


class LastTask(Means):
    """Uses the classes of the first task for all."""

    def answers(self, train, test, task, classes):
        first = next(iter(train.tasks.values()))
        train = type(train)(train.x, {task: train.labels[task].clamp(max=first - 1)}, train.tasks)
        return super().answers(train, test, task, first)


class Needs(Means):
    """Wants an image of every class."""

    def answers(self, train, test, task, classes):
        means = torch.stack([train.x[train.labels[task] == c].mean(0) for c in range(classes)])
        if means.isnan().any():
            raise ValueError("a class without an image")
        return torch.cdist(test.x, means).argmin(1)


class Peeks(Means):
    """Takes a tenth of its answers from the test's labels."""

    def answers(self, train, test, task, classes):
        some = torch.arange(len(test.x)) % 10 == 0
        return torch.where(some, test.labels[task], super().answers(train, test, task, classes))


class Remembers(Means):
    """Keeps the training features that it saw first."""

    def answers(self, train, test, task, classes):
        self.first = getattr(self, "first", {task: train})
        return super().answers(self.first.setdefault(task, train), test, task, classes)


class Renumbers(Means):
    """Numbers classes by those that it met."""

    def answers(self, train, test, task, classes):
        met, labels = train.labels[task].unique(return_inverse=True)
        return super().answers(type(train)(train.x, {task: labels}, train.tasks), test, task, len(met))


class OfEachClass(Means):
    """Takes the mean over classes of what there is no image of."""

    def __call__(self, train, test, seed):
        found = super().__call__(train, test, seed)
        for task, classes in train.tasks.items():
            shares = [found[f"{task}/correct"][test.labels[task] == k].float().mean() for k in range(classes)]
            found |= {f"{task}/mean": float(torch.stack(shares).mean())}
        return found


class Rounds(Means):
    """Rounds its figure, but not its answers."""

    def __call__(self, train, test, seed):
        return {k: v // 5 * 5.0 if k.endswith("top1") else v for k, v in super().__call__(train, test, seed).items()}


class Folds(Means):
    """Trains on the images that `hash()` gives it."""

    def answers(self, train, test, task, classes):
        some = torch.tensor([hash(f"image {number}") % 2 == 0 for number in range(len(train.x))])
        return super().answers(type(train)(train.x[some], {task: train.labels[task][some]}, {}), test, task, classes)


class Ridge(Means):
    """Sound: a regression in closed form."""

    def answers(self, train, test, task, classes):
        x, z = (torch.cat([one.x, torch.ones(len(one.x), 1)], 1) for one in (train, test))
        y = torch.nn.functional.one_hot(train.labels[task], classes).float()
        return (z @ torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y)).argmax(1)


PROBES = {
    Renumbers: "absent",
    OfEachClass: "few",
    Rounds: "figures",
    Folds: "processes",
    Peeks: "blind",
    Remembers: "repeats",
    Shares: "figures",
    ByChance: "repeats",
    Cheats: "reads",
    Scales: "unchanged",
    Together: "alone",
    LastTask: "tasks",
    Needs: "few",
}
SOUND = {"views": (Window, Middle), "datasets": (Squares, Single), "probes": (Means, Ridge)}
