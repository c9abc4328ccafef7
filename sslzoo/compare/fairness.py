"""Is a comparison fair? What differs and was named, what differs beside, what makes it unfair, what is the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslzoo.compare.statistics import mean
from sslzoo.evaluate.written import overlap_told
from sslzoo.recipe.resuming import leaves
from sslzoo.report.doctor import diagnose
from sslzoo.report.records import HOW, Record
from sslzoo.report.words import number_told
from sslzoo.run.identity import MASKED_TOGETHER

CLOSE = 0.02  # relative; costs nearer than this are equal
SLOW = 0.1  # relative; device time is noisy
MOST_KEPT = 0.05  # share of its starting weights that a teacher may keep
MOST_KNOWN = 0.01  # share of the test images that probes may have trained on
MOST_WARM_UP = 0.2  # share of a run that may be warm-up
LONGEST = 120  # letters of a value that are told
SHORT = 24  # letters of a word that is told before what was cut
OWN = ("name", "run.seed", "plugins")  # what tells runs apart, and no question


@dataclass(frozen=True)
class Finding:
    """One thing that differs: what, and its value in each variant."""

    what: str
    values: Mapping[str, str]
    why: str = ""

    @property
    def grouped(self) -> dict[str, str]:
        """The values, each once and in a few letters, by the names of all variants that have it."""
        names: dict[str, list[str]] = {}
        for name, value in self.values.items():
            names.setdefault(value, []).append(name)
        short = shown(names)
        return {", ".join(some): short[value] for value, some in names.items()}

    def __str__(self) -> str:
        told = "; ".join(f"{names}: {value}" for names, value in self.grouped.items())
        return f"{self.what}: {told}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Box:
    """The four sides of the fairness box."""

    question: list[Finding] = field(default_factory=list)
    beside: list[Finding] = field(default_factory=list)
    unfair: list[Finding] = field(default_factory=list)
    same: list[Finding] = field(default_factory=list)


def box(variants: Mapping[str, Sequence[Record]], named: Mapping[str, Iterable[str]], held: str = "images") -> Box:
    """Compares variants, each with the records of its seeds.

    Args:
        variants: records by variant.
        named: places of the recipe that a study names, by variant; empty where runs were not made by a study.
        held: what the budget held equal; empty where there was none.
    """
    found = Box()
    if not variants:
        return found
    _recipes(found, variants, {place for places in named.values() for place in places}, known=bool(named))
    # What a run that is not finished cost so far is no news: it is told as such, and its figures are not compared.
    finished = {name: [one for one in records if one.state == "done"] for name, records in variants.items()}
    compared = {name: records for name, records in finished.items() if records} or variants
    for what, value, close in _COSTS:
        _cost(found, compared, what, value, close, held)
    _settings(found, compared, "evaluation", lambda record: [one.settings for one in record.evaluated.values()])
    _settings(found, compared, "training data", lambda one: [_data(one, data) for data in one.identities or ({},)])
    for what, value in _FACTS:
        _fact(found, compared, what, value)
    for rule in (_versions, _networks, _overlaps, _summaries, _masked_together, _teachers, _warm_ups):
        found.unfair.extend(rule(compared))
    found.beside.extend(_on_the_way(compared))
    for rule in (_skipped, _health, _unfinished):
        found.unfair.extend(rule(variants))
    _seeds(found, compared)
    return found


def _recipes(found: Box, variants: Mapping[str, Sequence[Record]], named: set[str], known: bool) -> None:
    trees = _of_one_depth({name: records[0].leaves for name, records in variants.items()})
    places = sorted({place for one in trees.values() for place in one})
    uses = [place for place in places if place.endswith(".use") and len({one.get(place) for one in trees.values()}) > 1]
    swapped = tuple(place.removesuffix("use") for place in uses)
    own = {
        place
        for place in places
        if place.startswith(swapped)
        and not all(place in one for one in trees.values())
        and len({str(one[place]) for one in trees.values() if place in one}) == 1
    }
    for place in places:
        if place.startswith((*OWN, "evaluate")) or place in own - set(uses):
            continue
        values = {name: str(one.get(place, "(absent)")) for name, one in trees.items()}
        if len(set(values.values())) == 1:
            continue
        if place in uses:  # what only this part has is told with it; what both have, or some otherwise, in its own line
            values = {name: _with_own(one, place, own) for name, one in trees.items()}
        asked = any(place == one or place.startswith(one + ".") or one.startswith(place + ".") for one in named)
        if place.startswith(HOW):
            found.beside.append(Finding(place, values, "how it is run, not what is learnt"))
        elif asked or not known:
            found.question.append(Finding(place, values))
        else:
            found.beside.append(Finding(place, values))


def _of_one_depth(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leaves of recipes; what is a number in one and a schedule in another is one leaf in both."""
    places = {place for one in trees.values() for place in one}
    flat = {place for place in places if any(other.startswith(f"{place}.") for other in places)}
    found: dict[str, dict[str, Any]] = {}
    for name, tree in trees.items():
        found[name] = own = {}
        for place, value in tree.items():
            above = min((one for one in flat if place.startswith(f"{one}.")), key=len, default=None)
            if above is None:
                own[place] = value
            else:
                told = f"{place.removeprefix(above + '.')} {value}"
                own[above] = f"{own[above]}, {told}" if above in own else told
    return found


def _with_own(leaves_: Mapping[str, Any], place: str, own: Iterable[str]) -> str:
    """A part's word with the keys that not all variants have: `random (hide 0.6)`."""
    within = place.removesuffix("use")
    keys = [
        f"{one.removeprefix(within)} {leaves_[one]}" for one in sorted(own) if one.startswith(within) and one in leaves_
    ]
    return f"{leaves_.get(place, '(absent)')}" + (f" ({', '.join(keys)})" if keys else "")


def _cost(
    found: Box,
    variants: Mapping[str, Sequence[Record]],
    what: str,
    value: Callable[[Record], float | None],
    close: float,
    held: str,
) -> None:
    means = {name: mean(value(record) for record in records) for name, records in variants.items()}
    known = {name: one for name, one in means.items() if one is not None}
    if len(known) < len(means):
        missing = [name for name in means if name not in known]
        side = found.unfair if known else found.beside
        side.append(Finding(what, dict.fromkeys(missing, "not recorded"), "so whether it is equal is not known"))
        return
    values = {name: number_told(one) for name, one in known.items()}
    low, high = min(known.values()), max(known.values())
    if high - low <= close * max(high, 1e-12):
        found.same.append(_alike(what, values))
    elif held and held in what:
        found.unfair.append(Finding(what, values, "the budget should have held this equal"))
    else:
        found.unfair.append(Finding(what, values, f"up to {high / max(low, 1e-12):.2f} times"))


def _fact(found: Box, variants: Mapping[str, Sequence[Record]], what: str, value: Callable[[Record], Any]) -> None:
    values = {name: sorted({str(value(record)) for record in records}) for name, records in variants.items()}
    told = {name: ", ".join(one or "not recorded" for one in some) for name, some in values.items()}
    different = {one for some in values.values() for one in some}
    if different == {""}:
        return
    if len(different) == 1:
        found.same.append(_alike(what, told))
    else:
        found.unfair.append(Finding(what, told))


def _settings(
    found: Box, variants: Mapping[str, Sequence[Record]], what: str, of: Callable[[Record], Sequence[Mapping[str, Any]]]
) -> None:
    """Of many settings, those that differ; that all are the same is told in a word, for the page has them in full."""
    known = {name: [_flat(one) for record in records for one in of(record)] for name, records in variants.items()}
    absent = [name for name, some in known.items() if not some]
    known = {name: some for name, some in known.items() if some}
    differing = []
    for place in sorted({place for some in known.values() for one in some for place in one}):
        having = {name: [one for one in some if _has_probe_of(place, one)] for name, some in known.items()}
        values = {
            name: sorted({str(one.get(place, "(absent)")) for one in some}) for name, some in having.items() if some
        }
        compared = len(values) > 1 or len(known) == 1  # figures of a probe that one alone was read by are in no table
        if compared and len({one for some in values.values() for one in some}) > 1:
            told = {name: ", ".join(some) for name, some in values.items()}
            differing.append(Finding(f"{what}: {place}", told))
    if absent:
        differing.append(Finding(what, dict.fromkeys(absent, "none")))
    found.unfair.extend(differing)
    if not differing:
        found.same.append(Finding(what, {"all": "as told below"}))


def _has_probe_of(place: str, settings: Mapping[str, Any]) -> bool:
    """Whether an evaluation has the probe whose setting this is; of what is no probe's, always."""
    section, _, key = place.partition(".")
    return section != "probes" or any(one.startswith(f"probes.{key.partition('.')[0]}.") for one in settings)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(map(str, place)): value for place, value in leaves(settings)}


def _seeds(found: Box, variants: Mapping[str, Sequence[Record]]) -> None:
    seeds = {name: ", ".join(str(record.seed) for record in records) for name, records in variants.items()}
    if len(set(seeds.values())) > 1:
        found.unfair.append(Finding("seeds", seeds, "only seeds that all have are pairs"))
    else:
        found.same.append(_alike("seeds", seeds))


_COSTS: tuple[tuple[str, Callable[[Record], float | None], float], ...] = (
    ("images seen", lambda record: record.images, CLOSE),
    ("steps", lambda record: record.step, CLOSE),
    ("flops", lambda record: record.flops, CLOSE),
    ("seconds of device time", lambda record: record.seconds, SLOW),
    ("patch tokens seen", lambda record: record.tokens, CLOSE),
)
_FACTS: tuple[tuple[str, Callable[[Record], Any]], ...] = (
    ("versions", lambda record: record.versions),
    ("commit", lambda record: record.commit),
    ("machine", lambda record: record.machine),
    ("threads", lambda record: record.threads),
    ("precision", lambda record: record.leaves.get("run.precision")),
)


def _data(record: Record, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The training set's identity, or its keys where that is not known: the same images may lie at another path.

    What is beside it for masks drawn together is no matter of data.
    """
    return {key: identity[key] for key in identity if key != MASKED_TOGETHER} or dict(record.tree["data"])


def _versions(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """Of plugins, and of what evaluated: what was not of one version wherever it was used."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, records in variants.items():
        for record in records:
            used = {f"the plugin {plugin}": version for plugin, version in record.plugins.items()}
            for one in record.evaluated.values():
                found_with = (one.content.get("versions") or {}).items()
                used |= {f"{what}, when it was evaluated": str(version) for what, version in found_with}
            for what, version in used.items():
                found.setdefault(what, {}).setdefault(name, set()).add(version)
    for what, values in found.items():
        if len(set().union(*values.values())) > 1:
            yield Finding(f"version of {what}", {name: ", ".join(sorted(some)) for name, some in values.items()})


def _overlaps(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """A probe is told the label of what it trained on: of many such test images, figures are of its memory."""
    bad = {
        name: overlap_told(one.overlap, one.images("test"))
        for name, records in variants.items()
        for r in records
        for one in r.evaluated.values()
        if one.overlap > MOST_KNOWN * (one.images("test") or 0)
    }
    if bad:
        yield Finding("the probes' training images in the test", bad, "a probe knows their labels")
    tested = {
        name: {one.fingerprint("test") for r in records for one in r.evaluated.values()} - {""}
        for name, records in variants.items()
    }
    trained = {
        name: {str(one.get("fingerprint") or "") for r in records for one in r.identities}
        for name, records in variants.items()
    }
    if same := {name: "their fingerprints are equal" for name in variants if tested[name] & trained[name]}:
        why = "figures are of images seen in training" if len(same) == len(variants) else "others' are of new images"
        yield Finding("seems to have trained, without labels, on the test images", same, why)


def _summaries(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """Where the encoder's own word for an image is read, it may be the class token of one and the mean of another."""
    read = {
        name: {one.summary for r in records for one in r.evaluated.values() if one.summary}
        for name, records in variants.items()
    }
    if len(set().union(*read.values())) > 1:
        values = {name: ", ".join(sorted(some)) or "not recorded" for name, some in read.items()}
        yield Finding("pooling", values, "`evaluate.layers=1` reads the mean of patches of all")


def _masked_together(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """Some samplers cut masks to the shortest of those drawn together: how many these were is a setting of theirs."""
    known = {
        name: {str(one[MASKED_TOGETHER]) for r in records for one in r.identities if MASKED_TOGETHER in one}
        for name, records in variants.items()
    }
    if len(set().union(*known.values())) > 1:
        values = {name: ", ".join(sorted(some, key=int)) for name, some in known.items() if some}
        yield Finding(MASKED_TOGETHER, values, "these masks depend on it")


def _on_the_way(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """Settings that are free to change when a run goes on, where one did."""
    changed: dict[str, dict[str, set[str]]] = {}
    for name, records in variants.items():
        for settings in ([facts.get("settings") or {} for facts in record.attempts] for record in records):
            for place in dict.fromkeys(place for one in settings for place in one):
                values = list(dict.fromkeys(str(one[place]) for one in settings if place in one))
                if len(values) > 1:
                    changed.setdefault(place, {}).setdefault(name, set()).add(", then ".join(values))
    for place, values in changed.items():
        told = {name: "; ".join(sorted(some)) for name, some in values.items()}
        yield Finding(f"{place}, changed when a run went on", told)


def _teachers(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    kept = {
        name: max((r.kept for r in records if r.kept is not None), default=None) for name, records in variants.items()
    }
    bad = {name: f"{share:.0%}" for name, share in kept.items() if share is not None and share > MOST_KEPT}
    if bad:
        why = f"more than {MOST_KEPT:.0%}: train longer"
        yield Finding("share of its starting weights that the teacher kept", bad, why)


def _warm_ups(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    bad = {name: f"{r[0].warm_up:.0%}" for name, r in variants.items() if r[0].warm_up > MOST_WARM_UP}
    if bad:
        yield Finding("share of the run that is warm-up", bad, f"more than {MOST_WARM_UP:.0%}")


def _skipped(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    bad = {
        name: str(sum(r.skipped for r in records))
        for name, records in variants.items()
        if any(r.skipped for r in records)
    }
    if bad:
        yield Finding("steps skipped, for they were not finite", bad)


def _health(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    verdicts = {
        name: {diagnose(r).verdict for r in records} - {"healthy", "unknown", "failed"}
        for name, records in variants.items()
    }
    bad = {name: ", ".join(sorted(found)) for name, found in verdicts.items() if found}
    if bad:
        yield Finding("health", bad, "`sslzoo doctor` says why")


def _unfinished(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    bad = {
        name: "; ".join(
            f"seed {r.seed} is {r.state} at step {r.step} of {r.steps}" for r in records if r.state != "done"
        )
        for name, records in variants.items()
    }
    bad = {name: words for name, words in bad.items() if words}
    if bad:
        yield Finding("runs that are not finished", bad)


def _networks(variants: Mapping[str, Sequence[Record]]) -> Iterable[Finding]:
    """Where variants have no kind of network in common, figures of a teacher would stand beside those of a student."""
    kinds = {name: {kind for r in records for kind in r.networks} for name, records in variants.items()}
    if any(kinds.values()) and not set.intersection(*kinds.values()):
        yield Finding("networks evaluated", {name: ", ".join(sorted(kind)) for name, kind in kinds.items()})


def _alike(what: str, values: Mapping[str, str]) -> Finding:
    """What is the same is told once."""
    return Finding(what, {"all": next(iter(values.values()))})


def shown(texts: Collection[str]) -> dict[str, str]:
    """Each text in a few letters; those that begin alike, by their first word and from shortly before they differ."""
    found = {text: text if len(text) <= LONGEST else text[: LONGEST - 3] + "..." for text in texts}
    for told in set(found.values()):
        alike = [text for text in found if found[text] == told]
        if len(alike) > 1:
            apart = (n for n, letters in enumerate(zip(*alike, strict=False)) if len(set(letters)) > 1)
            begin = next(apart, min(map(len, alike))) - 12
            rest = shown([text[begin:] for text in alike])
            first = word if len(word := alike[0].partition(" ")[0]) <= min(begin, SHORT) else ""
            found |= {text: f"{first}..." + rest[text[begin:]].removeprefix("...") for text in alike}
    return found
