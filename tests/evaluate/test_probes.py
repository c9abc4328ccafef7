"""Do probes read what is in features, no more and no less?"""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sslzoo_probes import FewLabels, Heads, Knn, Linear, frozen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslzoo import Features, RunError
from sslzoo.run.metrics import Lines, rankme


def clouds(n, classes=4, d=6, apart=1.2, seed=0):
    """Gaussian clouds at the corners of a simplex, so the best rule is the nearest centre."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=rng)
    centres = torch.eye(classes, d) * apart
    return Features(centres[y] + torch.randn(n, d, generator=rng) * 0.5, {"kind": y}, {"kind": classes}), centres


def test_knn_votes_as_a_loop_does():
    train, _ = clouds(60)
    test, _ = clouds(40, seed=1)
    right = 0
    for x, y in zip(test.x, test.labels["kind"], strict=True):
        near = sorted(range(60), key=lambda i: -torch.cosine_similarity(x, train.x[i], dim=0).item())[:7]
        votes = [0.0] * 4
        for i in near:
            votes[int(train.labels["kind"][i])] += math.exp(torch.cosine_similarity(x, train.x[i], dim=0).item() / 0.07)
        right += votes.index(max(votes)) == int(y)
    figures = Knn(k=(7,))(train, test, 0)
    answers = figures.pop("kind/correct")
    assert (answers.dtype, answers.sum()) == (torch.bool, right)
    score = pytest.approx(right / 40 * 100)
    assert figures == {"kind/top1": score, "kind/top1@7": score, "kind/k": 7}


def test_knn_chooses_k_by_leaving_training_images_out_whatever_the_test_images_say():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    train, test = clouds(60)[0], clouds(40, seed=1)[0]
    figures = Knn(k=(1, 3, 20, 500))(train, test, 0)
    assert {key.partition("/")[2] for key in figures} == {"top1", "correct", "k", "top1@1", "top1@3", "top1@20"}
    scores = {}
    for k in (1, 3, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
        scores[k] = cross_val_score(theirs, train.x.numpy(), train.labels["kind"].numpy(), cv=LeaveOneOut()).mean()
    best = max(scores, key=lambda k: scores[k])
    assert (figures["kind/k"], figures["kind/top1"]) == (best, figures[f"kind/top1@{best}"])
    swapped = Features(test.x, {"kind": (test.labels["kind"] + 1) % 4}, test.tasks)
    assert Knn(k=(1, 3, 20, 500))(train, swapped, 0)["kind/k"] == best


@pytest.mark.parametrize(("probe", "told"), [(Linear(), "needs 2"), (Heads(features=("mean",)), "needs 3")])
def test_too_few_training_images_are_told(probe, told):
    x, y = torch.randn(1, 6), {"kind": torch.zeros(1, dtype=torch.long)}
    one = Features(x, y, {"kind": 4}, pools={"mean": x})
    with pytest.raises(RunError, match=f"{told} training images.*found 1"):
        probe(one, one, 0)
    assert Knn()(one, one, 0)["kind/top1"] == 100


def test_the_linear_probe_tells_what_logistic_regression_tells():
    train, _ = clouds(400)
    test, _ = clouds(300, seed=1)
    penalty = 1e-2
    figures = Linear(penalties=(penalty,))(train, test, 0)
    mean, std = train.x.mean(0), train.x.std(0)
    # scikit-learn sums the loss and halves the penalty: C = 1 / (2 n penalty).
    theirs = LogisticRegression(C=1 / (2 * 400 * penalty), max_iter=2000, tol=1e-8)
    theirs.fit((train.x - mean) / std, train.labels["kind"])
    score = theirs.score((test.x - mean) / std, test.labels["kind"]) * 100
    assert figures["kind/top1"] == pytest.approx(score, abs=0.4)
    assert figures["kind/penalty"] == penalty


def test_the_linear_probe_comes_near_the_best_possible_and_finds_nothing_in_noise():
    train, centres = clouds(4000)
    test, _ = clouds(4000, seed=1)
    best = (torch.cdist(test.x, centres).argmin(1) == test.labels["kind"]).float().mean().item() * 100
    assert Linear()(train, test, 0)["kind/top1"] == pytest.approx(best, abs=1.5)
    rng = torch.Generator().manual_seed(2)
    noise = [Features(torch.randn(4000, 6, generator=rng), some.labels, some.tasks) for some in (train, test)]
    assert Linear()(*noise, 0)["kind/top1"] == pytest.approx(25, abs=3)


def test_the_linear_probe_is_blind_to_the_scale_of_features():
    train, _ = clouds(400)
    test, _ = clouds(300, seed=1)
    scales = torch.tensor([1e-3, 1.0, 1e3, 1e-2, 10.0, 1.0])
    scaled = [Features(some.x * scales, some.labels, some.tasks) for some in (train, test)]
    assert Linear()(*scaled, 0)["kind/top1"] == pytest.approx(Linear()(train, test, 0)["kind/top1"], abs=0.5)


def test_rankme_has_its_closed_forms():
    basis = torch.linalg.qr(torch.randn(64, 16)).Q
    assert rankme(basis).item() == pytest.approx(16, rel=1e-3)
    assert rankme(torch.ones(50, 8)).item() == pytest.approx(1, rel=1e-3)
    # Two singular values 3 and 1: shares 3/4 and 1/4.
    two = basis[:, :2] * torch.tensor([3.0, 1.0])
    assert rankme(two).item() == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-3)


def test_lines_drop_what_follows_a_checkpoint_and_what_a_kill_tore(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.write({"step": step, "loss": step / 3, "bad": math.nan})
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in lines.read()] == [1, 2, 3]
    assert lines.read()[0] == {"step": 1, "loss": 1 / 3, "bad": None}
    lines.rewind(2)
    assert [line["step"] for line in lines.read()] == [1, 2]
    assert lines.path.read_text().endswith("}\n")


def test_knn_tells_what_scikit_learn_tells():
    from sklearn.neighbors import KNeighborsClassifier

    train, _ = clouds(500)
    test, _ = clouds(200, seed=1)
    figures = Knn(k=(20, 5))(train, test, 0)
    for k in (5, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
        theirs.fit(train.x.numpy(), train.labels["kind"].numpy())
        score = theirs.score(test.x.numpy(), test.labels["kind"].numpy()) * 100
        assert figures[f"kind/top1@{k}"] == pytest.approx(score, abs=1e-6)


def test_chunks_change_nothing(monkeypatch):
    train, _ = clouds(300)
    test, _ = clouds(90, seed=1)
    whole = [probe(train, test, 0) for probe in (Knn(k=(1, 7, 40)), Linear(penalties=(1e-2, 1e-3)))]
    monkeypatch.setattr(frozen, "CHUNK", 32)  # fewer than the neighbors asked for
    monkeypatch.setattr(frozen, "QUERIES", 16)
    monkeypatch.setattr(frozen, "WHOLE", 0)
    found = [probe(train, test, 0) for probe in (Knn(k=(1, 7, 40)), Linear(penalties=(1e-2, 1e-3)))]
    answers = [[one.pop("kind/correct") for one in side] for side in (whole, found)]
    assert found[0] == whole[0]
    assert torch.equal(answers[0][0], answers[1][0])
    # Sums of chunks round otherwise, so of the linear probe's answers one may differ; what it chose may not.
    assert found[1]["kind/penalty"] == whole[1]["kind/penalty"]
    assert (answers[0][1] != answers[1][1]).sum() <= 1


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that was made, beside those of one number a row."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.bytes = rows, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and not func.is_view and x.numel() > self.rows:
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


@pytest.mark.parametrize("probe", [Knn(k=(10, 20)), Linear(penalties=(1.0,))], ids=["knn", "linear"])
def test_memory_does_not_grow_with_the_training_set(probe, monkeypatch):
    for name, size in (("CHUNK", 64), ("QUERIES", 32), ("WHOLE", 0)):
        monkeypatch.setattr(frozen, name, size)
    test, _ = clouds(32, d=40, seed=1)
    found = {}
    for rows in (300, 900):
        train, _ = clouds(rows, d=40)
        with Largest(rows) as seen:
            probe(train, test, 0)
        found[rows] = seen.bytes
    chunk = 8 * 64 * 41  # a chunk of standardized features, summed in fp64
    assert 0 < found[900] <= chunk < 4 * 900 * 40 / 5
    assert found[300] <= chunk


def test_weights_are_those_of_scikit_learn():
    train, _ = clouds(400)
    rows, y = frozen.Rows(train.x), train.labels["kind"]
    x = next(rows.chunks())[:, :-1].double()
    theirs = LogisticRegression(C=1 / (2 * 400 * 1e-2), max_iter=5000, tol=1e-10).fit(x.numpy(), y.numpy())
    weight = frozen.fit(rows, y, 4, 1e-2, None)
    assert torch.allclose(weight[:-1].T, torch.from_numpy(theirs.coef_), atol=2e-3)


def pooled(n, seed):
    """Clouds under two names: plain, and behind a scale that a rate of SGD does not suit."""
    some, _ = clouds(n, seed=seed)
    return Features(some.x, some.labels, some.tasks, pools={"mean": some.x, "mean4": some.x * 1e-3})


def test_heads_trained_together_are_those_trained_alone():
    train = pooled(120, 0)
    keys = {"epochs": 3, "batch": 32, "lrs": (0.01, 0.5), "penalties": (0.0, 0.1)}
    rows = torch.arange(100)
    together = Heads(**keys)
    heads = together.trained(train, "kind", rows, 4, 0)
    assert len(heads) == 16
    for kind, head in list(zip(together.kinds, heads, strict=True))[::5]:
        alone = Heads(**keys | {"features": (kind.features,), "norms": (kind.norm,), "lrs": (kind.lr,)})
        other = alone.trained(train, "kind", rows, 4, 0)[alone.kinds.index(kind)]
        assert all(torch.equal(a, b) for a, b in zip(head.parameters(), other.parameters(), strict=True))


def test_a_head_without_momentum_takes_the_steps_of_its_closed_form():
    train = pooled(40, 0)
    probe = Heads(features=("mean",), norms=(False,), lrs=(0.2,), penalties=(0.05,), epochs=1, batch=64, momentum=0.0)
    (head,) = probe.trained(train, "kind", torch.arange(40), 4, 0)
    (start,) = Heads(features=("mean",), norms=(False,), lrs=(1e-30,), penalties=(0.0,), epochs=1, batch=64).trained(
        train, "kind", torch.arange(40), 4, 0
    )
    wrong = (start(train.x).softmax(1) - torch.eye(4)[train.labels["kind"]]) / 40
    lr = 0.2 * 64 / 256
    assert torch.allclose(head.weight, start.weight - lr * (wrong.T @ train.x + 0.05 * start.weight), atol=1e-6)
    assert torch.allclose(head.bias, start.bias - lr * wrong.sum(0), atol=1e-6)


def test_heads_are_chosen_on_held_out_images_and_the_published_figure_is_marked():
    train, test = pooled(600, 0), pooled(400, 1)
    centers = clouds(1)[1]
    best = (torch.cdist(test.x, centers).argmin(1) == test.labels["kind"]).double().mean().item() * 100
    figures = Heads(epochs=20, batch=64, lrs=(0.001, 0.1), penalties=(0.0,))(train, test, 0)
    assert figures["kind/top1"] == pytest.approx(best, abs=3)
    assert figures["kind/best-of-8"] >= figures["kind/top1"]
    assert figures["kind/top1"] == pytest.approx(figures.pop("kind/correct").double().mean().item() * 100)
    swapped = Features(test.x, {"kind": (test.labels["kind"] + 1) % 4}, test.tasks, pools=test.pools)
    other = Heads(epochs=20, batch=64, lrs=(0.001, 0.1), penalties=(0.0,))(train, swapped, 0)
    assert [other[f"kind/{key}"] for key in ("lr", "held-out")] == [
        figures[f"kind/{key}"] for key in ("lr", "held-out")
    ]


@pytest.mark.parametrize(
    ("schedule", "factors"), [("steps", [1, 0.1, 0.01, 0.001]), ("cosine", [1, 0.654508, 0.206107, 0.0244717])]
)
def test_rates_fall_as_published(schedule, factors):
    probe = Heads(schedule=schedule)
    assert [probe._factor(done) for done in (0.0, 0.4, 0.7, 0.9)] == pytest.approx(factors, rel=1e-5)


@pytest.mark.parametrize(("epochs", "falls"), [(28, (8, 16, 24)), (14, (4, 8, 12)), (84, (24, 48, 72))])
def test_rates_fall_after_the_epochs_that_are_listed(epochs, falls):
    probe = Heads(epochs=epochs, schedule=falls)
    factors = [probe._factor(epoch / epochs) for epoch in range(epochs)]
    assert factors == pytest.approx([0.1 ** sum(epoch >= fall for fall in falls) for epoch in range(epochs)])


def test_a_cosine_of_heads_ends_at_its_lowest_rate_and_what_makes_no_sense_is_refused():
    keys = {"features": ("mean",), "norms": (False,), "penalties": (0.0,), "momentum": 0.0, "batch": 64, "epochs": 1}
    train, rows = pooled(40, 0), torch.arange(40)
    late, low = ({"schedule": "cosine", "lrs": (0.2,), "min_lr": low} for low in (0.2, 0.0))
    for more in (late, low):
        more["batch"] = 10
    (constant,) = Heads(**keys | late).trained(train, "kind", rows, 4, 0)
    (steps,) = Heads(**keys | {"lrs": (0.2,), "batch": 10, "schedule": (0.999,)}).trained(train, "kind", rows, 4, 0)
    (fallen,) = Heads(**keys | low).trained(train, "kind", rows, 4, 0)
    assert torch.equal(constant.weight, steps.weight)
    assert not torch.equal(constant.weight, fallen.weight)
    for wrong, told in (
        ({"schedule": (8, 16, 24), "epochs": 20}, "found 24, and there are 20 epochs"),
        ({"min_lr": 1e-4}, "set schedule: cosine"),
        ({"min_lr": 1.0, "schedule": "cosine"}, "above the rate"),
    ):
        with pytest.raises(ValueError, match=told):
            Heads(**wrong)


def test_few_labels_are_a_share_or_a_number_of_each_class_and_all_labels_give_all():
    labels = torch.tensor([0] * 100 + [1] * 300 + [2] * 20)
    order = torch.randperm(420, generator=torch.Generator().manual_seed(0))
    for keys, sizes in (({"share": 0.01}, [1, 3, 1]), ({"shots": 5}, [5, 5, 5]), ({"share": 0.1}, [10, 30, 2])):
        chosen = FewLabels(**keys).chosen(labels, order)
        assert labels[chosen].bincount().tolist() == sizes
        assert len(set(chosen.tolist())) == len(chosen)


def test_few_labels_tell_what_scikit_learn_tells_of_the_same_images():
    train, test = clouds(300)[0], clouds(200, seed=1)[0]
    probe = FewLabels(share=1.0, draws=1, penalty=0.5)
    figures = probe(train, test, 0)
    mean = train.x.mean(0)
    x, z = (torch.nn.functional.normalize(one - mean, dim=1) for one in (train.x, test.x))
    theirs = LogisticRegression(C=1 / 0.5, max_iter=2000, tol=1e-8, fit_intercept=False)  # sums, and halves the penalty
    theirs.fit(x, train.labels["kind"])
    score = theirs.score(z, test.labels["kind"]) * 100
    assert figures["kind/top1"] == pytest.approx(score, abs=1e-6)
    few = FewLabels(shots=2, draws=5)(train, test, 0)
    assert few["kind/labeled"] == 8
    assert 25 < few["kind/top1"] < figures["kind/top1"]
    assert few["kind/std"] > 0


def test_few_labels_keep_what_each_test_image_got_over_all_draws():
    train, test = clouds(60)[0], clouds(40, seed=1)[0]
    for draws in (1, 4):
        figures = FewLabels(shots=2, draws=draws)(train, test, 0)
        assert figures["kind/correct"].shape == (40,)
        assert figures["kind/correct"].double().mean().item() * 100 == pytest.approx(figures["kind/top1"], rel=1e-6)


@pytest.mark.parametrize("keys", [{}, {"share": 0.1, "shots": 2}])
def test_few_labels_refuse_what_says_nothing(keys):
    with pytest.raises(ValueError, match="give either"):
        FewLabels(**keys)
