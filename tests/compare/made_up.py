"""Records of runs that never were, for tests to change."""

from pathlib import Path

from sslzoo.report.records import Evaluation, Record

TREE = {
    "name": "a",
    "data": {"use": "scenes"},
    "masks": {"image": {"use": "multiblock"}},
    "targets": {"teacher": {"use": "ema", "momentum": {"linear": [0.98, 1.0]}}},
    "optim": {"lr": {"warmup": {"steps": 100, "from": 0, "to": 1}}},
    "run": {"batch": 16, "seed": 0, "precision": "fp32", "steps": 1000},
}
FACTS = {"flops_per_image": 10.0, "processes": 1, "device": "cpu", "threads": 1}
FACTS |= {"versions": {"torch": "2"}, "images": 1000}


def evaluated(network, **settings):
    told = {"figures": {"trained": {"knn/x/top1": 1.0}}, "network": network, "step": 1000}
    told |= {"versions": {"timm": "2"}} | settings
    return {network: Evaluation(Path("nowhere"), network, 1000, told)}


def record(seed=0, tree=None, facts=None, line=None, **changes):
    keys = {"folder": Path("nowhere"), "variant": "a", "seed": seed, "tree": {**TREE, **(tree or {})}, "state": "done"}
    keys |= {"plugins": {"mine": "beef"}}
    keys |= {"step": 1000, "steps": 1000, "facts": FACTS | (facts or {}), "evaluated": evaluated("teacher")}
    keys |= {"lines": ({"step": 1000, "seconds": 50.0, "context_patches": 25.6} | (line or {}),)}
    return Record(**(keys | changes))
