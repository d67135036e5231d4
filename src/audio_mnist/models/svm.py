"""A support vector machine on the mean and standard deviation over frames, with probabilities."""

from collections.abc import Iterable
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, one_hot

from audio_mnist.config import require
from audio_mnist.models.base import Model
from audio_mnist.models.pooled import statistics
from audio_mnist.scoring.calibration import PRIOR

_PARTS = 5  # of the training clips, to fit the slope
_BUFFERS = ("mean", "scale", "vectors", "weights", "bias")


class SVM(Model):
    """Radial basis functions around support vectors, one machine per pair of classes.

    A class's logit is the sum, over its pairs, of the logarithm of a logistic function of the margin. The slope of
    that function is fitted on parts of the training clips that the machine did not see.

    Args:
        classes: number of classes.
        in_channels: C of the features.
        rows: F of the features.
        cost: C of the machine, the price of an error, above 0.
        base: arguments of `Model`.

    Shape: (B, C, F, N) -> (B, classes).

    Raises:
        ConfigError: an argument is out of range.

    Source: `sklearn.svm.SVC` of standardised statistics; slopes of Platt, "Probabilistic outputs for support vector
    machines", 1999, here one for all pairs.

    >>> net = SVM(2, 1, 4, cost=10.0)
    >>> x, y = torch.randn(40, 1, 4, 9), torch.arange(40) % 2
    >>> net.fit([(x + y.view(-1, 1, 1, 1), y, torch.arange(40))])
    >>> net(x).shape
    torch.Size([40, 2])
    """

    name = "svm"
    closed_form: ClassVar[bool] = True

    def __init__(self, classes: int, in_channels: int, rows: int, *, cost: float, **base) -> None:
        super().__init__(classes, in_channels, rows, **base)
        require(cost > 0, "model.cost", cost, "above 0")
        scaled = not isinstance(self.scaled, nn.Identity)
        require(not scaled, "model.input_norm", True, "false; the machine scales statistics itself")
        self.cost = cost
        self.pairs = list(combinations(range(classes), 2))
        size = 2 * in_channels * rows
        for name, shape in zip(
            _BUFFERS, ((size,), (size,), (0, size), (0, len(self.pairs)), (len(self.pairs),)), strict=True
        ):
            self.register_buffer(name, torch.zeros(shape))
        pairs = torch.tensor(self.pairs).T  # (2, pairs): the first and the second class of each pair
        self.sides: Tensor  # (2, pairs, classes)
        self.register_buffer("sides", one_hot(pairs, classes).float(), persistent=False)
        self.mean: Tensor  # (2CF,), as `scale`
        self.scale: Tensor
        self.vectors: Tensor  # (support vectors, 2CF)
        self.weights: Tensor  # (support vectors, pairs)
        self.bias: Tensor  # (pairs,)
        self.gamma: Tensor
        self.slope: Tensor
        self.register_buffer("gamma", torch.tensor(1.0))
        self.register_buffer("slope", torch.tensor(1.0))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, weighted: bool = False) -> None:
        """Fit the machine.

        Args:
            batches: features (B, C, F, N), class numbers (B,), and groups (B,) that no part of the clips divides.
            weighted: whether classes count alike, however many clips each has.
        """
        self._class_weight = "balanced" if weighted else None
        parts = [(statistics(x).cpu(), y.cpu(), g.cpu()) for x, y, g in batches]
        x, y, groups = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        margins, unseen = self._margins_elsewhere(x, y, groups)
        self.slope.fill_(_slope(margins[unseen], torch.from_numpy(y)[unseen], self.sides.cpu()))
        self._store(self._machine(x, y))

    def _machine(self, x: np.ndarray, y: np.ndarray) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        return make_pipeline(
            StandardScaler(), SVC(C=self.cost, decision_function_shape="ovo", class_weight=self._class_weight)
        ).fit(x, y)

    def _margins_elsewhere(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (n, pairs) margins by machines that did not see a clip's group, and (n,) where there is such a one."""
        from sklearn.model_selection import StratifiedGroupKFold

        margins, unseen = torch.zeros(len(x), len(self.pairs)), torch.zeros(len(x), dtype=torch.bool)
        groups_of_class = [len(np.unique(groups[y == label])) for label in range(self.classes)]
        count = min(_PARTS, *groups_of_class)
        if count < 2:  # nothing to learn the slope from
            return margins, unseen
        for train, part in StratifiedGroupKFold(count, shuffle=True, random_state=0).split(x, y, groups):
            if len(np.unique(y[train])) == self.classes:
                self._store(self._machine(x[train], y[train]))
                margins[part] = self._margins(torch.from_numpy(x[part]).to(self.gamma.device)).cpu()
                unseen[part] = True
        return margins, unseen

    def _store(self, machine: Any) -> None:
        scaler, svc = machine[0], machine[1]
        ends = np.cumsum([0, *svc.n_support_])
        weights = np.zeros((len(svc.support_), len(self.pairs)))
        for number, (first, second) in enumerate(self.pairs):  # libsvm's order of coefficients
            for one, other in ((first, second), (second, first)):
                row = other - 1 if other > one else other
                weights[ends[one] : ends[one + 1], number] = svc.dual_coef_[row, ends[one] : ends[one + 1]]
        bias = svc.intercept_
        if self.classes == 2:  # scikit-learn turns the sign of the only pair
            weights, bias = -weights, -bias
        stored = (scaler.mean_, scaler.scale_, svc.support_vectors_, weights, bias)
        for name, values in zip(_BUFFERS, stored, strict=True):
            setattr(self, name, torch.as_tensor(values, dtype=torch.float32, device=self.gamma.device))
        self.gamma.fill_(float(svc._gamma))

    def _margins(self, x: Tensor) -> Tensor:
        """Return (B, pairs) margins of (B, 2 * C * F) statistics; above 0 for the pair's first class."""
        x = (x - self.mean) / self.scale.clamp_min(1e-12)
        squares = x.square().sum(dim=1, keepdim=True) + self.vectors.square().sum(dim=1)
        distance = (squares - 2 * x @ self.vectors.T).clamp_min(0)
        return (-self.gamma * distance).exp() @ self.weights + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return _logits(self.slope * self._margins(statistics(self.scaled(x).float())), self.sides)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take the number of support vectors from the checkpoint."""
        for name in _BUFFERS:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=self.gamma.device))
        super()._load_from_state_dict(state_dict, prefix, *others)


def _logits(margins: Tensor, sides: Tensor) -> Tensor:
    """Return (B, classes) logits of (B, pairs) margins; `sides` is (2, pairs, classes)."""
    return logsigmoid(margins) @ sides[0] + logsigmoid(-margins) @ sides[1]


def _slope(margins: Tensor, targets: Tensor, sides: Tensor) -> float:
    """Find the slope of least log loss on (n, pairs) margins; 1 where there is no clip to learn it from."""
    if not len(margins):
        return 1.0

    def loss(log_slope: float) -> float:
        found = cross_entropy(_logits(float(np.exp(log_slope)) * margins, sides), targets)
        return float(found) + PRIOR / len(margins) * log_slope**2  # as `calibration.fit_temperature`

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 4), method="bounded").x))
