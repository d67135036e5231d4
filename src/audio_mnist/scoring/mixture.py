"""Members' probabilities -> combined probabilities. Pure numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from audio_mnist.scoring.calibration import PRIOR as SCALE_PRIOR
from audio_mnist.scoring.calibration import tempered

LEAST = 1e-6  # least probability of a member, so that none can rule a class out
PRIOR = 3.0  # clips' worth of belief in equal weights; chosen on folds (docs/choices.md)


@dataclass(frozen=True)
class Mixture:
    """How an ensemble joins its members' answers, for clips that none of them was trained on.

    Attributes:
        recipes: recipe of each member; runs that differ only in the fold share one.
        combine: "mean", "logit_mean", "vote" or "stack".
        weights: weight of each recipe; they differ only with "stack".
        temperature: temperature of the combined probabilities, 1 for none.

    >>> Mixture(("mel", "mfcc"), "mean", {"mel": 0.5, "mfcc": 0.5}, 1.0)(np.array([[[0.8, 0.2]], [[0.6, 0.4]]]))
    array([[0.7, 0.3]])
    """

    recipes: tuple[str, ...]
    combine: str
    weights: dict[str, float]
    temperature: float

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Join (M, n, C) probabilities of M members into (n, C) float64; rows sum to 1."""
        if self.combine == "stack":
            of_member = np.array(self.recipes)
            means = [combine(probabilities[of_member == recipe], "mean") for recipe in self.weights]
            p = weighted(np.stack(means), np.array(list(self.weights.values())))
        else:
            p = combine(probabilities, self.combine)
        return tempered(p, self.temperature) if self.temperature != 1 else p


def combine(probabilities: np.ndarray, how: str) -> np.ndarray:
    """Join members' class probabilities.

    Args:
        probabilities: (M, n, C), M members, rows sum to 1.
        how: "mean" of probabilities; "logit_mean", the normalised geometric mean; "vote", the share of members whose
            first choice a class is, with ties broken by the mean probability.

    Returns:
        (n, C) float64, rows sum to 1.

    Raises:
        ValueError: `how` is none of these.

    >>> combine(np.array([[[0.9, 0.1]], [[0.5, 0.5]]]), "mean")
    array([[0.7, 0.3]])
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    mean = probabilities.mean(axis=0)
    if how == "mean":
        return mean
    if how == "logit_mean":
        return softmax(np.log(np.maximum(probabilities, 1e-12)).mean(axis=0), axis=1)
    if how == "vote":
        classes = probabilities.shape[2]
        votes = np.eye(classes)[probabilities.argmax(axis=2)].mean(axis=0)
        # less than half a vote in all, so it only decides ties
        broken = votes + mean / (2 * len(probabilities))
        return broken / broken.sum(axis=1, keepdims=True)
    raise ValueError(f"combine={how}: expected mean, logit_mean or vote")


def weighted(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted geometric mean of (M, n, C) probabilities, normalised.

    >>> weighted(np.array([[[0.8, 0.2]], [[0.5, 0.5]]]), np.array([1.0, 0.0])).round(4)
    array([[0.8, 0.2]])
    """
    return softmax(np.tensordot(weights, _logarithms(probabilities), axes=1), axis=1)


def fit_weights(probabilities: np.ndarray, targets: np.ndarray, families: np.ndarray | None = None) -> np.ndarray:
    """Find the weights of least log loss of the weighted geometric mean; none is negative, their sum is 1.

    A penalty of `PRIOR` / n times the squared distances from equal weights keeps
    few clips from deciding much. The scale of the weights, a temperature, has the
    penalty of `calibration.fit_temperature`.

    Args:
        probabilities: (M, n, C) of clips that the members did not train on.
        targets: (n,) class numbers.
        families: (M,) names. Members of one family have equal weights: seeds of one recipe differ by chance, so weights
            of their own would be chance too. None: each member is its own family.

    Returns:
        (M,) float64.

    Source: the logarithmic opinion pool of Genest and Zidek, "Combining
    probability distributions", 1986, with weights fitted as those of a logistic
    regression; their scale is a temperature.

    >>> right, wrong = np.array([[0.9, 0.1]] * 300), np.array([[0.1, 0.9]] * 300)
    >>> fit_weights(np.stack([right, wrong]), np.zeros(300, dtype=int)).round(2)
    array([1., 0.])
    """
    n, logs = len(targets), _logarithms(probabilities)  # (M, n, C)
    names, which = np.unique(np.arange(len(logs)) if families is None else families, return_inverse=True)
    logs = np.stack([logs[which == number].mean(axis=0) for number in range(len(names))])  # (families, n, C)
    of_truth = logs[:, np.arange(n), targets]  # (M, n)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.tensordot(weights, logs, axes=1)
        p = softmax(mixed, axis=1)
        cross = logsumexp(mixed, axis=1) - weights @ of_truth
        slope = np.tensordot(logs, p, axes=([1, 2], [0, 1])) - of_truth.sum(axis=1)
        apart, scale = weights - weights.mean(), np.log(max(weights.sum(), LEAST))
        penalty = PRIOR * (apart @ apart) + SCALE_PRIOR * scale**2
        change = 2 * PRIOR * apart + 2 * SCALE_PRIOR * scale / max(weights.sum(), LEAST)
        return cross.mean() + penalty / n, (slope + change) / n

    start = np.full(len(names), 1 / len(names))
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, 20)] * len(names)).x
    weights = weights / weights.sum() if weights.sum() > 0 else start
    return (weights / np.bincount(which))[which]


def stack(
    probabilities: np.ndarray, targets: np.ndarray, fold_of: np.ndarray, families: np.ndarray | None = None
) -> np.ndarray:
    """Weigh members with weights that were fitted on the other folds; return (n, C) weighted geometric means.

    A clip's label has no part in the weights that it is scored with. Where all
    clips are of one fold the members weigh the same.

    Args:
        probabilities: (M, n, C), each clip by members that did not train on it.
        targets: (n,) class numbers.
        fold_of: (n,) fold numbers.
        families: (M,) names, as `fit_weights` takes them.

    >>> stack(np.full((2, 4, 2), 0.5), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).shape
    (4, 2)
    """
    combined = combine(probabilities, "logit_mean")
    for fold in np.unique(fold_of):
        others = fold_of != fold
        if others.any():
            weights = fit_weights(probabilities[:, others], targets[others], families)
            combined[~others] = weighted(probabilities[:, ~others], weights)
    return combined


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), LEAST))
