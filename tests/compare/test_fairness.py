"""Each of the traps in which a comparison turned round is found, and nothing is found where there is none."""

import pytest
from made_up import TREE, evaluated, record

from sslzoo.compare.fairness import LONGEST, Finding, _of_one_depth, box
from sslzoo.run.identity import MASKED_TOGETHER


def names(side):
    return [one.what for one in side]


def both(**changes):
    return box({"base": [record()], "other": [record(**changes)]}, {"other": ["masks.image"], "base": []})


def test_runs_that_differ_in_what_was_named_alone_are_fair():
    found = both(tree={"masks": {"image": {"use": "random"}}})
    assert names(found.question) == ["masks.image.use"]
    assert not found.unfair
    assert not found.beside
    assert {"images seen", "training data", "precision"} <= set(names(found.same))


def test_what_is_a_number_here_and_a_schedule_there_is_one_line_and_equal_values_are_told_once():
    rates = {"a": 0.001, "b": {"warmup": {"steps": 9, "from": 0, "to": 1}}, "c": 0.001}
    sides = {name: [record(tree={"optim": {"lr": lr}})] for name, lr in rates.items()}
    (found,) = box(sides, {}).question
    assert found.what == "optim.lr"
    assert found.grouped == {"a, c": "0.001", "b": "warmup.steps 9, warmup.from 0, warmup.to 1"}
    assert str(found) == "optim.lr: a, c: 0.001; b: warmup.steps 9, warmup.from 0, warmup.to 1"


def test_what_differs_and_was_not_named_stands_beside_the_question():
    found = both(tree={"optim": {"lr": {"warmup": {"steps": 90, "from": 0, "to": 1}}}})
    assert names(found.beside) == ["optim.lr.warmup.steps"]


def test_keys_that_a_swapped_part_shares_with_the_other_are_no_part_of_the_swap():
    first = {"optim": {"use": "adamw", "lr": 1e-3, "betas": [0.9, 0.95]}}
    other = {"optim": {"use": "lars", "lr": 4.8, "trust": 0.001}}
    found = box({"base": [record(tree=first)], "other": [record(tree=other)]}, {"base": [], "other": ["optim.use"]})
    assert dict(zip(names(found.question), [one.values for one in found.question], strict=True)) == {
        "optim.use": {"base": "adamw (betas [0.9, 0.95])", "other": "lars (trust 0.001)"}
    }
    assert [(one.what, one.values) for one in found.beside] == [("optim.lr", {"base": "0.001", "other": "4.8"})]


def test_what_differs_within_a_part_is_told_by_its_own_place_though_another_variant_swaps_the_part():
    masks = {"a": {"use": "multiblock", "targets": 4, "keep": 1}, "b": {"use": "multiblock", "targets": 2, "keep": 1}}
    masks |= {"c": {"use": "random", "hide": 0.6}}
    found = box({name: [record(tree={"masks": {"image": one}})] for name, one in masks.items()}, {}).question
    assert {one.what: dict(one.values) for one in found} == {
        "masks.image.use": {"a": "multiblock (keep 1)", "b": "multiblock (keep 1)", "c": "random (hide 0.6)"},
        "masks.image.targets": {"a": "4", "b": "2", "c": "(absent)"},
    }


def test_the_same_images_at_another_path_are_fair():
    data = {"images": 9, "fingerprint": "beef"}
    sides = {
        name: [record(tree={"data": {"use": "folder", "root": root}}, identities=(data | more,))]
        for name, root, more in (("base", "/a", {}), ("other", "/b", {}), ("third", "/b", {"fingerprint": "cafe"}))
    }
    assert names(box({name: sides[name] for name in ("base", "other")}, {"base": [], "other": ["masks"]}).beside) == [
        "data.root"
    ]
    assert not box({name: sides[name] for name in ("base", "other")}, {"base": [], "other": ["masks"]}).unfair
    assert names(box(sides, {"base": [], "other": ["masks"]}).unfair) == ["training data: fingerprint"]


def test_a_cost_that_some_variant_did_not_record_is_not_taken_for_equal():
    found = both(lines=({"step": 1000, "seconds": 50.0},))
    assert [(one.what, one.values) for one in found.unfair] == [("patch tokens seen", {"other": "not recorded"})]


def test_seconds_are_those_of_the_processes_that_each_attempt_had():
    lines = ({"step": 400, "seconds": 9.0}, {"step": 900, "seconds": 10.0}, {"step": 1000, "seconds": 10.5})
    attempts = ({"from": 0, "processes": 4}, {"from": 400, "processes": 1}, {"from": 900, "processes": 2})
    assert record(lines=lines, attempts=attempts).seconds == 4 * 9 + 1 + 2 * 0.5
    shared = tuple(line | {"device_seconds": line["seconds"] / 2} for line in lines)  # cores that others used, too
    assert record(lines=shared, attempts=attempts).seconds == (4 * 9 + 1 + 2 * 0.5) / 2
    unknown = ({"step": 900, "seconds": None, "context_patches": None},)
    assert (record(lines=unknown).seconds, record(lines=unknown).tokens) == (None, None)


@pytest.mark.parametrize(
    ("changes", "trap"),
    [
        ({"step": 500}, "images seen"),
        ({"facts": {"flops_per_image": 12.0}}, "flops"),
        ({"line": {"seconds": 80.0}}, "seconds of device time"),
        ({"line": {"context_patches": 12.8}}, "patch tokens seen"),
        ({"plugins": {"mine": "cafe"}}, "version of the plugin mine"),
        ({"facts": {"commit": "cafe"}}, "commit"),
        ({"attempts": ({"threads": 1, "device": "cpu", "processes": 1}, {"threads": 2})}, "threads"),
        ({"evaluated": evaluated("teacher", versions={"timm": "1"})}, "version of timm, when it was evaluated"),
        ({"evaluated": evaluated("student")}, "networks evaluated"),
        ({"evaluated": evaluated("teacher", pooling="4 layers")}, "evaluation"),
        ({"facts": {"threads": 2}}, "threads"),
        ({"facts": {"versions": {"torch": "3"}}}, "versions"),
        ({"facts": {"device": "A100"}}, "machine"),
        ({"tree": {"data": {"use": "folder"}}}, "training data"),
        ({"tree": {"run": {**TREE["run"], "precision": "bf16"}}}, "precision"),
        ({"seed": 4}, "seeds"),
        ({"tree": {"targets": {"t": {"use": "ema", "momentum": 0.9999}}}}, "share of its starting weights"),
        (
            {"tree": {"optim": {"lr": {"warmup": {"steps": 400, "from": 0, "to": 1}}}}},
            "share of the run that is warm-up",
        ),
        ({"state": "failed"}, "runs that are not finished"),
        ({"line": {"rankme": 1.01}}, "health"),
    ],
)
def test_a_trap_is_told_as_unfair(changes, trap):
    found = both(**changes)
    assert any(what.startswith(trap) for what in names(found.unfair)), names(found.unfair)


def test_values_that_differ_far_from_their_beginning_differ_and_are_told_by_that():
    many = [0.1] * 40
    sides = [record(tree={"masks": {"image": {"scale": [*many, last]}}}) for last in (0.2, 0.3)]
    (told,) = box({"base": [sides[0]], "other": [sides[1]]}, {"base": [], "other": ["masks"]}).question
    assert [value[-5:] for value in told.grouped.values()] == [" 0.2]", " 0.3]"]


def test_values_that_differ_are_never_told_as_equal():
    """One that differs at its beginning made two long ones, which differ at their ends, the same."""
    long = ["x" * 200 + end for end in ("a" * 90 + "1", "a" * 90 + "2", "b" * 90)]
    texts = {"short": "0.001", **dict(zip("abc", long, strict=True)), "as a": long[0]}
    told = Finding("lr", texts).grouped
    assert list(told) == ["short", "a, as a", "b", "c"]
    assert len(set(told.values())) == 4
    assert all(len(value) <= LONGEST + 3 for value in told.values())
    assert [value[-1] for value in told.values()][:3] == ["1", "1", "2"]


def test_a_key_with_keys_below_it_is_one_leaf_with_all_of_them():
    deep = {"lr.warmup.steps": 3, "lr.warmup.from": 0, "lr.each": "epoch"}
    found = _of_one_depth({"a": {"lr": 1}, "b": {"lr.warmup": 5}, "c": deep})
    assert found["b"] == {"lr": "warmup 5"}
    assert found["c"] == {"lr": "warmup.steps 3, warmup.from 0, each epoch"}


def test_settings_of_the_data_that_their_identity_does_not_tell_stand_beside():
    """Rendered scenes of another size have the labels, and so the identity, of these."""
    sides = [record(tree={"data": {"use": "scenes", "size": n}}, identities=({"images": 9},)) for n in (64, 32)]
    found = box({"base": [sides[0]], "other": [sides[1]]}, {"base": [], "other": ["masks"]})
    assert names(found.beside) == ["data.size"]


@pytest.mark.parametrize("same", [True, False])
def test_data_that_changed_on_the_way_are_told_whoever_shares_the_change(same):
    changed = record(identities=({"images": 9, "fingerprint": "beef"}, {"images": 9, "fingerprint": "cafe"}))
    other = changed if same else record(identities=({"images": 9, "fingerprint": "cafe"},))
    found = {one.what: one.values for one in box({"base": [other], "other": [changed]}, {}).unfair}
    assert found["training data: fingerprint"]["other"] == "beef, cafe"


def test_masks_that_depend_on_how_many_are_drawn_together_are_told_where_that_differs():
    sides = [record(identities=({"images": 9, MASKED_TOGETHER: n},)) for n in (16, 8, 16)]
    found = box({"base": [sides[0]], "other": [sides[1]], "plain": [record(identities=({"images": 9},))]}, {})
    assert [(one.what, one.values) for one in found.unfair] == [(MASKED_TOGETHER, {"base": "16", "other": "8"})]
    assert not box({"base": [sides[0]], "other": [sides[2]]}, {}).unfair


def test_a_class_token_beside_a_mean_of_patches_is_other_pooling():
    sides = {
        name: [record(evaluated=evaluated("teacher", pooling="summary", summary=word))]
        for name, word in (("a", "class token"), ("b", "mean of patches"), ("c", ""))
    }
    (found,) = box(sides, {}).unfair
    assert (found.what, dict(found.values)) == (
        "pooling",
        {"a": "class token", "b": "mean of patches", "c": "not recorded"},
    )
    assert not box({name: sides[name] for name in "ac"}, {}).unfair


def test_settings_that_changed_when_a_run_went_on_stand_beside_the_question():
    attempts = tuple({"settings": {"run.micro": n, "run.shard": 1}} for n in (16, 8, 8))
    (found,) = both(attempts=attempts).beside
    assert (found.what, dict(found.values)) == ("run.micro, changed when a run went on", {"other": "16, then 8"})


def test_test_images_that_the_probes_have_seen_are_told():
    some = {"data": {"test": {"images": 300}}}
    known = [evaluated("teacher", overlap=n, **some) for n in (4, 3)]
    (found,) = box({"a": [record(evaluated=known[0])], "b": [record(evaluated=known[1])]}, {}).unfair
    assert dict(found.values) == {
        "a": "4 of 300 test images seem to be training images of the probes, too: their views are alike"
    }


def test_a_run_that_was_trained_on_the_test_images_is_told():
    known = evaluated("teacher", data={"test": {"images": 300, "fingerprint": "beef"}})
    sides = [record(evaluated=known, identities=({"fingerprint": name},)) for name in ("beef", "cafe")]
    found = {one.what: dict(one.values) for one in box({"a": [sides[0]], "b": [sides[1]]}, {}).unfair}
    assert found["seems to have trained, without labels, on the test images"] == {"a": "their fingerprints are equal"}
    (both,) = box({"a": [sides[0]], "b": [sides[0]]}, {}).unfair
    assert both.why == "figures are of images seen in training"


def test_a_probe_that_only_some_were_read_by_is_no_unfairness_to_the_others():
    knn, sides = {"use": "knn", "k": [5]}, {}
    for name, more in (("a", {}), ("b", {"few": {"use": "few"}}), ("c", {"knn": knn | {"k": [9]}})):
        sides[name] = [record(evaluated=evaluated("teacher", probes={"knn": knn} | more))]
    assert not box({name: sides[name] for name in "ab"}, {}).unfair
    (found,) = box(sides, {}).unfair
    assert (found.what, found.grouped) == ("evaluation: probes.knn.k", {"a, b": "[5]", "c": "[9]"})


def test_a_probe_that_two_of_three_were_read_by_is_one_for_these_two():
    """They are compared by it, whatever the third has."""
    sides = {}
    for name, few in (("a", {"images": 1}), ("b", {"images": 5}), ("c", None)):
        probes = {"knn": {"use": "knn"}} | ({"few": {"use": "few"} | few} if few else {})
        sides[name] = [record(evaluated=evaluated("teacher", probes=probes))]
    (found,) = box(sides, {}).unfair
    assert (found.what, found.grouped) == ("evaluation: probes.few.images", {"a": "1", "b": "5"})
    assert not box({name: sides[name] for name in "ac"}, {}).unfair


def test_of_an_evaluation_that_differs_it_is_told_in_what():
    found = both(evaluated=evaluated("teacher", pooling="last 4 blocks", data={"test": {"images": 7}}))
    told = {one.what: dict(one.values) for one in found.unfair}
    assert told["evaluation: pooling"] == {"base": "(absent)", "other": "last 4 blocks"}
    assert told["evaluation: data.test.images"]["other"] == "7"
    assert both(evaluated={}).unfair[0].values == {"other": "none"}


def test_what_is_not_finished_is_told_once_and_takes_no_part():
    found = box({"base": [record(), record(1)], "other": [record(), record(1, step=400, state="failed")]}, {})
    assert names(found.unfair) == ["runs that are not finished", "seeds"]
    assert found.unfair[-1].values == {"base": "0, 1", "other": "0"}
    nothing = box({"base": [record(state="running")], "other": [record(step=7, state="running")]}, {})
    assert "images seen" in names(nothing.unfair)  # where none is finished, what there is


def test_the_share_a_teacher_keeps_is_the_product_of_its_momenta():
    one = record(tree={"targets": {"t": {"use": "ema", "momentum": 0.999}}})
    assert one.kept == pytest.approx(0.999**1000)
