"""Labels that are probably wrong, found in out-of-fold probabilities. Pure numpy.

Source: confident learning; Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty
in dataset labels", 2021. It is the method of the package cleanlab.
"""

import numpy as np


def quality(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the (n,) quality of labels, 0 to 1: the normalised margin.

    Args:
        probabilities: (n, C), each clip by nets that did not train on it.
        labels: (n,) class numbers.

    >>> quality(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1])).round(2)
    array([0.9, 0.2])
    """
    rows = np.arange(len(labels))
    given, others = probabilities[rows, labels], probabilities.copy()
    others[rows, labels] = -np.inf
    return (given - others.max(axis=1) + 1) / 2


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tell which of (n,) labels are suspect: the nets are confident of another class.

    They are confident of a class where its probability is at least the mean that
    clips with that label have. Of several such classes the most probable counts. A
    label that is the most probable class is never suspect.

    Args:
        probabilities: (n, C), each clip by nets that did not train on it.
        labels: (n,) class numbers.

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.05, 0.95]])
    >>> suspects(p, np.array([0, 0, 1, 1, 0]))
    array([False, False, False, False,  True])
    """
    classes = probabilities.shape[1]
    is_label = labels[:, None] == np.arange(classes)
    means = np.full(classes, np.inf)  # no clip is confidently of a class that no label names
    for number in np.unique(labels):
        means[number] = probabilities[labels == number, number].mean()
    confident = np.where(probabilities >= means, probabilities, -np.inf)
    found = np.isfinite(confident).any(axis=1)
    other = ~is_label[np.arange(len(labels)), confident.argmax(axis=1)]
    return found & other & (probabilities.argmax(axis=1) != labels)
