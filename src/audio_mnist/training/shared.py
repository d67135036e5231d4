"""Augmented clips of an epoch, computed block by block, for one run or for several."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_mnist.system import devices
from audio_mnist.training.batches import ShuffledBatches


class SharedBlocks:
    """Blocks that several callers ask for, each once. A block is dropped when the last one has it, or after its epoch.

    Args:
        callers: number of callers. They keep pace.

    >>> shared = SharedBlocks(2)
    >>> [shared.get(epoch=0, first=7, compute=lambda: "once") for _ in range(2)]
    ['once', 'once']
    """

    def __init__(self, callers: int = 1) -> None:
        self._callers, self._epoch = callers, -1
        self._kept: dict[int, tuple[Any, int]] = {}  # a block, and the number of callers that still need it

    def get(self, epoch: int, first: int, compute: Callable[[], Any]) -> Any:
        """Return a block.

        Args:
            epoch: its epoch.
            first: its first slot.
            compute: computes it.
        """
        if epoch != self._epoch:
            self._epoch, self._kept = epoch, {}
        if first not in self._kept:
            self._kept[first] = compute(), self._callers
        block, callers = self._kept.pop(first)
        if callers > 1:
            self._kept[first] = block, callers - 1
        return block


class Stream:
    """Features of an epoch's slots, in the order in which they are needed.

    A block is computed when the first run needs it, and dropped when the last one
    is past it. So memory does not grow with the corpus while the runs keep pace.
    Blocks do not depend on the number of runs, so neither does any bit.

    Args:
        runs: number of runs that read it.
    """

    def __init__(self, runs: int = 1) -> None:
        self._runs, self._epoch, self._first = runs, -1, 0

    def read(
        self,
        run: int,
        sampler: ShuffledBatches,
        slots: np.ndarray,
        at_once: int,
        compute: Callable[[np.ndarray], Tensor],
    ) -> Tensor:
        """Return the (n, C, F, N) features of a run's next slots.

        Args:
            run: number of the run.
            sampler: its batches; they know the epoch.
            slots: (n,) slots, in order.
            at_once: slots of a block.
            compute: returns the features of (b,) slots.
        """
        if sampler.epoch != self._epoch or self._rank_of[slots[0]] < self._first:
            self._begin(sampler)
        ranks = self._rank_of[slots]
        end = self._first + sum(map(len, self._blocks))
        while end <= ranks[-1]:
            self._blocks.append(compute(self._order[end : end + at_once]))
            end += len(self._blocks[-1])
        features = self._blocks[0] if len(self._blocks) == 1 else torch.cat(self._blocks)
        features = features[devices.put(ranks - self._first, features.device)]
        self._passed[run] = ranks[-1] + 1
        while self._blocks and self._first + len(self._blocks[0]) <= min(self._passed):
            self._first += len(self._blocks.pop(0))
        return features

    def _begin(self, sampler: ShuffledBatches) -> None:
        """Forget all blocks and start an epoch."""
        self._order = sampler.order()
        self._rank_of = np.full(sampler.slots, -1)
        self._rank_of[self._order] = np.arange(len(self._order))
        self._epoch, self._passed = sampler.epoch, [0] * self._runs
        self._blocks: list[Tensor] = []  # (slots, C, F, N) each
        self._first = 0  # number of slots before the first block
