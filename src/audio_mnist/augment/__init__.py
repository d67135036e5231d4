"""Augmentations of training batches, on the device: waveforms, features and targets.

Each is an `nn.Module` that acts in training mode only. It draws for every clip, from the `Draws` that
it is given. A new one is a subclass of `Augmentation` with a `name`, and a key of that name in
`conf/augment/none.yaml`.
"""

import importlib
import pkgutil

from audio_mnist.augment.base import Augmentation, Draws
from audio_mnist.augment.pipeline import Augmenter, Placement

__all__ = ["Augmentation", "Augmenter", "Draws", "Placement"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
