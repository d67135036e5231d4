"""Errors at several sizes of the training set -> a curve, its band, and what twice the size would bring."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

_STEPS = 30  # of Newton's method, which needs about six
_PSEUDO = 0.5  # errors that are added at each size, so that the logarithm exists


@dataclass(frozen=True)
class Curve:
    """A power law of the error rate, error = scale * size ** -slope, with jackknife copies of its parameters.

    Attributes:
        level: logarithm of the scale.
        slope: exponent; above 0 where more data help.
        left_out: (G, 2) level and slope without each group.
    """

    level: float
    slope: float
    left_out: np.ndarray

    def errors(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the error rate at (P,) sizes, and both ends of its 95% band."""
        logs = np.log(sizes)
        fitted, without = self.level - self.slope * logs, self.left_out[:, :1] - self.left_out[:, 1:] * logs
        reach = _reach(without)
        error, low, high = (np.exp(np.minimum(0, fitted + shift)) for shift in (0, -reach, reach))
        return error, low, high

    def gain(self, size: float) -> tuple[float, float, float]:
        """Return how much accuracy twice `size` would bring, with both ends of its 95% interval."""

        def of(parameters: np.ndarray) -> np.ndarray:
            logs = np.log([size, 2 * size])
            errors = np.exp(np.minimum(0, parameters[:, :1] - parameters[:, 1:] * logs))  # at most 1
            return errors[:, 0] - errors[:, 1]

        gain, reach = float(of(np.array([[self.level, self.slope]]))[0]), float(_reach(of(self.left_out)[:, None])[0])
        return gain, max(-1.0, gain - reach), min(1.0, gain + reach)


def fit(sizes: np.ndarray, wrong: np.ndarray, clips: np.ndarray) -> Curve:
    """Fit a power law to numbers of errors by Poisson likelihood; the jackknife leaves out a group at a time.

    The band is about other groups of scored clips, such as other speakers. It does
    not hold the chance of which clips were drawn to train on.

    Source: power laws of the error rate, Hestness et al., "Deep learning scaling is
    predictable, empirically", 2017.

    Args:
        sizes: (K,) sizes of the training set, at least 2.
        wrong: (G, K) wrong answers of each group at each size.
        clips: (G,) scored clips of each group.

    >>> curve = fit(np.array([100, 200, 400]), np.tile([8.0, 4.0, 2.0], (20, 1)), np.full(20, 50.0))
    >>> round(curve.slope, 2), [round(100 * part, 1) for part in curve.gain(400)]
    (0.99, [2.0, 2.0, 2.0])
    """
    totals, scored = wrong.sum(axis=0), clips.sum()
    found = _power_laws(sizes, np.stack([totals, *(totals - wrong)]), np.r_[scored, scored - clips])
    return Curve(float(found[0, 0]), float(found[0, 1]), found[1:])


def _power_laws(sizes: np.ndarray, wrong: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Return (R, 2) levels and slopes of (R, K) numbers of errors among (R,) clips."""
    logs = np.log(sizes)
    design = np.stack([np.ones_like(logs), -logs], axis=1)  # (K, 2)
    rate = (wrong + _PSEUDO) / clips[:, None]
    parameters = np.log(rate) @ np.linalg.pinv(design).T  # least squares of the logarithms
    for _ in range(_STEPS):
        expected = np.exp(np.clip(parameters @ design.T, -50, 5)) * clips[:, None]
        gradient = (wrong + _PSEUDO - expected) @ design
        curvature = np.einsum("rk,ki,kj->rij", expected, design, design)
        parameters = parameters + np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
    return parameters


def _reach(without: np.ndarray) -> np.ndarray:
    """Return half the width of Student's 95% interval of (G, P) jackknife values."""
    groups = len(without)
    error = np.sqrt((groups - 1) / groups * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return student.ppf(0.975, groups - 1) * error
