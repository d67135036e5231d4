"""Nets: features (B, C, F, N) -> logits (B, classes).

A new net is one file in this folder with a subclass of `Model` that has a `name`, and one file in
`conf/model/` that sets its arguments. Nothing else changes.
"""

import importlib
import pkgutil

from audio_mnist.config import construct
from audio_mnist.models.model import Model

__all__ = ["Model", "build"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build(settings: dict, classes: int, in_channels: int = 1, rows: int = 40) -> Model:
    """The net that `settings` (`name` and its arguments) describe.

    Args:
        settings: plain values.
        classes: of the logits, at least 2.
        in_channels: C of the features.
        rows: F of the features.

    Raises:
        ConfigError: an unknown name, an unknown argument, or one out of range.
    """
    return construct(Model.registry, "model", settings, classes, in_channels, rows)
