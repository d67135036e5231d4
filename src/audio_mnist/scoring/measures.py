"""Accuracy, balanced accuracy and macro F1, each with a 95% interval and a paired comparison. Pure numpy and scipy.

Accuracy has the procedures of `scoring.intervals`. The two others are no means over recordings. Their intervals come
from the jackknife, widened to at least what accuracy has on as many recordings as the smallest classes are worth.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from audio_mnist.scoring import intervals
from audio_mnist.scoring.intervals import LEVEL, Paired, Score

MEASURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
UNEQUAL = 3.0  # the largest class has this many times the clips of the smallest: accuracy is mostly about the large


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the mean recall of (..., C, C) counts of true and predicted classes; absent classes do not count.

    >>> balanced_accuracy(np.array([[8, 0], [1, 1]])).item()
    0.75
    """
    true = confusion.sum(axis=-1)
    recall = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(true, 1)
    return recall.sum(axis=-1) / np.maximum((true > 0).sum(axis=-1), 1)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the mean F1 of (..., C, C) counts; a class that is neither true nor predicted does not count.

    >>> round(macro_f1(np.array([[8, 0], [1, 1]])).item(), 4)
    0.8039
    """
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    f1 = 2 * np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(both, 1)
    return f1.sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1)


_OF_CONFUSION: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def value(measure: str, truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return a measure of (n,) class numbers.

    >>> value("accuracy", np.array([0, 1]), np.array([0, 0]), 2)
    0.5
    """
    if measure == "accuracy":
        return float((truth == predicted).mean())
    return float(_OF_CONFUSION[measure](_counts(truth, predicted, classes)))


def score(
    measure: str, truth: np.ndarray, predicted: np.ndarray, classes: int, groups: np.ndarray | None = None
) -> Score:
    """Score (n,) class numbers.

    Args:
        measure: one of `MEASURES`.
        truth: true class numbers.
        predicted: predicted class numbers.
        classes: C.
        groups: (n,) names, such as speakers, that the interval is about; None where recordings are independent.

    >>> perfect = score("macro_f1", np.array([0, 1] * 20), np.array([0, 1] * 20), 2)
    >>> perfect.value, round(perfect.low, 2), perfect.high
    (1.0, 0.91, 1.0)
    """
    plain = intervals.score(truth == predicted, groups)
    if measure == "accuracy":
        return plain
    found = value(measure, truth, predicted, classes)
    without = _left_out(measure, truth, [predicted], classes, groups)
    reach = _quantile(without) * _error(without[0])
    widen = _widening(truth, classes)
    low = min(found - reach, found + widen * (plain.low - plain.value))
    high = max(found + reach, found + widen * (plain.high - plain.value))
    return Score(found, max(0.0, low), min(1.0, high), len(truth), plain.speakers)


def compare(
    measure: str,
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    classes: int,
    groups: np.ndarray | None = None,
) -> Paired:
    """Compare two classifiers on the same recordings, as `score` does for one.

    The p-value is the larger of the jackknife's and of the one that accuracy's interval stands for. So it is below
    0.05 exactly where the interval excludes 0.

    >>> truth = np.array([0, 1] * 20)
    >>> compare("macro_f1", truth, truth, np.zeros(40, dtype=int), 2).p_value < 0.05
    True
    """
    plain = intervals.compare(first == truth, second == truth, groups)
    if measure == "accuracy":
        return plain
    difference = value(measure, truth, first, classes) - value(measure, truth, second, classes)
    without = _left_out(measure, truth, [first, second], classes, groups)
    error, z = _error(without[0] - without[1]), float(norm.ppf(0.5 + LEVEL / 2))
    floor = _widening(truth, classes) * (plain.high - plain.low) / (2 * z)
    reach = max(_quantile(without) * error, z * floor)
    p_values = [2 * norm.sf(abs(difference) / floor) if floor > 0 else float(difference == 0)]
    if error > 0:
        p_values.append(2 * student.sf(abs(difference) / error, without.shape[1] - 1))
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    p = float(max(p_values))
    return Paired(difference, low, high, p, plain.only_first, plain.only_second, len(truth), plain.speakers)


def note(counts: np.ndarray, leading: str) -> str:
    """Say that accuracy is mostly about the large classes, "" where classes are about equal or another score leads.

    Args:
        counts: (C,) clips of each class.
        leading: the leading score.

    >>> note(np.array([90, 10]), "macro_f1")
    ''
    """
    if leading != "accuracy" or counts.max() < UNEQUAL * max(1, counts.min()):
        return ""
    return (
        f"classes are unequal ({counts.min()} to {counts.max()} clips), so accuracy is mostly about the large ones; "
        "score=balanced_accuracy or score=macro_f1 counts classes alike"
    )


def _counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _left_out(
    measure: str, truth: np.ndarray, answers: list[np.ndarray], classes: int, groups: np.ndarray | None
) -> np.ndarray:
    """Return (answers, units) values of the measure, each without one unit: a group, or a recording."""
    which = np.arange(len(truth)) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(which.max()) + 1
    values = []
    for predicted in answers:
        whole, of_units = _counts(truth, predicted, classes), np.empty(units)
        order = np.argsort(which, kind="stable")
        ends = np.cumsum(np.bincount(which))[:-1]
        for unit, rows in enumerate(np.split(order, ends)):
            of_units[unit] = _OF_CONFUSION[measure](whole - _counts(truth[rows], predicted[rows], classes))
        values.append(of_units)
    return np.stack(values)


def _error(without: np.ndarray) -> float:
    """Return the jackknife's standard error of (units,) values, each without one unit."""
    units = len(without)
    return float(np.sqrt((units - 1) / units * np.square(without - without.mean()).sum())) if units > 1 else 0.0


def _quantile(without: np.ndarray) -> float:
    return float(student.ppf(0.5 + LEVEL / 2, max(1, without.shape[1] - 1)))


def _widening(truth: np.ndarray, classes: int) -> float:
    """Return how much wider a mean over classes is than one over recordings, at least 1."""
    counts = np.bincount(truth, minlength=classes)
    present = counts[counts > 0]
    worth = len(present) ** 2 / (1 / present).sum()  # recordings of equal classes that are as sure
    return max(1.0, float(np.sqrt(len(truth) / worth)))
