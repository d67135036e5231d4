"""Train classifiers of short audio clips, with scores that can be believed.

import audio_mnist

audio_mnist.sweep("feature=mel,mfcc fold=0,1,2,3,4")
audio_mnist.ensemble("latest")
audio_mnist.load("latest").predict(waveform, sample_rate_hz)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_mnist.api import ensemble, load, sweep, train

__version__ = "0.1.0"
__all__ = ["ensemble", "load", "sweep", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python face when it is first used, so that `import audio_mnist` takes no time."""
    if name in __all__:
        from audio_mnist import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
