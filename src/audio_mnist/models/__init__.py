"""Nets: features (B, C, F, N) -> logits (B, classes).

A new net is one file in this folder, with a subclass of `Model` that has a `name`, and one file in
`conf/model/` that sets its arguments. Nothing else changes.
"""

import importlib
import pkgutil
from typing import Any

from audio_mnist.config import construct
from audio_mnist.features import FrontEnd
from audio_mnist.models.base import Model

__all__ = ["Model", "build", "for_feature"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def for_feature(settings: dict[str, Any], front_end: FrontEnd, classes: int) -> Model:
    """Build the net that `settings` describe, for the features of `front_end`.

    `input_norm: auto` is true where the feature is not scaled by the clip itself.

    Raises:
        ConfigError: as `build`.
    """
    if settings.get("input_norm") == "auto":
        settings = settings | {"input_norm": front_end.normalize == "none"}
    return build(settings, classes, front_end.channels, front_end.rows)


def build(settings: dict[str, Any], classes: int, in_channels: int = 1, rows: int = 40) -> Model:
    """Build the net that `settings` (`name` and its arguments) describe.

    Args:
        settings: plain values.
        classes: number of classes, at least 2.
        in_channels: C of the features.
        rows: F of the features.

    Raises:
        ConfigError: an unknown name, an unknown argument, or one out of range.

    >>> build({"name": "resnet", "depth": 2}, 10).classes
    10
    """
    net: Model = construct(Model.registry, "model", settings, classes, in_channels, rows)
    return net
