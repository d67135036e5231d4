"""Front ends: waveforms (B, 1, T) -> features (B, C, F, N), on the input's device.

A new feature is one file in this folder, with a subclass of `FrontEnd` that has a `name`, and one
file in `conf/feature/` that sets its arguments. Nothing else changes.
"""

import importlib
import pkgutil
from typing import Any

from audio_mnist.config import construct
from audio_mnist.features.base import NORMALIZATIONS, PADDINGS, Bands, FrontEnd

__all__ = ["NORMALIZATIONS", "PADDINGS", "Bands", "FrontEnd", "build", "title_of"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build(settings: dict[str, Any], sample_rate_hz: int) -> FrontEnd:
    """Build the front end that a feature's settings describe.

    Args:
        settings: `name` and the arguments of that class, plain values.
        sample_rate_hz: sample rate of the waveforms.

    Raises:
        ConfigError: an unknown name, an unknown argument, or one out of range.
    """
    front_end: FrontEnd = construct(FrontEnd.registry, "feature", settings, sample_rate_hz)
    return front_end


def title_of(name: str) -> str:
    """Return a feature's name as tables show it.

    >>> title_of("mfcc")
    'MFCC'
    """
    known = FrontEnd.registry.get(name)
    return vars(known).get("title", name) if known is not None else name  # a base class's title is not its own
