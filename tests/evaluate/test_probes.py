"""Do probes read what is in features, no more and no less?"""

import math

import numpy as np
import pytest
import sslzoo_probes
import torch
from sklearn.linear_model import LogisticRegression
from sslzoo_probes import Knn, Linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslzoo import Features
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
    assert figures == {"kind/top1": pytest.approx(right / 40 * 100), "kind/top1@7": pytest.approx(right / 40 * 100)}


def test_knn_reports_its_best_k_and_leaves_out_those_that_are_too_large():
    train, _ = clouds(60)
    figures = Knn(k=(1, 10, 500))(train, clouds(40, seed=1)[0], 0)
    assert set(figures) == {"kind/top1", "kind/top1@1", "kind/top1@10", "kind/correct"}
    assert figures["kind/top1"] == max(figures["kind/top1@1"], figures["kind/top1@10"])


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
    monkeypatch.setattr(sslzoo_probes, "CHUNK", 32)  # fewer than the neighbors asked for
    monkeypatch.setattr(sslzoo_probes, "QUERIES", 16)
    monkeypatch.setattr(sslzoo_probes, "WHOLE", 0)
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
        monkeypatch.setattr(sslzoo_probes, name, size)
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
    rows, y = sslzoo_probes.Rows(train.x), train.labels["kind"]
    x = next(rows.chunks())[:, :-1].double()
    theirs = LogisticRegression(C=1 / (2 * 400 * 1e-2), max_iter=5000, tol=1e-10).fit(x.numpy(), y.numpy())
    weight = sslzoo_probes.fit(rows, y, 4, 1e-2, None)
    assert torch.allclose(weight[:-1].T, torch.from_numpy(theirs.coef_), atol=2e-3)
