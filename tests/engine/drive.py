"""Trains recipes, each in its own folder: what the tests start alone, under torchrun, and kill.

python drive.py OUT RECIPE... [-- KEY=VALUE...]
"""

import sys
from pathlib import Path

import torch

from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run import processes
from sslzoo.train import Watch, train


def main(out: str, *words: str) -> None:
    split = words.index("--") if "--" in words else len(words)
    recipes, sets = words[:split], words[split + 1 :]
    torch.set_num_threads(1)
    world = processes.join("cpu")
    for recipe in recipes:
        read, catalogue = load(recipe, sets)
        train(read, catalogue, check(read, catalogue), Path(out) / read.name, world, Watch(print))
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
