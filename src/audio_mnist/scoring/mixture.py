"""Member probabilities -> combined probabilities. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from audio_mnist.scoring.calibration import tempered


@dataclass(frozen=True)
class Mixture:
    """How an ensemble makes one answer of its members', for clips that none of them was trained on.

    Attributes:
        recipes: of each member; runs that differ in nothing but the fold share one.
        combine: "mean", "logit_mean", "vote" or "stack".
        weights: of each recipe; all the same but with "stack".
        temperature: that the combined probabilities are divided by, 1 for none.
    """

    recipes: tuple[str, ...]
    combine: str
    weights: dict[str, float]
    temperature: float

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """(M, n, C), a member each -> (n, C) float64, rows sum to 1."""
        if self.combine == "stack":
            of_member = np.array(self.recipes)
            means = [combine(probabilities[of_member == recipe], "mean") for recipe in self.weights]
            p = np.tensordot(list(self.weights.values()), np.stack(means), axes=1)
        else:
            p = combine(probabilities, self.combine)
        return tempered(p, self.temperature) if self.temperature != 1 else p


def combine(probabilities: np.ndarray, how: str) -> np.ndarray:
    """Joins members' class probabilities.

    Args:
        probabilities: (M, n, C), M members, rows sum to 1.
        how: "mean" of probabilities; "logit_mean", the normalised geometric
            mean; "vote", the share of members whose first choice a class is,
            ties broken by the mean probability.

    Returns:
        (n, C) float64, rows sum to 1.

    Raises:
        ValueError: `how` is none of these.
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
        # less than half a vote in all, so that it only decides between equals
        broken = votes + mean / (2 * len(probabilities))
        return broken / broken.sum(axis=1, keepdims=True)
    raise ValueError(f"combine={how}: expected mean, logit_mean or vote")


def fit_weights(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of least log loss of the weighted mean, none negative, sum 1.

    Args:
        probabilities: (M, n, C) of clips that the members did not train on.
        targets: (n,) class numbers.

    Returns:
        (M,) float64.

    Source: the convex case of Breiman, "Stacked regressions", 1996.
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
    """(n, C) weighted means, those of each fold at the weights that the other folds' clips give.

    A clip's label has no part in the weights that it is scored with. With clips
    of one fold alone the members weigh the same.

    Args:
        probabilities: (M, n, C), each clip by members that did not train on it.
        targets: (n,) class numbers.
        fold_of: (n,) fold numbers.
    """
    combined = combine(probabilities, "mean")
    for fold in np.unique(fold_of):
        others = fold_of != fold
        if others.any():
            weights = fit_weights(probabilities[:, others], targets[others])
            combined[~others] = np.tensordot(weights, probabilities[:, ~others], axes=1)
    return combined
