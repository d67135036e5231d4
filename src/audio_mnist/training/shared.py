"""Augmented features, computed once for runs that differ in their folds alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from audio_mnist.training.batches import ShuffledBatches


class SharedFeatures:
    """Features of an epoch's clips, in the order that all runs of one seed take them.

    Blocks are computed when the first run needs them, and dropped when the last one
    is past them. So memory does not grow with the corpus while the runs keep pace.

    Args:
        samplers: batches of each run.
    """

    def __init__(self, samplers: Sequence[ShuffledBatches]) -> None:
        self._runs = len(samplers)
        self._copies = np.unique(np.concatenate([sampler.copies for sampler in samplers]))
        self._begin(samplers[0])

    def of(
        self,
        run: int,
        sampler: ShuffledBatches,
        copies: np.ndarray,
        at_once: int,
        compute: Callable[[np.ndarray], Tensor],
    ) -> Tensor:
        """Return the (n, C, F, N) features of a run's next clips.

        Args:
            run: number of the run.
            sampler: its batches; they know the epoch.
            copies: (n,) numbers of the clips' copies.
            at_once: copies to compute at once.
            compute: gives (b,) copies the features that they have in every run.
        """
        if sampler.epoch != self._epoch or self._place_of[copies[0]] < self._first:
            self._begin(sampler)
        places = self._place_of[copies]
        end = self._first + sum(map(len, self._blocks))
        while end <= places[-1]:
            self._blocks.append(compute(self._order[end : end + at_once]))
            end += len(self._blocks[-1])
        features = torch.cat(self._blocks)[torch.from_numpy(places - self._first)]
        self._passed[run] = places[-1] + 1
        while self._blocks and self._first + len(self._blocks[0]) <= min(self._passed):
            self._first += len(self._blocks.pop(0))
        return features

    def _begin(self, sampler: ShuffledBatches) -> None:
        """Forget all blocks and start an epoch."""
        order = sampler.order()
        self._order = order[np.isin(order, self._copies)]
        self._place_of = np.full(len(order), -1)
        self._place_of[self._order] = np.arange(len(self._order))
        self._epoch, self._passed = sampler.epoch, [0] * self._runs
        self._blocks: list[Tensor] = []  # (clips, C, F, N) each
        self._first = 0  # number of clips before the first block
