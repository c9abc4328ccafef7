"""In what words is a run told? Its data, cost and machine, how its figures were read, and the names of its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from sslzoo.errors import UserError
from sslzoo.evaluate.written import Evaluation, overlap_told
from sslzoo.plugins import Catalogue
from sslzoo.recipe import signature
from sslzoo.report.records import Record
from sslzoo.run.state import State

SILENT = ("use", "images", "tasks", "fingerprint", "cache", "decoder", "interpolation")  # keys of no news in a sentence


def _start_told(attempt: Mapping[str, Any]) -> str:
    """`at step 400 on 2 processes (the start before was running at step 410)`."""
    many, before = attempt.get("processes", "?"), attempt.get("before") or {}
    after = f" (the start before was {before.get('state')} at step {before.get('step')})" if before else ""
    return f"at step {attempt.get('from', 0)} on {many} process{'' if many == 1 else 'es'}{after}"


def made(record: Record) -> list[tuple[str, str]]:
    """What the run was made of, as its folder tells it; what is not recorded is said to be unknown."""
    flops, seconds, memory = record.flops, record.seconds, record.facts.get("peak_memory")
    known = record.facts.get("data") or {}
    data = f"{spec_told(record.tree['data'])}; {known.get('images', '?')} images, fingerprint "
    precision = record.leaves.get("run.precision", "?")
    trained = "" if record.state in ("done", "probing") else f", {record.state}"
    return [
        ("training data", data + str(known.get("fingerprint") or "not recorded")),
        ("seen", f"{record.images:,.0f} images in {record.step:,} steps of {record.batch}{trained}"),
        (
            "arithmetic",
            "unknown" if flops is None else f"{number_told(flops)} FLOPs: forward and backward, mean over mask draws",
        ),
        ("time", "unknown" if seconds is None else f"{seconds:,.0f} s in the training loop, of all devices together"),
        ("peak memory", "unknown" if memory is None else f"{number_told(memory)} bytes of a process"),
        ("machine", f"{record.machine}; {record.threads} threads each; {precision}"),
        ("started", "; ".join(map(_start_told, record.attempts)) or "how often is not recorded"),
        ("versions", record.versions or "not recorded"),
        ("commit", record.commit or "not recorded"),
        ("plugins", ", ".join(f"{name} {version}" for name, version in sorted(record.plugins.items())) or "none"),
    ]


def sources(record: Record) -> list[tuple[str, str]]:
    """Commands, the whole settings of its evaluations, and the resolved recipe."""
    folder = record.folder
    launched = State(folder).launch.get("words")
    commands = [f"sslzoo {' '.join(map(str, launched))}"] if launched else []
    commands += [f"sslzoo train {folder}/recipe.yaml --out ANOTHER   # the same run again", f"sslzoo report {folder}"]
    evaluated = "\n\n".join(
        f"# {name}: {one.path}\n{yaml.safe_dump(dict(one.settings), sort_keys=False)}"
        for name, one in record.evaluated.items()
    )
    return [
        ("Commands", "\n".join(commands)),
        ("Evaluation", evaluated or "none"),
        ("Resolved recipe", (folder / "recipe.yaml").read_text()),
    ]


def number_told(value: float) -> str:
    """A number of images, operations or bytes for people: 160, 72 k, 2.9 T; three digits, and all below 1000."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(float(f"{value:.3g}")) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} P"


def how(one: Evaluation) -> str:
    """By what settings figures were made, in a sentence."""
    told, data = one.content, one.content.get("data") or {}
    sides = [f"{one.images(side)} images of {spec_told(data.get(side) or {})}" for side in ("train", "test")]
    return (
        f"Read from the network {one.network} at step {one.step}, {told.get('pooling')}, {told.get('precision')}; "
        f"learned from {sides[0]}, tested on {sides[1]}; "
        f"view {spec_told(told.get('view') or {})}, seed {told.get('seed')}."
        + (f" {overlap_told(one.overlap, one.images('test'))}." if one.overlap else "")
    )


def spec_told(spec: Mapping[str, Any]) -> str:
    """A part with the keys that tell it from others: scenes (split test, length 200)."""
    plain = {key: value for key, value in spec.items() if key not in SILENT and type(value) in (str, int, float)}
    return f"{spec.get('use', '?')} ({', '.join(f'{key} {value}' for key, value in plain.items())})"


def read_how(one: Evaluation, installed: Catalogue) -> str:
    """What each probe of an evaluation does, in its own first sentence; what stands behind the stroke is a task."""
    told = []
    for name, spec in (one.content.get("probes") or {}).items():
        with suppress(UserError):
            make = installed.find("probes", str(spec.get("use"))).make
            first = (make.__doc__ or "").strip().partition("\n")[0]
            told.append(f"{name}{_given(make, spec)}: {first[:1].lower()}{first[1:].rstrip('.')}")
    tasks = sorted({key.split("/")[1] for key in one.columns[one.trained] if key.count("/") == 2})
    behind = f"Behind the stroke, what is told of an image: {', '.join(tasks)}." if tasks else ""
    return f"{behind} Before it, by which probe. {'; '.join(told)}. {_old_knn(one)}".strip()


def _given(make: Any, spec: Mapping[str, Any]) -> str:
    """Settings of a probe that are not its defaults: ` (shots 10)`."""
    fields = signature.keys_of(make).model_fields
    given = [f"{key} {spec[key]}" for key, one in fields.items() if key in spec and spec[key] != _default(one)]
    return f" ({', '.join(given)})" if given else ""


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else signature.plain(field.default)


def _old_knn(one: Evaluation) -> str:
    """The k of the published protocol is the best on the test images, and figures of that are told as such."""
    old = [spec for spec in (one.content.get("probes") or {}).values() if spec.get("use") == "knn"]
    old = [spec for spec in old if spec.get("protocol") == 1]
    return "The k of k-NN is the one that was best on the test images (an older evaluation)." if old else ""


def spread_told(key: str) -> str:
    """A key of metrics in words: guess/prediction_std is the spread of predictions for the loss guess."""
    for end, word in (("/prediction_std", "predictions"), ("/target_std", "targets")):
        if key.endswith(end):
            return f"{word} of the loss {key.removesuffix(end)}"
    return key
