"""The results of benchmarks/gpu.sh as a Markdown table for docs/performance.md.

python benchmarks/gpu_table.py FILE.json...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sslzoo.speed import read

COLUMNS = ("part", "recipe", "compiled", "parallel", "images a step", "images/s (best)", "step, ms", "utilisation")
COLUMNS += ("ceiling, TFLOP/s", "memory, GB", "forward + targets, backward, rest")


def row(part: str, found: dict) -> list[str]:
    """A result's cells."""
    one = read(found)
    forward = sum(one.stages[name] for name in ("targets", "forward", "loss"))
    shares = [share / sum(one.stages.values()) for share in (forward, one.stages["backward"])]
    return [
        part,
        one.recipe,
        "yes" if one.compile else "no",
        one.parallel,
        str(one.images),
        f"{one.rate:.1f} ({one.best:.1f})",
        f"{one.step * 1e3:.1f}",
        f"{one.utilisation:.1%}",
        f"{one.ceiling / 1e12:.1f}",
        "-" if one.memory is None else f"{one.memory / 1e9:.1f}",
        ", ".join(f"{share:.0%}" for share in (*shares, 1 - sum(shares))),
    ]


def main(paths: list[Path]) -> None:
    """Prints the table, and the machine that it was measured on."""
    results = [(path.stem, one) for path in paths for one in json.loads(path.read_text())]
    if not results:
        sys.exit("there are no results")
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(part, one) for part, one in results)]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    machines = {(one["device"], one["torch"]) for _, one in results}
    print("\nMeasured on " + "; ".join(f"{device}, torch {torch}" for device, torch in sorted(machines)))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
