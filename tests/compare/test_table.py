"""What may be said of a table: what is sure, what is not, and what there is nothing to say of."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from made_up import evaluated, record

from sslzoo import RunError
from sslzoo.compare import charts, page
from sslzoo.compare.fairness import Box, Finding
from sslzoo.compare.page import _tables
from sslzoo.compare.statistics import difference
from sslzoo.compare.table import compare, shown, verdict
from sslzoo.report import charts as drawing


def runs(variant, values):
    """Runs of a variant, a seed for each of its figures of two tasks."""
    found = []
    for seed, (x, y) in enumerate(values):
        figures = {"knn/x/top1": x, "linear/y/top1": y}
        columns = {"trained": figures, "untrained": {"knn/x/top1": 40.0, "linear/y/top1": 30.0}}
        columns["chance"] = {"x": 10.0, "y": 20.0}
        found.append(record(seed, variant=variant, evaluated=evaluated("teacher", figures=columns)))
    return found


BASE = [(50.0, 60.0), (51.0, 61.5), (52.0, 59.0)]


def said(other):
    return verdict(compare({"base": runs("base", BASE), "other": runs("other", other)}, "base"))


def test_what_is_surely_higher_and_lower_is_named_and_the_rest_is_not_sure():
    (line,) = said([(55.0, 55.0), (56.1, 56.4), (56.9, 54.1)])
    assert line.startswith("other against base: surely higher on teacher knn/x (+5.0 points, p ")
    assert "; surely lower on teacher linear/y (-5.0 points, p " in line
    assert "no sure" not in line
    (line,) = said([(55.0, 62.0), (56.1, 59.0), (56.9, 60.1)])
    assert "; no sure difference on the other 1 (the largest: teacher linear/y, " in line
    (line,) = said([(50.5, 62.0), (50.4, 59.0), (52.1, 60.1)])
    assert line.startswith("other against base: no sure difference on any of 2 figures")


def test_what_only_the_correction_made_unsure_is_told():
    against, nearly = said([(54.0, 60.0), (56.0, 61.5), (59.5, 59.0)])
    assert "(the largest: teacher knn/x, +5.5 points, p 0.068 (alone 0.034))" in against
    assert nearly.startswith("Corrected for 2 tests, p is 0.05 or more where a test alone would be below (other 1)")


def test_a_figure_that_is_not_finite_is_left_out_and_told():
    found = compare({"base": runs("base", BASE), "other": runs("other", [(55.0, float("nan")), *BASE[1:]])}, "base")
    assert found.left_out == ("teacher linear/y: other, seed 0 has none, or one not finite",)
    assert found.summaries["other"]["teacher linear/y"].values == (61.5, 59.0)
    assert "2 seeds" in found.differences["other"]["teacher linear/y"].why
    assert not any("nan" in line for line in verdict(found))
    assert next(iter(_tables({}, found))).rows[1][2].text == "60.2 ± 1.8 (2 of 3)"


def test_figures_of_unlike_evaluations_are_shown_and_not_tested():
    other = runs("other", [(90.0, 90.0), (91.5, 91.0), (92.0, 95.0)])
    other = [
        record(
            one.seed,
            variant="other",
            evaluated=evaluated("teacher", figures=one.evaluated["teacher"].columns, data={"test": {"length": 200}}),
        )
        for one in other
    ]
    (line,) = verdict(compare({"base": runs("base", BASE), "other": other}, "base"))
    assert "not tested: evaluated in different ways" in line
    assert "surely" not in line


def test_another_probe_beside_it_makes_a_figure_no_other():
    variants = {"base": runs("base", BASE), "other": runs("other", [(55.0, 55.0), (56.1, 56.4), (56.9, 54.1)])}
    for name, more in (("base", {}), ("other", {"linear": {"use": "linear", "held_out": 0.5}})):
        for one in variants[name]:
            probes = {"knn": {"use": "knn"}, "linear": {"use": "linear"}} | more
            one.evaluated["teacher"].content["probes"] = probes
    found = compare(variants, "base").differences["other"]
    assert {what: one.why for what, one in found.items()} == {
        "teacher knn/x": "",
        "teacher linear/y": "evaluated in different ways",
    }


def test_of_few_seeds_or_one_variant_nothing_is_said_to_be_sure():
    (line,) = said([(90.0, 90.0), (91.0, 91.0)])
    assert "not tested: 2 seeds: a test needs at least 3" in line
    assert "surely" not in line.replace("no sure", "")
    (line,) = verdict(compare({"base": runs("base", BASE)}, "base"))
    assert line == "Only base has finished runs with figures, so there is nothing to compare it with."
    (line,) = verdict(compare({"other": runs("other", BASE)}, "base"))
    assert "The baseline base has no finished run" in line
    assert "nothing to compare yet" in verdict(compare({}, "base"))[0]


def test_without_an_untrained_encoder_nothing_is_said_of_learning():
    bare = [record(seed, variant="a", evaluated=evaluated("teacher")) for seed in range(3)]
    assert not [line for line in verdict(compare({"a": bare}, "a")) if "untrained" in line]


def test_a_figure_that_one_variant_lacks_and_a_second_run_of_a_seed_are_told():
    both = [record(seed, variant="a", evaluated=evaluated("teacher") | evaluated("student")) for seed in (0, 0, 1)]
    one = [record(seed, variant="b", evaluated=evaluated("student")) for seed in (0, 1)]
    found = compare({"a": both, "b": one}, "a")
    assert found.figures == ("student knn/x",)
    assert [line.split(": ")[1] for line in found.left_out] == [
        "nowhere is a second run of this recipe and seed",
        "b has none, or one not finite",
    ]
    assert found.left_out[1].startswith("teacher knn/x: ")
    assert len(found.summaries["a"]["student knn/x"].values) == 2


def test_a_network_that_one_variant_lacks_is_told_in_a_word():
    many = {"trained": {f"knn/{task}/top1": 1.0 for task in "xyz"}}
    both = [record(variant="a", evaluated=evaluated("teacher", figures=many) | evaluated("student"))]
    (line,) = compare({"a": both, "b": [record(variant="b", evaluated=evaluated("student"))]}, "a").left_out
    assert line == "all 3 figures of the teacher: b has none, or one not finite"


def test_a_variant_without_a_teacher_takes_no_teachers_figures_from_the_others():
    """One variant of pixels took the paper's network out of a whole study."""

    def both(variant, values):
        one = runs(variant, values)
        own = [evaluated("student", figures=each.evaluated["teacher"].columns) for each in one]
        return [replace(each, evaluated=each.evaluated | more) for each, more in zip(one, own, strict=True)]

    variants = {"base": both("base", BASE), "other": both("other", [(55.0, 55.0), (56.1, 56.4), (56.9, 54.1)])}
    variants["bare"] = [replace(one, evaluated={"student": one.evaluated["student"]}) for one in both("bare", BASE)]
    found = compare(variants, "base")
    assert found.networks == ("teacher", "student")
    assert {name: len(own) for name, own in found.differences.items()} == {"other": 4, "bare": 2}
    p = found.differences["other"]["teacher knn/x"]
    assert p.p == pytest.approx(min(1, 6 * p.alone), rel=0.5)  # 6 tests, not 8
    assert found.left_out == ("teacher knn/x, teacher linear/y: bare has none, or one not finite",)
    first, *_ = _tables(variants, found)
    assert [cell.text for cell in first.rows[0][1:4]] == ["51.0 ± 1.0", "56.0 ± 1.0", ""]
    drawn = [one.csv for one in page._charts(variants, found)]
    assert "student linear/y" in drawn[0]  # what all have
    assert "teacher" in drawn[1]
    assert any("bare" in line for line in verdict(found))
    shown(found)


def test_an_encoder_that_learned_nothing_is_told():
    lines = said([(40.0, 30.1), (40.2, 30.0), (39.0, 29.0)])
    assert lines[-1] == "Not above its untrained encoder on any figure: other."


def test_tables_have_untrained_and_chance_and_many_panels_have_room():
    variants = {"base": runs("base", BASE), "other": runs("other", BASE)}
    found = compare(variants, "base")
    first = next(iter(_tables(variants, found)))
    assert first.heading == "Figures of the teacher"
    assert first.head == ["probe/task", "base", "other", "untrained", "chance"]
    assert [[cell.text for cell in row[-2:]] for row in first.rows] == [["40.0", "10.0"], ["30.0", "20.0"]]
    few = {"base": runs("base", BASE[:1]), "other": runs("other", BASE[:1])}
    gaps = list(_tables(few, compare(few, "base")))[2]
    assert [[cell.text for cell in row] for row in gaps.rows] == [["knn/x", "+0.0"], ["linear/y", "+0.0"]]
    assert gaps.note.endswith("Where no p stands, there was no test: 1 seed: a test needs at least 3.")
    many = {f"teacher knn/{n}": found.differences["other"]["teacher knn/x"] for n in range(16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where panels have no room
        assert charts.differences({"other": many}, "base", ["base", "other"]).svg


def test_an_untrained_encoder_that_one_variant_lacks_is_told_for_the_figures_of_the_others():
    """A variant without a teacher, or without a probe, took the column out of the whole table."""
    variants = {"base": runs("base", BASE), "other": runs("other", BASE), "bare": runs("bare", BASE)}
    for one in variants["bare"]:
        for column in ("trained", "untrained"):
            del one.evaluated["teacher"].content["figures"][column]["linear/y/top1"]
    first, *_ = _tables(variants, compare(variants, "base"))
    assert [[cell.text for cell in row[-3:]] for row in first.rows] == [
        ["51.0 ± 1.0", "40.0", "10.0"],
        ["", "30.0", "20.0"],
    ]
    variants["other"] = runs("other", BASE)
    for one in variants["other"]:
        del one.evaluated["teacher"].content["figures"]["untrained"]["knn/x/top1"]
    first, *_ = _tables(variants, compare(variants, "base"))
    assert [[cell.text for cell in row[-2:]] for row in first.rows] == [["", "10.0"], ["30.0", "20.0"]]


def test_gains_are_paired_with_the_untrained_encoder_of_each_run_and_tell_how_many_were():
    variants = {"base": runs("base", BASE), "other": runs("other", BASE)}
    bare = {"trained": {"knn/x/top1": 99.0, "linear/y/top1": 99.0}}
    variants["other"][0] = record(0, variant="other", evaluated=evaluated("teacher", figures=bare))
    gains = list(_tables(variants, compare(variants, "base")))[1]
    assert gains.heading == "Gains of the teacher over the untrained encoder"
    assert [cell.text for cell in gains.rows[0]] == ["knn/x", "+11.0 ± 1.0", "+11.5 ± 0.7 (2 of 3)"]
    variants["base"] += [*runs("base", [(99.0, 99.0)]), record(3, variant="base", state="running")]  # are left out
    gains = list(_tables(variants, compare(variants, "base")))[1]
    assert gains.rows[0][1].text == "+11.0 ± 1.0"


def test_every_task_is_drawn_against_the_costs_that_differ():
    variants = {"base": runs("base", BASE), "other": runs("other", BASE)}
    for one in variants["other"]:
        one.facts["flops_per_image"] = 20.0
    for each in variants.values():
        for one in each:
            one.figures["teacher"]["linear/x/top1"] = 50.0
    found = compare(variants, "base")
    drawn = next(page._charts(variants, found))
    told = {tuple(row.split(",")[:2]) for row in drawn.csv.splitlines()[1:]}
    assert drawn.csv.splitlines()[0] == "figure,cost,variant,seed,x,y"
    assert told == {(f"teacher linear/{task}", "training FLOPs") for task in "xy"}
    assert "Alike for all runs, and so not drawn: images seen, device seconds." in drawn.caption


def test_of_unlike_encoders_the_untrained_ones_are_told_from_the_lowest_to_the_highest():
    variants = {"base": runs("base", BASE), "wide": runs("wide", BASE)}
    for one in variants["wide"]:
        one.untrained["teacher"]["knn/x/top1"] = 43.0
    first = next(iter(_tables(variants, compare(variants, "base"))))
    assert [row[-2].text for row in first.rows] == ["40.0 to 43.0", "30.0"]


def test_many_variants_are_told_apart_by_color_and_mark_or_color_and_dash():
    names = [f"v{n}" for n in range(24)]
    assert len({drawing.color(names, name) for name in names}) == 24
    assert len({(drawing.color(names, name)[0], drawing.dash(names, name)) for name in names}) == 24


def test_who_reads_the_verdict_alone_is_told_that_not_all_was_equal():
    assert page.caveat(Box()) == []
    found = [Finding("evaluation: data.test.images", {}), Finding("evaluation: view.size", {}), Finding("flops", {})]
    (line,) = page.caveat(Box(unfair=found))
    assert line.endswith("may come of that: evaluation, arithmetic of the training (flops) (below, under Unfair).")


def test_what_a_verdict_of_one_variant_points_to_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_sources", lambda *_: [])
    variants, fair = {"base": runs("base", BASE)}, Box(unfair=[Finding("health", {"base": "sick"})])
    made = [
        page.write(tmp_path, "one", variants, compare(variants, "base"), one, "").read_text() for one in (fair, Box())
    ]
    assert ["below, under Unfair" in text and "<i>sick</i>" in text for text in made] == [True, False]


def test_places_of_a_recipe_have_words_beside_them():
    one, other = page._in_words([Finding("masks.image.use", {}), Finding("steps", {})])
    assert (one.what, other.what) == ("what is hidden (masks.image.use)", "steps")


@pytest.mark.parametrize("order", [("student", "teacher"), ("teacher", "student")])
def test_the_teachers_figures_come_first(order):
    both = [evaluated(name, figures={"trained": {"knn/x/top1": 1.0}}) for name in order]
    one = record(evaluated=both[0] | both[1])
    assert compare({"base": [one]}, "base").networks == ("teacher", "student")


def test_pictures_are_of_the_first_seed_that_can_be_opened(monkeypatch):
    """One torn checkpoint took a variant out of every picture."""

    def opened(folder, name, network=None):
        if folder == "torn":
            raise RunError("no checkpoint can be read")
        return SimpleNamespace(folder=folder, title=name, network="student", pixels=torch.zeros(0, 3, 8, 8))

    monkeypatch.setattr(page.page_of_run, "opened", opened)
    torn, whole = SimpleNamespace(folder="torn"), SimpleNamespace(folder="whole")
    looks, blind = page.opened_looks({"a": [torn, whole], "b": [torn]})
    assert [(one.folder, one.title) for one in looks] == [("whole", "a")]
    assert blind == ["pictures of b: no checkpoint can be read"]


def test_networks_that_see_other_images_are_in_no_picture_with_the_first(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(9, 3, 32, 32, generator=generator)
    pictures = {"a": pixels, "normalized": pixels * 3 - 1, "others": torch.rand(9, 3, 32, 32, generator=generator)}
    pictures["fewer"] = pixels[:5]
    look = lambda _, name, network: SimpleNamespace(title=name, network="student", pixels=pictures[name])  # noqa: E731
    monkeypatch.setattr(page.page_of_run, "opened", look)
    blind = page.opened_looks({name: [SimpleNamespace(folder="x")] for name in pictures})[1]
    assert [line.split(":")[0] for line in blind] == ["pictures of others", "pictures of fewer"]


def test_pictures_are_of_one_kind_of_network(monkeypatch):
    """Those of pixels were of a student, beside teachers."""
    has = {"a": "teacher", "b": "student"}

    def opened(folder, name, network=None):
        return SimpleNamespace(title=name, network=network or has[name], pixels=torch.zeros(0, 3, 8, 8))

    monkeypatch.setattr(page.page_of_run, "opened", opened)
    kinds = lambda *names: [one.network for one in page.opened_looks({n: [record()] for n in names})[0]]  # noqa: E731
    assert kinds("a", "b") == ["student", "student"]
    assert kinds("a") == ["teacher"]


def test_all_that_is_drawn_of_seeds_is_in_the_csv():
    lines = [tuple({"step": n, "loss": loss} for n, loss in enumerate(own, 1)) for own in ([4.0, 1.0], [2.0, 3.0])]
    variants = {"base": [record(seed=seed, lines=own) for seed, own in enumerate(lines)]}
    told = [row.split(",") for row in charts.curves(variants, {"loss": "loss"}, "curves", "").csv.splitlines()]
    assert told[0] == ["variant", "metric", "images", "mean", "low", "high"]
    assert [[float(x) for x in row[2:]] for row in told[1:]] == [[16, 3, 2, 4], [32, 2, 1, 3]]
    gaps = {"other": {"knn/x": difference([3.0, 5.0, 7.5], [2.0, 2.0, 2.0])}}
    row = charts.differences(gaps, "base", ["base", "other"]).csv.splitlines()[1].split(",")
    assert [float(x) for x in row[3].split()] == [1.0, 3.0, 5.5]
