"""Reliability, temperature and their nesting, against hand-made cases."""

import numpy as np
import pytest

from audio_mnist.report import plots
from audio_mnist.scoring import calibration


def drawn(temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right once divided by `temperature` in their logarithms, and labels."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.full(5, 0.4), size=n)
    targets = (true.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)
    return calibration.tempered(true, 1 / temperature), targets


def test_reliability_by_hand() -> None:
    """Four clips in two bins: |0.6 - 0.5| and |0.95 - 1|, half of the clips each."""
    p = np.array([[0.61, 0.39], [0.59, 0.41], [0.05, 0.95], [0.05, 0.95]])
    bins = calibration.reliability(p, np.array([0, 1, 1, 1]))
    assert bins.count.sum() == 4 and bins.count[-1] == 2
    assert bins.error == pytest.approx(0.25 * 0.39 + 0.25 * 0.59 + 0.5 * 0.05)
    certain = calibration.reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert certain.error == 0 and certain.count[-1] == 1


def test_reliability_of_true_probabilities_is_small() -> None:
    """Labels drawn from the probabilities: an error near 0; sharpened ones: a large error."""
    assert calibration.reliability(*drawn(1.0)).error < 0.01
    assert calibration.reliability(*drawn(0.3)).error > 0.1 or calibration.reliability(*drawn(3.0)).error > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_finds_it(temperature: float) -> None:
    """The temperature that was drawn with."""
    assert calibration.fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_tempered_keeps_the_order_and_sums_to_one() -> None:
    """The predicted class stays, whatever the temperature."""
    p, _ = drawn(1.0, n=100)
    for temperature in (0.1, 1.0, 7.0):
        out = calibration.tempered(p, temperature)
        assert (out.argmax(axis=1) == p.argmax(axis=1)).all()
        np.testing.assert_allclose(out.sum(axis=1), 1)
    np.testing.assert_allclose(calibration.tempered(p, 1.0), p, atol=1e-9)


def test_cross_fitted_is_nested() -> None:
    """A fold's temperature comes from the other folds; one fold alone stays as it is."""
    p, targets = drawn(2.0, n=600)
    fold_of = np.arange(600) % 3
    turned = np.where(fold_of == 0, (targets + 1) % 5, targets)
    first, second = (calibration.cross_fitted(p, labels, fold_of) for labels in (targets, turned))
    np.testing.assert_array_equal(first[fold_of == 0], second[fold_of == 0])
    assert not np.allclose(first[fold_of == 1], second[fold_of == 1], atol=1e-3)
    np.testing.assert_array_equal(calibration.cross_fitted(p, targets, np.zeros(600)), p)


def test_cross_fitted_lowers_the_error() -> None:
    """Probabilities that are too sharp are corrected out of fold."""
    p, targets = drawn(3.0, n=3000)
    fold_of = np.arange(3000) % 5
    before = calibration.reliability(p, targets).error
    after = calibration.reliability(calibration.cross_fitted(p, targets, fold_of), targets).error
    assert after < before / 3


def test_reliability_diagram_shows_both(tmp_path) -> None:
    """Two panels with the errors in their titles; empty bins draw nothing and warn of nothing."""
    p, targets = drawn(3.0, n=60)
    bins = calibration.reliability(p, targets)
    figure = plots.reliability(bins, bins, "Ensemble")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"Ensemble, {name}: ECE {bins.error:.4f}" for name in ("raw", "calibrated")]
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
