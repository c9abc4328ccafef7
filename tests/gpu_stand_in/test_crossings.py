"""docs/performance.md lists everything that crosses between host and device in a step."""

from collections import Counter
from pathlib import Path

from stand_in import run, shortened

from sslzoo.recipe.recipe import load

ROOT = Path(__file__).parents[2]
RECIPE = "tiny/ijepa"
NAMES = {  # by letters of the shape; b is 8
    "in [1 b 3 H W]": "pixels",
    "in [b 3 H W]": "images of the monitor",
    "in float32 [2 3 1 1]": "what normalizes bytes",
    "in [1 b 4]": "boxes of the crops",
    "in int64 [b]": "what the chances of each sequence follow from",
    "in int64 [b n]": "indices of context patches",
    "in int64 [b 4 n]": "indices of target patches",
    "in int64 [n]": "which sequence a row belongs to",
    "in float32 [n]": "weights of rows, replaced on the device",
    "in bool [1 1]": "which views may meet",
    "out float32 [2]": "votes: numbers that are not finite, wishes to stop",
    "out float64 [n]": "the metrics, all at once",
    "out float32 []": "RankMe",
}


def letters(crossing):
    """A shape with b for the batch, and n for what depends on the masks."""
    if len(crossing.shape) > 3 and crossing.shape[-1] > 1:
        return " ".join([*(["1", "b", "3"][5 - len(crossing.shape) :]), "H", "W"])
    known = {1: "1", 8: "b", 2: "2", 3: "3", 4: "4"}
    return " ".join(known.get(n, "n") for n in crossing.shape)


def table(seen):
    """What crosses in a quiet step, and in one with a log line and the monitor."""
    rows = ["| step | way | what | times | the host waits |", "| --- | --- | --- | --- | --- |"]
    for step, when in ((0, "any"), (1, "log line, monitor")):
        kinds = Counter()
        for one in seen.crossings:
            if one.step == step:
                dtype = str(one.dtype).removeprefix("torch.")
                form = f"[{letters(one)}]"
                name = NAMES.get(f"{one.way} {dtype} {form}") or NAMES.get(f"{one.way} {form}", "?")
                kinds[(one.way, f"{name}, {dtype} {form}", "yes" if one.blocks else "no")] += 1
        if step == 0:
            quiet = kinds
        for (way, what, waits), times in kinds.items() if step == 0 else (kinds - quiet).items():
            rows.append(f"| {when} | {way} | {what} | {times} | {waits} |")
    return "\n".join(rows)


def test_what_crosses_is_listed_in_the_document(tmp_path):
    recipe, installed = load(RECIPE)
    found = table(run(shortened(recipe), installed, "cuda", tmp_path))
    assert found in (ROOT / "docs" / "performance.md").read_text(), f"docs/performance.md lists others; now:\n{found}"
