"""Whether a recipe's parts fit together, found out before anything is trained."""

import torch

from audio_mnist import features, models
from audio_mnist.augment import Augmenter, Placement
from audio_mnist.data.prepare import PreparedCorpus


def check(settings: dict, corpus: PreparedCorpus) -> None:
    """Builds the front end, the augmentations and the net, and passes one silent clip through.

    Args:
        settings: the whole config of a run, plain values.
        corpus: that it would be trained on.

    Raises:
        ConfigError: settings are wrong, or the net cannot take what the feature gives.
        DataError: recorded noise cannot be read.
    """
    rate_hz = corpus.store.sample_rate_hz
    front_end = features.build(settings["feature"], rate_hz)
    Placement.of(settings["augment"])
    Augmenter(settings["augment"], rate_hz)
    with torch.random.fork_rng(devices=[]):  # the weights that training draws stay what they are
        net = models.for_feature(settings["model"], front_end, len(corpus.class_names)).eval()
    with torch.inference_mode():
        net(front_end(torch.zeros(1, 1, corpus.clip_samples)))
