"""Augmented features of an epoch, computed once for runs that differ in their folds alone."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SHARED_BYTES = 256 * 2**20  # largest features of an epoch that the runs of a group share


class SharedFeatures:
    """Features of all clips that the runs of one seed train on, each epoch anew.

    Args:
        copies: numbers of the copies that any of the runs trains on, in order.
    """

    def __init__(self, copies: np.ndarray) -> None:
        self._copies, self._epoch = copies, -1
        self._row_of = np.full(copies.max() + 1, -1)
        self._row_of[copies] = np.arange(len(copies))
        self._features: Tensor | None = None  # (clips, C, F, N)

    def of(self, epoch: int, copies: np.ndarray, at_once: int, compute: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Return the (n, C, F, N) features of some copies; the first call of an epoch computes those of all.

        Args:
            epoch: number of the epoch.
            copies: (n,) numbers of the wanted copies.
            at_once: copies to compute at once.
            compute: gives (b,) copies the features that they have in every run.
        """
        if self._epoch != epoch:
            for start in range(0, len(self._copies), at_once):
                part = compute(self._copies[start : start + at_once])
                if self._features is None:
                    self._features = part.new_empty(len(self._copies), *part.shape[1:])
                self._features[start : start + len(part)] = part
            self._epoch = epoch
        assert self._features is not None
        return self._features[torch.from_numpy(self._row_of[copies])]
