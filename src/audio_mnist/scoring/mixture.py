"""Members' probabilities -> combined probabilities. Pure numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from audio_mnist.scoring.calibration import tempered


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
            p = np.tensordot(list(self.weights.values()), np.stack(means), axes=1)
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


def fit_weights(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find the weights of least log loss of the weighted mean; none is negative, their sum is 1.

    Args:
        probabilities: (M, n, C) of clips that the members did not train on.
        targets: (n,) class numbers.

    Returns:
        (M,) float64.

    Source: the convex case of Breiman, "Stacked regressions", 1996.

    >>> right, wrong = np.array([[0.9, 0.1]] * 3), np.array([[0.1, 0.9]] * 3)
    >>> fit_weights(np.stack([right, wrong]), np.array([0, 0, 0])).round(3)
    array([1., 0.])
    """
    members = len(probabilities)
    of_truth = np.asarray(probabilities, dtype=np.float64)[:, np.arange(len(targets)), targets]  # (M, n)
    of_truth = np.maximum(of_truth, 1e-12)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ of_truth, 1e-12)
        return -np.log(mixed).mean(), -(of_truth / mixed).mean(axis=1)

    found = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()


def stack(probabilities: np.ndarray, targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Weigh members with weights that were fitted on the other folds; return (n, C) means.

    A clip's label has no part in the weights that it is scored with. Where all
    clips are of one fold the members weigh the same.

    Args:
        probabilities: (M, n, C), each clip by members that did not train on it.
        targets: (n,) class numbers.
        fold_of: (n,) fold numbers.

    >>> stack(np.full((2, 4, 2), 0.5), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).shape
    (4, 2)
    """
    combined = combine(probabilities, "mean")
    for fold in np.unique(fold_of):
        others = fold_of != fold
        if others.any():
            weights = fit_weights(probabilities[:, others], targets[others])
            combined[~others] = np.tensordot(weights, probabilities[:, ~others], axes=1)
    return combined
