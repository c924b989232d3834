"""Measures of a representation and of a classifier, in plain numpy.

Letters: n rows, C classes, A action units, T triplets, D numbers of a face, K latent dimensions. Everything is summed
in float64, whatever comes in.
"""

from dataclasses import dataclass

import numpy as np

from nnlite.data.triplets import satisfied
from nnlite.errors import expected

ACTIVE_KL = 0.01  # nats: a dimension with less mean KL says nothing about the face


def accuracy(truth, predicted):
    """Share of the n rows whose predicted class is the true one; nan for no rows."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def confusion_matrix(truth, predicted, classes):
    """(C, C) int64 counts: row = true class, column = predicted class; truth and predicted (n,) hold 0 … C-1."""
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(confusion):
    """(precision, recall, F1), each (C,) float64, of a confusion matrix with true classes in rows.

    precision = TP / (TP + FP), nan for a class never predicted; recall = TP / (TP + FN), nan for a class without rows;
    F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of the two, nan for a class neither there nor predicted.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hits, predicted, there = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return _ratio(hits, predicted), _ratio(hits, there), _ratio(2 * hits, predicted + there)


def rows_to_shares(confusion):
    """(C, C) float64: each row of a confusion matrix divided by its sum; nan for a class without rows."""
    confusion = np.asarray(confusion, dtype=np.float64)
    return np.stack([_ratio(row, np.full(len(row), row.sum())) for row in confusion])


def mean_of_defined(values, weight=None):
    """Mean of values (C,) that are not nan, with weights (C,) or evenly; nan where no weight is left."""
    values = np.asarray(values, dtype=np.float64)
    weight = np.ones(len(values)) if weight is None else np.asarray(weight, dtype=np.float64)
    return _weighted(values, np.where(np.isnan(values), 0, weight))


def cross_entropy(truth, probabilities):
    """Mean over n rows of -ln p[truth], in nats; nan for no rows.

    probabilities (n, C). One that is 0 counts as the smallest normal number of its dtype, so that the mean is finite.
    """
    probabilities = np.asarray(probabilities)
    if not len(probabilities):
        return float("nan")
    p = probabilities[np.arange(len(probabilities)), truth]
    return float(-np.log(np.maximum(p, np.finfo(p.dtype).tiny), dtype=np.float64).mean())


def roc_auc(truth, score):
    """Area under the ROC curve of (n,) scores for (n,) truth values 0 and 1; nan unless both occur.

    The share of pairs (positive, negative) in which the positive has the higher score, equal scores counting one
    half: (sum of the positives' ranks - p (p + 1) / 2) / (p q) with p positives, q negatives and equal scores sharing
    their mean rank (Mann and Whitney 1947).
    """
    positive = np.asarray(truth) == 1
    p = int(positive.sum())
    q = len(positive) - p
    if p == 0 or q == 0:
        return float("nan")
    _, group, size = np.unique(np.asarray(score, dtype=np.float64), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2  # of a group of equal scores, ranks counted from 1
    return float((mean_rank[group][positive].sum() - p * (p + 1) / 2) / (p * q))


def unit_scores(truth, decision):
    """Precision, recall, AUC and the number of positives of A units: a dict of (A,) arrays.

    truth (n, A) holds 1 present, 0 absent, -1 not coded (left out); decision (n, A) is above 0 where a unit is seen.
    Undefined values are nan, and so is everything about a unit whose decisions are nan.
    """
    truth, decision = np.asarray(truth), np.asarray(decision)
    columns = [_unit(truth[:, a], decision[:, a]) for a in range(truth.shape[1])]
    return {key: np.array([column[key] for column in columns]) for key in ("precision", "recall", "auc", "positives")}


def weighted_scores(scores):
    """Averages over units, weights in proportion to positives: dict of precision, recall, f1 = 2 P R / (P + R), auc.

    A unit that is never predicted has no precision; it enters the average as 0, as if its only prediction were wrong:
    otherwise keeping silent would pay. A unit without decisions (nan recall) or without positives is left out.
    """
    weight = np.where(np.isnan(scores["recall"]), 0, scores["positives"])
    precision = _weighted(np.nan_to_num(scores["precision"]), weight)
    recall = _weighted(scores["recall"], weight)
    auc = _weighted(scores["auc"], np.where(np.isnan(scores["auc"]), 0, weight))
    return {"precision": precision, "recall": recall, "f1": harmonic_mean(precision, recall), "auc": auc}


def harmonic_mean(precision, recall):
    """2 P R / (P + R); 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall != 0 else 0.0


def triplet_shares(z, triplets):
    """Share of triplets with d(ref, plus) <= d(ref, minus) in z (n, K): {"all": share, confidence: share, …}.

    Confidences are the weights that occur (vote differences 5, 3, 1), highest first, where there is more than one.
    No triplets give an empty dict.
    """
    if len(triplets.rows) == 0:
        return {}
    right = satisfied(z, triplets)
    shares = {"all": float(np.mean(right))}
    levels = np.unique(triplets.weight)[::-1]
    if len(levels) > 1:
        shares.update({f"{level:g}": float(np.mean(right[triplets.weight == level])) for level in levels})
    return shares


def kl_per_dimension(mu, log_var):
    """(K,) mean over the rows of KL(N(mu, sigma²) || N(0, 1)) = (mu² + sigma² - 1 - ln sigma²) / 2, in nats."""
    mu, log_var = np.asarray(mu, dtype=np.float64), np.asarray(log_var, dtype=np.float64)
    return np.mean(mu * mu + np.expm1(log_var) - log_var, axis=0) / 2


def active_dimensions(kl, threshold=ACTIVE_KL):
    """(K,) bool: dimensions whose mean KL is above the threshold, in nats."""
    return np.asarray(kl) > threshold


def weight_norms(weights, latent_size):
    """Euclidean norms of the rows of the first decoding layer (K [+ D], H): (latent (K,), neutral (D,) or empty)."""
    norms = np.linalg.norm(np.asarray(weights, dtype=np.float64), axis=1)
    return norms[:latent_size], norms[latent_size:]


@dataclass(frozen=True)
class PCA:
    """Linear principal components: z = (x - mean) components^T."""

    mean: np.ndarray        # (D,) float64
    components: np.ndarray  # (k, D) float64, orthonormal rows, highest variance first
    variance: np.ndarray    # (k,) float64, along each component (divisor n - 1)
    total: float            # variance over all D

    @property
    def explained(self):
        """(k,) share of the total variance along each component."""
        return self.variance / self.total

    def transform(self, x):
        """x (m, D) -> (m, k) float64."""
        return (x - self.mean) @ self.components.T


def fit_pca(x, k):
    """The first k principal components of x (n, D), by singular value decomposition (Bishop 2006, 12.1).

    A component's sign is free; here its number of largest size is positive. Raises NnliteError for k above what n rows
    of D numbers span.
    """
    x = np.asarray(x, dtype=np.float64)
    if not 1 <= k <= min(len(x) - 1, x.shape[1]):
        raise expected("PCA", f"1 to {min(len(x) - 1, x.shape[1])} components for data of shape {x.shape}", k)
    mean = x.mean(axis=0)
    _, size, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes[:k]
    largest = axes[np.arange(k), np.abs(axes).argmax(axis=1)]
    variance = size ** 2 / (len(x) - 1)
    return PCA(mean, axes * np.sign(largest)[:, None], variance[:k], float(variance.sum()))


def _unit(truth, decision):
    coded = truth >= 0
    truth, decision = truth[coded] == 1, decision[coded]
    positives = int(truth.sum())
    if np.isnan(decision).any():
        return {"precision": np.nan, "recall": np.nan, "auc": np.nan, "positives": positives}
    precision, recall, _ = per_class(confusion_matrix(truth, decision > 0, 2))
    return {"precision": precision[1], "recall": recall[1], "auc": roc_auc(truth, decision), "positives": positives}


def _ratio(top, bottom):
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def _weighted(values, weight):
    used = weight > 0
    return float(np.average(values[used], weights=weight[used])) if used.any() else float("nan")
