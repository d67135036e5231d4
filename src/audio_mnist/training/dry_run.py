"""Whether the parts of a recipe fit together, found out before any training."""

import copy
from typing import Any

import torch

from audio_mnist import features, models
from audio_mnist.augment import Augmenter, Placement
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.errors import ConfigError
from audio_mnist.features import FrontEnd
from audio_mnist.models import Model


def check(settings: dict[str, Any], corpus: PreparedCorpus) -> None:
    """Build the front end, the augmentations and the net, and pass one silent clip through.

    Args:
        settings: the whole config of a run, plain values.
        corpus: the corpus that it would train on.

    Raises:
        ConfigError: settings are wrong, or the net cannot take what the feature gives.
        DataError: recorded noise cannot be read.
    """
    rate_hz = corpus.store.sample_rate_hz
    front_end = features.build(settings["feature"], rate_hz)
    Placement.of(settings["augment"])
    Augmenter(settings["augment"], rate_hz)
    with torch.random.fork_rng(devices=[]):  # the weights that training draws stay the same
        net = models.for_feature(settings["model"], front_end, len(corpus.class_names))
    pass_silence(front_end, net, corpus.clip_samples)


def pass_silence(front_end: FrontEnd, net: Model, samples: int) -> None:
    """Pass one silent clip through a front end and a copy of a net.

    Raises:
        ConfigError: the net cannot take what the feature gives.
    """
    with torch.no_grad():
        x = front_end(torch.zeros(1, 1, samples))
        try:
            copy.deepcopy(net).eval()(x)
        except ConfigError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ConfigError(
                f"model={net.name} cannot take feature={front_end.name} of shape {tuple(x.shape)} ({reason})"
            ) from error
