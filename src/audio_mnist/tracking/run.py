"""A tracked run that is written to: its metrics, tags, artifacts and notes."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.untracked import UntrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PREFIX = "audio_mnist."  # of this project's tags
_NOTE = "mlflow.note.content"
_FLUSH_S = 5.0  # metrics wait this long for company: one transaction for many


class Run(UntrackedRun):
    """A run that is written to. Metrics are sent in batches, at the latest when it ends.

    Args:
        client: of the tracking store.
        run_id: of the run.
        logged: last step of each metric that the store has already.
    """

    def __init__(self, client: "MlflowClient", run_id: str, logged: dict[str, int] | None = None) -> None:
        self._client, self.id = client, run_id
        self._logged = logged or {}
        self._waiting: list[Metric] = []
        self._sent_at = time.monotonic()

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Adds one value to each metric."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        new = {key: value for key, value in metrics.items() if step > self._logged.get(key, -1)}
        self._waiting += [Metric(key, float(value), now_ms, step) for key, value in new.items()]
        if time.monotonic() - self._sent_at > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Sends the metrics that wait."""
        while self._waiting:
            part, self._waiting = self._waiting[:1000], self._waiting[1000:]  # MLflow's limit for one call
            with self._errors():
                self._client.log_batch(self.id, metrics=part)
        self._sent_at = time.monotonic()

    def set_tag(self, key: str, value: str) -> None:
        """Sets a tag of `PREFIX`, cut at MLflow's 5,000 characters."""
        with self._errors():
            self._client.set_tag(self.id, PREFIX + key, value[:5000])

    def set_list(self, key: str, values: list[str]) -> None:
        """Sets tags of `PREFIX`, KEY.0 and on, that have a hundred run ids each: `list_of`."""
        parts = [",".join(values[start : start + 100]) for start in range(0, len(values), 100)]
        with self._errors():
            before = [tag for tag in self._client.get_run(self.id).data.tags if tag.startswith(f"{PREFIX}{key}.")]
            for tag in before:
                self._client.delete_tag(self.id, tag)
        for number, part in enumerate(parts):
            self.set_tag(f"{key}.{number}", part)

    def log_file(self, path: Path, name: str) -> None:
        """Copies a local file to the artifact path `name`."""
        folder, _, leaf = name.rpartition("/")
        with self._errors(), tempfile.TemporaryDirectory() as temporary:
            renamed = path if path.name == leaf else shutil.copyfile(path, Path(temporary) / leaf)
            self._client.log_artifact(self.id, str(renamed), folder or None)

    def log_text(self, text: str, name: str) -> None:
        """Writes a text artifact."""
        with self._errors():
            self._client.log_text(self.id, text, name)

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Writes a picture artifact."""
        with self._errors():
            self._client.log_figure(self.id, figure, name)

    def note(self, markdown: str) -> None:
        """Sets the description shown on the run's page."""
        with self._errors():
            self._client.set_tag(self.id, _NOTE, markdown)

    def head_note(self, markdown: str) -> None:
        """Puts a paragraph before that description, of which MLflow's page shows the first lines."""
        with self._errors():
            before = self._client.get_run(self.id).data.tags.get(_NOTE, "")
        self.note(f"{markdown}\n\n{before}".strip())

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self.flush()
        with self._errors():
            self._client.set_terminated(self.id, status)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return mlflow_errors(f"run {self.id}")


def list_of(tags: dict[str, str], key: str) -> list[str]:
    """What `Run.set_list` set."""
    parts = [tags[name] for name in sorted(tags) if name == key or name.startswith(f"{key}.")]  # once one tag had all
    return [value for part in parts for value in part.split(",") if value]
