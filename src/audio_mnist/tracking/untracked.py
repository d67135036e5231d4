"""The same interface as `tracking`, for runs that leave nothing behind."""

from typing import Any


class UntrackedRun:
    """Takes what `tracked.Run` takes, and forgets it."""

    id = "untracked"

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def set_tag(self, key: str, value: str) -> None:
        """Nothing."""

    def set_list(self, key: str, values: list[str]) -> None:
        """Nothing."""

    def log_file(self, path: Any, name: str) -> None:
        """Nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Nothing."""

    def log_figure(self, figure: Any, name: str) -> None:
        """Nothing."""

    def note(self, markdown: str) -> None:
        """Nothing."""

    def head_note(self, markdown: str) -> None:
        """Nothing."""

    def end(self, status: str) -> None:
        """Nothing."""


class Untracked:
    """Takes what `tracking.Tracker` takes to start a run."""

    experiment_id = ""

    def start(self, name: str, **what: Any) -> UntrackedRun:
        """A run that forgets."""
        return UntrackedRun()

    def open(self, run_id: str) -> UntrackedRun:
        """The same."""
        return UntrackedRun()

    def reopen(self, run_id: str, params: dict[str, Any], parent_id: str | None = None) -> UntrackedRun:
        """The same."""
        return UntrackedRun()

    def newest(self, job: str, place: str) -> None:
        """None: nothing is kept."""
