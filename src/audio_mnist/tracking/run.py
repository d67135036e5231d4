"""A run that is written to: its metrics, tags, artifacts and notes. In MLflow, or nowhere."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from audio_mnist.tracking.backend import mlflow_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PREFIX = "audio_mnist."  # of this project's tags
_NOTE = "mlflow.note.content"
_FLUSH_S = 5.0  # metrics wait this long, so that one transaction takes many
_TAG_CHARACTERS = 5000  # MLflow's limit
_METRICS = 1000  # MLflow's limit for one call


class Run(Protocol):
    """A run that is written to."""

    id: str

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Add one value to each metric."""

    def flush(self) -> None:
        """Send the metrics that wait."""

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of `PREFIX`."""

    def set_list(self, key: str, values: list[str]) -> None:
        """Set a list of run ids; `list_of` reads it."""

    def log_file(self, path: Path, name: str) -> None:
        """Copy a local file to the artifact path `name`."""

    def log_text(self, text: str, name: str) -> None:
        """Write a text artifact."""

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Write a picture artifact."""

    def note(self, markdown: str) -> None:
        """Set the description on the run's page."""

    def head_note(self, markdown: str) -> None:
        """Put a paragraph before that description; MLflow's page shows its first lines."""

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


class NullRun:
    """A run that keeps nothing."""

    id = "untracked"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Run, name):
            raise AttributeError(name)
        return _nothing


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Keep nothing."""


NULL_RUN = cast(Run, NullRun())


class MlflowRun:
    """A run in MLflow. Metrics are sent in batches, at the latest when it ends.

    Args:
        client: client of the tracking store.
        run_id: the run's id.
        logged: last step of each metric that the store already has.
    """

    def __init__(self, client: "MlflowClient", run_id: str, logged: dict[str, int] | None = None) -> None:
        self._client, self.id = client, run_id
        self._logged = logged or {}
        self._waiting: list[Metric] = []
        self._sent_at = time.monotonic()

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        new = {key: value for key, value in metrics.items() if step > self._logged.get(key, -1)}
        self._waiting += [Metric(key, float(value), now_ms, step) for key, value in new.items()]
        if time.monotonic() - self._sent_at > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:_METRICS], self._waiting[_METRICS:]
            with self._errors():
                self._client.log_batch(self.id, metrics=part)
        self._sent_at = time.monotonic()

    def set_tag(self, key: str, value: str) -> None:
        with self._errors():
            self._client.set_tag(self.id, PREFIX + key, value[:_TAG_CHARACTERS])

    def set_list(self, key: str, values: list[str]) -> None:
        parts = [",".join(values[start : start + 100]) for start in range(0, len(values), 100)]
        with self._errors():
            before = [tag for tag in self._client.get_run(self.id).data.tags if tag.startswith(f"{PREFIX}{key}.")]
            for tag in before:
                self._client.delete_tag(self.id, tag)
        for number, part in enumerate(parts):
            self.set_tag(f"{key}.{number}", part)

    def log_file(self, path: Path, name: str) -> None:
        folder, _, leaf = name.rpartition("/")
        with self._errors(), tempfile.TemporaryDirectory() as temporary:
            renamed = path if path.name == leaf else shutil.copyfile(path, Path(temporary) / leaf)
            self._client.log_artifact(self.id, str(renamed), folder or None)

    def log_text(self, text: str, name: str) -> None:
        with self._errors():
            self._client.log_text(self.id, text, name)

    def log_figure(self, figure: "Figure", name: str) -> None:
        with self._errors():
            self._client.log_figure(self.id, figure, name)

    def note(self, markdown: str) -> None:
        with self._errors():
            self._client.set_tag(self.id, _NOTE, markdown)

    def head_note(self, markdown: str) -> None:
        with self._errors():
            before = self._client.get_run(self.id).data.tags.get(_NOTE, "")
        self.note(f"{markdown}\n\n{before}".strip())

    def end(self, status: str) -> None:
        self.flush()
        with self._errors():
            self._client.set_terminated(self.id, status)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return mlflow_errors(f"run {self.id}")


def list_of(tags: dict[str, str], key: str) -> list[str]:
    """Read what `Run.set_list` set.

    >>> list_of({"taken_over.0": "a,b", "taken_over.1": "c"}, "taken_over")
    ['a', 'b', 'c']
    """
    parts = [tags[name] for name in sorted(tags) if name == key or name.startswith(f"{key}.")]  # KEY: an older form
    return [value for part in parts for value in part.split(",") if value]
