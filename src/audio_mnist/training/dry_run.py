"""Whether the parts of a recipe fit together, found out before any training."""

from typing import Any

import torch
from torch import nn

from audio_mnist import features, models
from audio_mnist.augment import Augmenter, Placement
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.features import FrontEnd


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


def pass_silence(front_end: FrontEnd, net: nn.Module, samples: int) -> None:
    """Pass one silent clip through a front end and a net.

    Raises:
        ConfigError: the net cannot take what the feature gives.
    """
    training = net.training
    net.eval()
    with torch.inference_mode():
        net(front_end(torch.zeros(1, 1, samples)))
    net.train(training)
