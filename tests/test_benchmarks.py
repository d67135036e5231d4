"""The loop that trainings are compared with still runs: nobody notices a benchmark that broke."""

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from audio_mnist.config import to_plain
from tests.benchmarks.step import bare_loop


@pytest.mark.parametrize("naive", [False, True])
def test_bare_loop_trains_as_a_run_is_configured(naive: bool, tone_config: Callable[..., DictConfig]) -> None:
    """With the recipe's optimiser and augmentations, or as a naive loop."""
    given = to_plain(tone_config("augment=default", "optimizer=muon", "trainer.batch_size=4"))
    assert bare_loop(given, 6, precision="32-true", naive=naive) > 0
