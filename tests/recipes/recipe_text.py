"""A recipe that is right, for tests to change."""

GOOD = """\
name: good
data: {use: scenes, length: 32, size: 32}
views:
  image: {use: crop, size: 32}
masks:
  image: {use: multiblock, min_keep: 1}
encoder: {use: vit, size: tiny, patch: 8}
predictor: {use: ijepa, width: 32, depth: 1, heads: 2}
targets:
  teacher: {use: ema}
losses:
  guess: {use: smooth_l1, predict: predictor.patch, target: teacher.patch}
optim: {lr: 1e-3}
run: {steps: 10, batch: 4, precision: fp32, workers: 0}
"""
