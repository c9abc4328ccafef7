"""Pages as a browser shows them, and the pictures on them against what is known of them."""

import csv
import io
import math
import re
from urllib.parse import unquote

import pytest
import torch
from browser import look
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import RunError
from sslzoo.evaluate.bench import untrained
from sslzoo.recipe.recipe import load
from sslzoo.report import html, insides, page, predictions
from sslzoo.report.charts import curve
from sslzoo.report.html import Cell, Page, Table, number

SETS = ("evaluate.test.length=12", "run.steps=4", "run.batch=8", "run.micro=4")


@pytest.fixture(scope="module")
def two():
    """Two networks of the same start, to look into: the second sees other masks."""
    looks = []
    for name, more in (("multiblock", ()), ("random", ("masks.image={use: random, hide: 0.6}",))):
        recipe, installed = load("tiny/ijepa", (*SETS, *more))
        looks.append(page.look(recipe, installed, untrained(recipe, installed), f"{name}, seed 0, 0 steps"))
    return looks


@pytest.fixture(scope="module")
def written(two, tmp_path_factory):
    rows = [[Cell("b", "b"), number(9.5)], [Cell("a", "a"), number(10.25)], [Cell("c", "c"), number(math.nan)]]
    table = Table("Figures", "Percent.", ["variant", "a figure with a name that is quite long"], rows)
    lines = [{"step": n, "loss": 1 / n, "rankme": 5.0, "lr": 0.1, "guess/target_std": 0.9} for n in range(1, 60)]
    figures = {"trained": {"knn/x/top1": 30.0}, "untrained": {"knn/x/top1": 20.0}, "chance": {"x": 10.0}}
    drawn = [page._curves(lines, 16), page._bars(figures), *insides.charts(two)]
    said = ["<b>No</b> markup of a name is believed; " + "a_long_word" * 12]
    more = {"evidence": ["rank 5"], "made": [("versions", "torch " + "2" * 90)]}
    return html.write(
        tmp_path_factory.mktemp("page"), Page("trial", "", said, [table], drawn, [("Command", "x" * 900)], **more)
    )


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_a_browser_shows_the_page_offline_sorts_and_finds_nothing_wrong(written, tmp_path, width, dark):
    found = look(written, tmp_path, width, dark)
    assert (found["errors"], found["console"], found["asked"], found["broken"]) == ([], [], [], 0)
    assert found["room"] == width
    assert found["wide"] <= width
    names = [[row[0] for row in rows] for rows in found["after"]]
    assert names == [["c", "b", "a"], ["a", "b", "c"], ["a", "b", "c"], ["c", "b", "a"]]  # numbers as numbers
    light = [int(x) for x in re.findall(r"\d+", found["ink"])][:3]
    assert (min(light) > 200) is dark


def test_every_figure_has_its_numbers_in_the_page_and_beside_it(written):
    text = written.read_text()
    names = {path.stem for path in written.parent.glob("*.svg")}
    assert {"curves", "figures", "masks", "features", "attention", "neighbors"} <= names
    for name in names:
        own = (written.parent / f"{name}.csv").read_text()
        data = re.search(rf'download="{name}.csv" href="data:text/csv;charset=utf-8,([^"]*)"', text)
        assert unquote(data[1]) == own
        assert own.count("\n") > 1
    assert "<b>No</b>" not in text


def test_ids_of_one_figure_are_no_other_figures(written):
    ids = re.findall(r'\bid="([^"]+)"', written.read_text())
    assert not [one for one in set(ids) if ids.count(one) > 1]


def test_maps_of_coverage_are_the_mean_over_masks_as_trained(two):
    rows = list(csv.DictReader(io.StringIO(insides.of_masks(two).csv)))
    seen, shares = {}, {}  # of the maps, and of the histograms
    for name in ("multiblock", "random"):
        own = [row for row in rows if name in row["run"]]
        seen[name] = [float(row["seen"]) for row in own if row["seen"]]
        draws = [(float(row["share seen"]), int(row["masks"])) for row in own if row["masks"]]
        shares[name] = sum(share * many for share, many in draws) / sum(many for _, many in draws)
        assert shares[name] == pytest.approx(sum(seen[name]) / 64)
    assert len(seen["random"]) == 64
    assert sum(seen["random"]) / 64 == pytest.approx(0.4, abs=0.01)  # of 64 patches 0.6 are hidden
    assert [one.batch for one in two] == [4, 4]


def test_a_curve_of_one_point_is_seen():
    drawn = []
    for x in ([5], [5, 6]):
        page = Figure(figsize=(1, 1))
        curve(page.subplots(), x, [0.5] * len(x), "#000000", "loss")
        drawn.append(page.axes[0].lines[0].get_marker())
    assert drawn == ["o", ""]


def test_rotated_features_get_the_same_colors():
    x = torch.randn(2, 4, 4, 3)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    one, other = insides.alike([x, x @ rotation])
    assert torch.allclose(one, other, atol=1e-5)
    assert 0 <= one.min() < one.max() <= 1


def test_components_have_variance_one_and_do_not_depend_on_the_mode(two):
    encoder = two[0].encoder.train()
    found = insides.scores(encoder, two[0].pixels[:3])
    assert found.shape == (3, 8, 8, 3)
    assert torch.allclose(found.flatten(0, 2).var(0), torch.ones(3), atol=1e-4)
    assert encoder.training


@pytest.mark.parametrize("classed", [True, False])
def test_attention_is_the_softmax_that_a_hook_sees(classed):
    recipe, installed = load("tiny/ijepa", (*SETS, f"encoder.class_token={str(classed).lower()}"))
    encoder = untrained(recipe, installed).student.encoder.eval()
    pixels, taken = torch.randn(2, 3, 64, 64), []
    last = encoder.blocks[-1].attn
    hook = last.qkv.register_forward_hook(lambda _m, _i, out: taken.append(out))
    seen = insides.attention(encoder, pixels)
    chosen = insides.attention(encoder, pixels, (2, 5))
    hook.remove()
    n, tokens = taken[-1].shape[:2]
    q, k, _ = taken[-1].reshape(n, tokens, 3, 3, 32).permute(2, 0, 3, 1, 4)
    full = (q @ k.transpose(-2, -1) / 32**0.5).softmax(-1).mean(1)
    asks = 0 if classed else 4 * 8 + 4
    assert seen.asks == ("class token" if classed else "patch 4,4")
    assert torch.allclose(seen.maps.flatten(1), full[:, asks, tokens - 64 :] * tokens, atol=1e-4)
    assert chosen.asks == "patch 2,5"
    asks = tokens - 64 + 2 * 8 + 5
    assert torch.allclose(chosen.maps.flatten(1), full[:, asks, tokens - 64 :] * tokens, atol=1e-4)
    with pytest.raises(RunError, match="no patch 2,8: rows are 0 to 7, columns 0 to 7"):
        insides.attention(encoder, pixels, (2, 8))


def test_an_encoder_without_attention_is_told_and_not_drawn(two):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, pixels, context=None, layers=0):
            from sslzoo import Tokens

            x = F.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2) * self.scale
            return Tokens(x, torch.arange(64).expand(len(x), -1), x.mean(1), (8, 8))

    assert insides.attention(Mean(), two[0].pixels[:2]) is None
    bare = insides.Look("bare, seed 0", Mean(), two[0].pixels)
    drawn = {one.name: one for one in insides.charts([bare, two[0]])}
    assert "No attention to draw, or no such patch: bare, seed 0" in drawn["attention"].caption
    with pytest.raises(RunError, match="no encoder here has attention"):
        list(insides.charts([bare], (0, 0)))


def test_a_variant_of_a_smaller_grid_takes_no_patch_from_the_others(two):
    """It ended the whole page, and was not named."""
    small = untrained(*load("tiny/ijepa", (*SETS, "encoder.patch=16"))).student.encoder
    looks = [two[0], insides.Look("coarse, seed 0", small, two[0].pixels)]
    drawn = {one.name: one for one in insides.charts(looks, (2, 5))}
    assert drawn["attention"].caption.endswith("no such patch: coarse, seed 0.")
    with pytest.raises(RunError, match="coarse, seed 0: there is no patch 9,0: rows are 0 to 3"):
        list(insides.charts(looks, (9, 0)))


def test_neighbors_are_those_of_a_loop():
    x = torch.randn(20, 5)
    near, which = insides.nearest(x, 3, 4)
    for asked in range(3):
        cosines = [(torch.cosine_similarity(x[asked], x[n], dim=0).item(), n) for n in range(20) if n != asked]
        best = sorted(cosines, reverse=True)[:4]
        assert which[asked].tolist() == [n for _, n in best]
        assert near[asked].tolist() == pytest.approx([c for c, _ in best], abs=1e-5)


RAW = (*SETS, "data.length=96", "data.cache=false")


def test_a_decoder_learns_from_targets_alone_and_draws_both():
    recipe, installed = load("tiny/ijepa_pixels", RAW)
    method = untrained(recipe, installed)
    drawn = predictions.of_predictions(recipe, installed, method, "pixels")
    shares = dict(row.split(",")[-2:] for row in drawn.csv.splitlines()[1:])
    assert float(shares["the target"]) > 0.9  # the targets are the pixels themselves
    assert float(shares["the prediction"]) < 0.3  # and this predictor has learned nothing
    bare, _ = load("tiny/simclr", SETS)
    assert predictions.of_predictions(bare, installed, untrained(bare, installed), "simclr") is None


def test_guesses_lie_where_they_were_asked_for():
    recipe, installed = load("tiny/ijepa_pixels", RAW)
    method = untrained(recipe, installed)
    batches, there = predictions._batches(recipe, installed, method)
    assert there == 3  # of 96 images
    batch = batches(0)
    one = predictions.guesses(method, batch, "image", "patch", "pixels", "patch")
    mask = batch.groups["image"].mask
    assert torch.equal(one.target, one.pixels)  # raw pixels, at the places of the target blocks
    assert torch.equal(predictions._laid(one, one.pixels, one.whole * 0 + 7)[0, int(one.index[0])], one.pixels[0])
    untouched = predictions._laid(one, one.pixels, one.whole * 0 + 7)[0]
    asked = set(mask.target.index[0].flatten().tolist())
    assert all((untouched[n] == 7).all() == (n not in asked) for n in range(64))
    assert predictions.explained(one.pixels, one.pixels, one.pixels.mean(0)) == 1
    assert predictions.explained(one.pixels.mean(0).expand_as(one.pixels), one.pixels, one.pixels.mean(0)) == 0
    image = batch.groups["image"].pixels[0, 0]
    assert torch.equal(predictions._images(one.whole, one.grid)[0], image.permute(1, 2, 0))
