"""Errors that a person can fix: one clear message each, never a traceback, and no list that fills the screen."""

import re
from collections.abc import Iterable, Mapping

_CAUSES = 10  # most causes that a message lists
_OF_A_CAUSE = 5  # most files of one cause that it lists


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


def listed(names: Iterable[str], most: int = 5) -> str:
    """Join names, the first few of them where there are many.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "recording"), counted(3, "recording")
    ('1 recording', '3 recordings')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def by_cause(reasons: Mapping[str, str], what: str) -> str:
    """List files that cannot be used, those of one cause together, the most frequent cause first.

    Args:
        reasons: path -> reason; reasons that differ in numbers alone are one cause.
        what: plural noun for the files.

    >>> print(by_cause({"a.wav": "0.1 s is too short", "b.wav": "0.2 s is too short", "c.wav": "no samples"}, "clips"))
      2 clips, such as: 0.1 s is too short
        a.wav
        b.wav
      c.wav: no samples
    """
    causes: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        causes.setdefault(re.sub(r"\d+(\.\d+)?", "0", reason), []).append(path)
    ordered = sorted(causes.values(), key=len, reverse=True)
    lines = []
    for same in ordered[:_CAUSES]:
        first = reasons[same[0]]
        if len(same) == 1:
            lines.append(f"  {same[0]}: {first}")
            continue
        differ = "" if all(reasons[path] == first for path in same) else ", such as"
        lines += [f"  {len(same)} {what}{differ}: {first}", *(f"    {path}" for path in same[:_OF_A_CAUSE])]
        lines += [f"    and {len(same) - _OF_A_CAUSE} more"] if len(same) > _OF_A_CAUSE else []
    hidden = len(ordered) - _CAUSES
    return "\n".join(lines + ([f"  and {hidden} more causes"] if hidden > 0 else []))
