"""Writes the toy recipes: one for each kind of method."""

from pathlib import Path

_COMMON = """
plugins: [{plugin}, {example}]
data: {{use: noise, length: 64}}
encoder: {{use: tiny, hidden: {hidden}}}
optim: {{lr: {{warmup: {{steps: 3, from: 0, to: 0.01, then: {{cosine: 0.001}}}}}}, weight_decay: 0.01, clip: 1.0}}
run: {{steps: 10, batch: 16, precision: fp32, workers: 0, log_every: 1, save_every: 5, monitor: 8, monitor_every: 5}}
"""

_METHODS = {
    "jepa": """
views: {image: {use: jitter}}
masks: {image: {use: half}}
predictor: {use: guess}
targets: {teacher: {use: follow}}
losses: {guess: {use: squared, predict: predictor.patch, target: teacher.patch}}
""",
    "cjepa": """
views: {image: {use: jitter}}
masks: {image: {use: half}}
predictor: {use: guess}
targets: {teacher: {use: follow}}
losses:
  guess: {use: squared, predict: predictor.patch, target: teacher.patch}
  apart: {use: variance-covariance, predict: encoder.context, weight: 0.1}
""",
    "dino": """
views: {global: {use: jitter, size: 8, count: 2, role: both}, local: {use: jitter, size: 4, count: 3, role: context}}
predictor: {use: head}
targets: {teacher: {use: follow, project: true}}
losses: {agree: {use: centered, predict: predictor.image, target: teacher.image}}
""",
    "simclr": """
views: {image: {use: jitter, count: 2}}
predictor: {use: head, norm: true}
targets: {twin: {use: same}}
losses: {contrast: {use: ntxent, predict: predictor.image, target: twin.image}}
""",
    "msn": """
views:
  whole: {use: jitter, role: target}
  anchor: {use: jitter, role: context}
  focal: {use: jitter, size: 4, count: 2, role: context}
masks: {anchor: {use: half}}
predictor: {use: head}
targets: {teacher: {use: follow, project: true}}
losses: {assign: {use: assign, predict: predictor.image, target: teacher.image}}
""",
    "ibot": """
views: {global: {use: jitter, count: 2}, local: {use: jitter, size: 4, count: 2, role: context}}
masks: {global: {use: half, some: true}}
predictor: {use: head, patches: true}
targets: {teacher: {use: follow, project: true}}
losses:
  image: {use: centered, predict: predictor.image, target: teacher.image}
  patch: {use: centered, predict: predictor.patch, target: teacher.patch, weight: {linear: [0.5, 1.0]}}
""",
    "data2vec": """
views: {image: {use: jitter}}
masks: {image: {use: half, some: true}}
predictor: {use: read}
targets: {teacher: {use: follow, layers: 2}}
losses: {guess: {use: squared, predict: predictor.patch, target: teacher.patch}}
""",
}
METHODS = tuple(_METHODS)


def write(folder: Path, method: str, name: str = "toy") -> Path:
    """Writes a toy recipe into a folder; returns its path."""
    hidden = "fill" if method in ("ibot", "data2vec") else "drop"
    plugin = Path(__file__).with_name("toys.py")
    example = Path(__file__).parents[2] / "examples" / "variance_covariance.py"
    path = folder / f"{name}-{method}.yaml"
    path.write_text(
        f"name: {name}-{method}" + _COMMON.format(plugin=plugin, example=example, hidden=hidden) + _METHODS[method]
    )
    return path
