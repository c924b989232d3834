"""nnlite.metrics against scikit-learn, closed forms and naive loops."""

import numpy as np
import pytest

from nnlite import metrics
from nnlite.data.triplets import Triplets
from nnlite.errors import NnliteError


@pytest.fixture
def sk():
    return pytest.importorskip("sklearn.metrics")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_confusion_and_class_scores_agree_with_scikit_learn(rng, sk):
    truth, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    confusion = metrics.confusion_matrix(truth, predicted, 5)
    assert np.array_equal(confusion, sk.confusion_matrix(truth, predicted))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, predicted)
    for ours, theirs in zip(metrics.per_class(confusion), (precision, recall, f1)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    assert metrics.accuracy(truth, predicted) == pytest.approx(sk.accuracy_score(truth, predicted), rel=1e-14)


def test_undefined_class_scores_are_nan():
    precision, recall, f1 = metrics.per_class(metrics.confusion_matrix([0, 0, 1], [0, 0, 0], 3))
    np.testing.assert_allclose(precision, [2 / 3, np.nan, np.nan])  # 1 never predicted, 2 not even there
    np.testing.assert_allclose(recall, [1, 0, np.nan])
    np.testing.assert_allclose(f1, [0.8, 0, np.nan])
    assert np.isnan(metrics.accuracy([], []))


@pytest.mark.parametrize("steps", [2, 5, 1000])
def test_auc_with_and_without_ties(rng, sk, steps):
    truth = rng.integers(0, 2, 400)
    score = rng.integers(0, steps, 400) / steps + 0.3 * truth * rng.integers(0, 2, 400)
    assert metrics.roc_auc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score), rel=1e-12)


def test_auc_closed_forms():
    assert metrics.roc_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert metrics.roc_auc([1, 1, 0, 0], [1, 2, 3, 4]) == 0
    assert metrics.roc_auc([1, 0, 1, 0], [7, 7, 7, 7]) == 0.5
    assert np.isnan(metrics.roc_auc([1, 1], [1, 2]))
    assert np.isnan(metrics.roc_auc([0, 0], [1, 2]))


def test_weighted_unit_scores_agree_with_scikit_learn(rng, sk):
    truth = (rng.random((500, 6)) < [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).astype(np.int8)
    decision = rng.normal(size=(500, 6)) + 0.8 * truth
    scores = metrics.unit_scores(truth, decision)
    ours = metrics.weighted_scores(scores)
    precision, recall, _, _ = sk.precision_recall_fscore_support(truth, decision > 0, average="weighted")
    assert ours["precision"] == pytest.approx(precision, rel=1e-12)
    assert ours["recall"] == pytest.approx(recall, rel=1e-12)
    assert ours["f1"] == pytest.approx(2 / (1 / precision + 1 / recall), rel=1e-12)
    assert ours["auc"] == pytest.approx(sk.roc_auc_score(truth, decision, average="weighted"), rel=1e-12)


def test_faces_without_a_code_are_left_out(rng, sk):
    truth = rng.integers(0, 2, (200, 2)).astype(np.int8)
    decision = rng.normal(size=(200, 2))
    truth[:80, 1] = -1
    scores = metrics.unit_scores(truth, decision)
    assert scores["precision"][1] == pytest.approx(sk.precision_score(truth[80:, 1], decision[80:, 1] > 0))
    assert scores["auc"][1] == pytest.approx(sk.roc_auc_score(truth[80:, 1], decision[80:, 1]))
    assert scores["positives"].tolist() == [(truth[:, 0] == 1).sum(), (truth[80:, 1] == 1).sum()]


def test_silent_absent_and_unlearnt_units_in_the_average():
    truth = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=np.int8)
    decision = np.array([[1, -1, -1, np.nan], [1, -1, -1, np.nan], [-1, -1, 1, np.nan], [-1, -1, -1, np.nan]])
    scores = metrics.unit_scores(truth, decision)
    assert np.isnan(scores["precision"][1]) and np.isnan(scores["recall"][2]) and np.isnan(scores["auc"][3])
    # Unit 0 is perfect, unit 1 silent (precision counts 0), unit 2 never there, unit 3 was not learnt: two positives
    # each for units 0 and 1.
    assert metrics.weighted_scores(scores) == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.75}


def test_triplet_shares_by_confidence():
    z = np.array([[0.0, 0], [1, 0], [0, 3], [0, 1]])
    rows = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 3], [2, 3, 0], [2, 0, 3]], dtype=np.int32)  # right: yes no tie yes no
    weight = np.array([5, 5, 3, 1, 1], dtype=np.float32)
    shares = metrics.triplet_shares(z, Triplets(rows, weight))
    assert shares == pytest.approx({"all": 0.6, "5": 0.5, "3": 1.0, "1": 0.5})
    assert list(shares) == ["all", "5", "3", "1"]
    assert metrics.triplet_shares(z, Triplets(rows, np.ones(5, np.float32))) == pytest.approx({"all": 0.6})
    assert metrics.triplet_shares(z, Triplets(rows[:0], weight[:0])) == {}


def test_kl_against_numeric_integration():
    mu, log_var = np.array([[0.0, 1.5, -0.3], [0, 0.5, 0.2]]), np.array([[0.0, -2, 0.7], [0, 1.0, -0.4]])
    t = np.linspace(-15, 15, 200_001)
    expected = np.zeros(3)
    for m, v in zip(mu, np.exp(log_var)):
        for k in range(3):
            log_q = -0.5 * (t - m[k]) ** 2 / v[k] - 0.5 * np.log(2 * np.pi * v[k])
            log_p = -0.5 * t ** 2 - 0.5 * np.log(2 * np.pi)
            expected[k] += np.sum(np.exp(log_q) * (log_q - log_p)) * (t[1] - t[0]) / 2
    kl = metrics.kl_per_dimension(mu, log_var)
    np.testing.assert_allclose(kl, expected, atol=1e-9)
    assert metrics.active_dimensions(kl).tolist() == [False, True, True]


def test_weight_norms_split_latent_and_neutral_rows():
    latent, neutral = metrics.weight_norms(np.array([[3.0, 4], [0, 2], [5, 12]]), 2)
    assert latent.tolist() == [5, 2] and neutral.tolist() == [13]
    assert len(metrics.weight_norms(np.ones((2, 3)), 2)[1]) == 0


def test_pca_agrees_with_scikit_learn(rng):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = (rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)) + 5).astype(np.float32)
    ours, theirs = metrics.fit_pca(x, 4), decomposition.PCA(4, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_, rtol=1e-10)
    sign = np.sign((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components, theirs.components_ * sign[:, None], atol=1e-10)
    new = rng.normal(size=(5, 8))
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new) * sign, atol=1e-9)
    assert (ours.components[np.arange(4), np.abs(ours.components).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("k", [0, 5, 9])
def test_pca_refuses_sizes_that_the_data_do_not_span(k):
    with pytest.raises(NnliteError, match=f"expected 1 to 4 components .* got {k}"):
        metrics.fit_pca(np.eye(5, 8), k)
