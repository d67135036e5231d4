"""Errors that a person can fix: one clear message each, never a traceback."""


class AudioMnistError(Exception):
    """Base of every expected error.

    The message names what was found, what was expected, and the file or config
    key to change. The command line prints it without a traceback.
    """


class ConfigError(AudioMnistError):
    """A config key is unknown, has the wrong type or is out of range."""


class DataError(AudioMnistError):
    """A corpus, a recording or the waveform store cannot be used."""


class PrunedError(AudioMnistError):
    """A trial of a search is worse than others were at the same epoch, and ends."""


class RunError(AudioMnistError):
    """A tracked run cannot be read, or cannot join the ensemble."""
