"""What can be trained, and yet a person may not have meant; and what a rehearsed step refuses in words of its own."""

import pytest

from sslzoo import RecipeError
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load

CLASS = "evaluate.layers: 0 probes the class token, which no loss reads; 1 probes the patches of the last block"


@pytest.mark.parametrize(
    ("name", "sets", "remarks"),
    [
        (
            "tiny/simclr",
            ["targets={slow: {use: ema}}", "evaluate.network=student"],
            ["no loss reads targets.slow: its arithmetic serves nothing"],
        ),
        ("tiny/simclr", ["targets={slow: {use: ema}}", "evaluate.network=slow"], []),  # it is probed
        ("tiny/simclr", ["targets={slow: {use: ema}}", "evaluate.network=auto"], []),  # the first teacher
        ("tiny/ijepa", ["encoder.class_token=true"], [CLASS]),
        ("tiny/data2vec", ["evaluate.layers=0"], [CLASS]),
        ("tiny/mae", ["evaluate.layers=0"], []),  # the decoder reads the class token
        ("tiny/simclr", ["encoder.hidden=fill"], ["no gradient reaches encoder.mask_token"]),
        ("tiny/simclr", ["predictor.patches=true"], []),  # a head that could speak of patches, and no masks
    ],
)
def test_what_serves_nothing_is_remarked(name, sets, remarks):
    assert check(*load(name, sets)).remarks == remarks


@pytest.mark.parametrize(
    ("name", "sets", "says"),
    [
        ("tiny/simclr", ["views.image.count=3"], "contrasts 2 views of each image, found 3"),
        ("tiny/simclr", ["run.batch=1"], "contrasts each image with others, but the batch has one: 2 images or more"),
        ("tiny/data2vec", ["encoder.hidden=drop"], "nothing to read at target patches; set encoder.hidden to fill"),
        ("tiny/msn", ["masks={whole: {use: random}}"], "hides nothing: the student does not read this group"),
    ],
)
def test_what_a_part_refuses_is_told_in_its_words(name, sets, says):
    with pytest.raises(RecipeError, match=says) as caught:
        check(*load(name, sets))
    assert "rehearsed" not in str(caught.value)
    assert "Error" not in str(caught.value)
