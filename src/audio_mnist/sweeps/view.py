"""What a person sees while a sweep trains: a live table in a terminal, else one line a minute."""

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from audio_mnist.training import progress

log = logging.getLogger(__name__)
VARIABLE = "AUDIO_MNIST_LIVE"  # set: workers leave the terminal to the live table
_LOOK_S = 1.0
_LINE_S = 60.0
_SHOWN = 16  # most running jobs in the table


@dataclass
class Watched:
    """State of a sweep's runs, read from their folders.

    Attributes:
        names: overrides that tell each job from the others.
        folders: each job's folder.
        over: numbers of jobs that are over, those finished before the sweep among them.
        before: number of jobs that were finished before the sweep.
        running: number -> what a running job wrote last.
        failures: number -> reason, in the order in which they were seen.
        pruned: numbers of trials that ended early.
        begun: number -> share of a run that was trained before the sweep.
        began: when the sweep began to train, s.
        expected: number of runs, where more are added later.
    """

    names: list[str]
    folders: list[Path]
    over: set[int] = field(default_factory=set)
    before: int = 0
    running: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)
    begun: dict[int, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    expected: int = 0

    @property
    def total(self) -> int:
        """Number of runs, from beginning to end."""
        return max(self.expected, len(self.folders))

    def look(self) -> None:
        """Read what the runs wrote since."""
        for number, folder in enumerate(self.folders):
            if number in self.over and number not in self.failures:  # a failed job of a cluster may be queued again
                continue
            values = progress.read(folder)
            if not values:
                continue
            self.failures.pop(number, None)
            self.over.discard(number)
            if "state" in values:
                self.over.add(number)
                self.running.pop(number, None)
                if values["state"] == "failed":
                    self.failures[number] = str(values.get("reason", values["state"]))
                elif values["state"] == "pruned":
                    self.pruned.add(number)
            else:
                self.running[number] = values
                self.begun.setdefault(number, values.get("begun", 0) / max(1, values["epochs"]))

    @property
    def left_s(self) -> float | None:
        """Time that the rest will take at the speed so far, s; None where nothing is known yet."""
        shares = (values["epoch"] / max(1, values["epochs"]) for values in self.running.values())
        done = len(self.over) - self.before + sum(shares)
        rest = self.total - self.before - done
        done -= sum(self.begun.values())
        return (time.monotonic() - self.began) / done * rest if done > 0.02 else None

    def line(self) -> str:
        """Describe the sweep in one line."""
        finished, total = len(self.over) - len(self.failures) - len(self.pruned), self.total
        parts = [f"{finished} of {total} runs finished", f"{len(self.running)} running"]
        parts += [f"{len(self.pruned)} pruned"] if self.pruned else []
        parts += [f"{len(self.failures)} failed"] if self.failures else []
        if self.left_s is not None and len(self.over) < total:
            parts.append(f"about {duration(self.left_s)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Format a duration as a person says it.

    >>> duration(42), duration(125), duration(7300)
    ('42 s', '2 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def described(name: str, values: dict[str, Any]) -> str:
    """Describe one running job.

    >>> described("feature=mel fold=3", {"epoch": 47, "epochs": 120, "score": 0.9031})
    'feature=mel fold=3: epoch 47/120, 0.9031'
    """
    score = values.get("score")
    return f"{name}: epoch {values['epoch']}/{values['epochs']}" + (f", {score:.4f}" if score is not None else "")


class View:
    """Shows a sweep's progress from a thread, until it is stopped.

    Args:
        watched: the runs.
        score: name of the score, for the table's head.
        live: whether a terminal is there.
    """

    def __init__(self, watched: Watched, score: str, *, live: bool) -> None:
        self._watched, self._score = watched, score
        self._stopped = threading.Event()
        self._live: Live | None = None
        if live:
            console = Console(file=sys.stdout)
            self._live = Live(self._table(), console=console, auto_refresh=False, transient=True)
            self._live.start()
            _follow_stdout()  # which the table has replaced by one that prints above it
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, names: list[str], folders: list[Path], over: set[int]) -> None:
        """Watch further runs; `over` has the numbers of those that are finished already."""
        self._watched.names += names
        self._watched.over |= over
        self._watched.before += len(over)
        self._watched.folders += folders

    def move(self, number: int, folder: Path) -> None:
        """Watch a run in the folder of the command that started it."""
        self._watched.folders[number] = folder

    def stop(self) -> None:
        """Take the table off the terminal."""
        self._stopped.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
            _follow_stdout()

    def _run(self) -> None:
        printed_at, told = time.monotonic(), set[int]()
        while not self._stopped.wait(_LOOK_S):
            self._watched.look()
            for number, reason in self._watched.failures.items():
                if number not in told and self._live is not None:
                    self._live.console.print(Text(f"{self._watched.names[number]}: {reason}", style="red"))
                told.add(number)
            told &= self._watched.failures.keys()  # a job that was queued again may fail again
            if self._live is not None:
                self._live.update(self._table(), refresh=True)
            elif time.monotonic() - printed_at >= _LINE_S:
                printed_at = time.monotonic()
                now = [described(self._watched.names[n], v) for n, v in list(self._watched.running.items())[:4]]
                log.info("%s", "; ".join([self._watched.line(), *now]))

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("run", "epoch", f"{self._score.replace('_', ' ')} so far"):
            table.add_column(name, justify="left" if name == "run" else "right")
        for number, values in list(self._watched.running.items())[:_SHOWN]:
            score = values.get("score")
            epochs = f"{values['epoch']}/{values['epochs']}"
            table.add_row(Text(self._watched.names[number]), epochs, "" if score is None else f"{score:.4f}")
        return Group(Text(self._watched.line(), style="bold"), *([table] if self._watched.running else []))


def is_terminal() -> bool:
    """Tell whether a live table can be shown."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def leave_terminal() -> None:
    """Log to files alone, in a worker of a sweep that shows a live table."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


def _follow_stdout() -> None:
    """Let this process's messages go to the present standard output."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stdout)
