"""What a person can mend: one clear message each, never a traceback."""


class AudioMnistError(Exception):
    """Base of every expected error.

    The message says what was got, what was expected and which file or config
    key to change. The command line prints it alone, without a traceback.
    """


class ConfigError(AudioMnistError):
    """A config key is unknown, of the wrong type or out of range."""


class DataError(AudioMnistError):
    """A corpus, a recording or the waveform store cannot be used."""


class RunError(AudioMnistError):
    """A tracked run cannot be read, or cannot join the ensemble."""
