"""Runs of one experiment: started, found, read. In MLflow, or nowhere."""

import contextlib
import getpass
import hashlib
import json
import logging
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_mnist.errors import RunError
from audio_mnist.tracking import backend
from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.run import NULL_RUN, PREFIX, MlflowRun, Run
from audio_mnist.tracking.sqlite import absolute, prepare_sqlite
from audio_mnist.tracking.uri import without_password

BEST_CHECKPOINT = "checkpoints/best.ckpt"  # artifact of every training run
CONFIG = "config.yaml"  # artifact of every training run
BROKEN = "broken"  # tag of a run that finished and lost an artifact
DIGESTS = "digests"  # tag: JSON, artifact -> `digest_of` its bytes
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"  # the page that the experiment opens with
_PARENT = "mlflow.parentRunId"
_PARAM_CHARACTERS = 6000  # MLflow's limit
_PARAMS = 100  # MLflow's limit for one call
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """Facts about one tracked run.

    Attributes:
        id: MLflow's run id.
        name: name in the runs table.
        status: RUNNING, FINISHED, FAILED or KILLED.
        parent_id: the run that it is shown under.
        tags: tags of `PREFIX`, without the prefix.
        metrics: last value of each metric.
    """

    id: str
    name: str
    status: str
    parent_id: str | None
    tags: dict[str, str]
    metrics: dict[str, float]


class NullTracker:
    """A tracking store that keeps nothing and finds nothing."""

    keeps_runs = False

    def start(self, name: str, **what: Any) -> Run:
        """Return a run that keeps nothing."""
        return NULL_RUN

    def open(self, run_id: str) -> Run:
        """Return a run that keeps nothing."""
        return NULL_RUN

    def reopen(self, run_id: str, params: dict[str, Any], parent_id: str | None = None) -> Run:
        """Return a run that keeps nothing."""
        return NULL_RUN

    def get(self, run_id: str) -> RunRecord | None:
        """Return None."""
        return None

    def search(self, *, parent_id: str | None = None, **tags: str) -> list[RunRecord]:
        """Return no run."""
        return []

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Return no value."""
        return {}

    def usable(self, runs: list[RunRecord]) -> RunRecord | None:
        """Return None."""
        return None

    def artifact(self, run_id: str, path: str) -> contextlib.AbstractContextManager[Path]:
        """Raise a `RunError`: nothing is kept."""
        raise RunError(f"run {run_id}: its artifact {path} cannot be read (tracking.uri=null keeps nothing)")


class Tracker:
    """Runs of one experiment in one tracking store.

    Args:
        uri: any MLflow tracking URI. A missing SQLite database is created, with the artifacts beside it.
        experiment: name of the experiment; created where it does not exist.

    Raises:
        RunError: the store cannot be reached or created.
    """

    keeps_runs = True

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.shown_uri, self._store = uri, without_password(uri), absolute(uri)
        backend.import_client(uri)
        try:
            artifacts = prepare_sqlite(uri) if uri.startswith("sqlite") else None
            with mlflow_errors(f"tracking.uri={self.shown_uri}"):
                self.client = backend.connect(self._store)
                self.experiment_id = self._find_or_create(experiment, artifacts)
        except OSError as error:
            raise RunError(
                f"tracking.uri={self.shown_uri}: cannot be written ({error.strerror or error}); "
                "choose another tracking.uri or correct the folder's permissions"
            ) from None

    def _find_or_create(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=artifacts, tags={_KIND: _TRAINING})
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RunError(f"tracking.experiment={name} was deleted in MLflow; restore it or choose another name")
        if _KIND not in found.tags:  # made by an earlier version
            self.client.set_experiment_tag(found.experiment_id, _KIND, _TRAINING)
        return found.experiment_id

    def start(
        self, name: str, *, kind: str, tags: dict[str, str], params: dict[str, Any], parent_id: str | None = None
    ) -> Run:
        """Start a run.

        Args:
            name: name in the runs table.
            kind: "sweep", "train", "ensemble" or "explore".
            tags: tags without `PREFIX`.
            params: parameters, flattened into dotted keys.
            parent_id: the run that it is shown under.
        """
        all_tags = {PREFIX + key: value for key, value in tags.items()} | {
            PREFIX + "kind": kind,
            "mlflow.user": _user(),
            "mlflow.source.name": f"{kind}.py" if kind in ("ensemble", "explore") else "train.py",
            "mlflow.source.type": "LOCAL",
        }
        if parent_id:
            # MLflow's table opens the parents of this run type
            all_tags |= {_PARENT: parent_id, "mlflow.runType": "evaluation"}
        commit = _git_commit()
        if commit:
            all_tags["mlflow.source.git.commit"] = commit
        with mlflow_errors(f"tracking.uri={self.shown_uri}"):
            run = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
        self._log_params(run.info.run_id, params)
        return MlflowRun(self.client, run.info.run_id)

    def reopen(self, run_id: str, params: dict[str, Any], parent_id: str | None = None) -> Run:
        """Set a run that did not finish to RUNNING again; metrics that it has are not logged twice.

        Args:
            run_id: the run's id.
            params: parameters; missing ones are logged.
            parent_id: the run that it is shown under from now on; None keeps the old one.
        """
        with mlflow_errors(f"run {run_id}"):
            run = self.client.get_run(run_id)
            known = run.data.params  # MLflow changes none; those that may differ do not change the training
            self._log_params(run_id, {key: value for key, value in _flatten(params) if key not in known})
            histories = {key: self.client.get_metric_history(run_id, key) for key in run.data.metrics}
            if parent_id is not None:
                self.client.set_tag(run_id, _PARENT, parent_id)
            if PREFIX + "error" in run.data.tags:
                self.client.delete_tag(run_id, PREFIX + "error")
            self.client.update_run(run_id, status="RUNNING")
        return MlflowRun(self.client, run_id, {key: max(m.step for m in values) for key, values in histories.items()})

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(key, value) for key, value in _flatten(params)]
        with mlflow_errors(f"run {run_id}"):
            for start in range(0, len(flat), _PARAMS):
                self.client.log_batch(run_id, params=flat[start : start + _PARAMS])

    def open(self, run_id: str) -> Run:
        """Open an existing run, to log to it or to end it."""
        return MlflowRun(self.client, run_id)

    def get(self, run_id: str) -> RunRecord | None:
        """Return the run of that id, None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
            return _record(run) if run.info.lifecycle_stage == "active" else None
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise RunError(f"tracking.uri={self.shown_uri}: {without_password(error.message)}") from None

    def search(self, *, parent_id: str | None = None, **tags: str) -> list[RunRecord]:
        """Return the runs that have all these tags, oldest first.

        Args:
            parent_id: the run that they are shown under.
            tags: tags without `PREFIX`, such as kind="train".
        """
        conditions = [f"tags.`{PREFIX}{key}` = '{value}'" for key, value in tags.items()]
        conditions += [f"tags.`{_PARENT}` = '{parent_id}'"] if parent_id is not None else []
        found: list[RunRecord] = []
        token = None
        with mlflow_errors(f"tracking.uri={self.shown_uri}"):
            while True:
                page = self.client.search_runs(
                    [self.experiment_id],
                    " and ".join(conditions),
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                found += [_record(run) for run in page]
                token = page.token
                if not token:
                    return found

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Return epoch -> value of a run's metric."""
        with mlflow_errors(f"run {run_id}"):
            return {one.step: one.value for one in self.client.get_metric_history(run_id, metric)}

    def usable(self, runs: list[RunRecord]) -> RunRecord | None:
        """Return the newest finished run with the artifacts that it logged; None where there is none.

        A finished run that lacks one, or has another one, ends as FAILED here, with
        the tag `broken`. Its job is trained again as another run.

        Args:
            runs: runs of one job, oldest first.

        Raises:
            RunError: the artifacts cannot be read for another reason.
        """
        for run in reversed([run for run in runs if run.status == "FINISHED"]):
            reason = self._lacks(run)
            if not reason:
                return run
            log.warning("run %s finished, but %s: it is trained again", run.id, reason)
            ended = self.open(run.id)
            ended.set_tag("error", reason)
            ended.set_tag(BROKEN, "true")
            ended.end("FAILED")
        return None

    def _lacks(self, run: RunRecord) -> str:
        """Say which artifact of a run is not the one that it logged, "" where all are."""
        digests = json.loads(run.tags.get(DIGESTS, "{}"))
        if BEST_CHECKPOINT not in digests:
            return f"no digest of its {BEST_CHECKPOINT} was tracked"
        for name, expected in digests.items():
            try:
                with self.artifact(run.id, name) as path:
                    found = digest_of(name, path.read_bytes())
            except RunError:
                with mlflow_errors(f"run {run.id}"):
                    listed = self.client.list_artifacts(run.id, name.rpartition("/")[0] or None)
                if any(item.path == name for item in listed):
                    raise
                self._check_artifacts(run.id)
                return f"its {name} is missing"
            if found != expected:
                return f"its {name} was changed"
        return ""

    def _check_artifacts(self, run_id: str) -> None:
        """Raise a `RunError` where the folder of all runs' artifacts is on this machine, and away or empty."""
        with mlflow_errors(f"run {run_id}"):
            address = self.client.get_run(run_id).info.artifact_uri
        local = "://" not in address or address.startswith("file://")
        root = Path(address.removeprefix("file://")).parents[1]  # of ROOT/RUN/artifacts
        if local and not (root.is_dir() and any(root.iterdir())):
            raise RunError(
                f"run {run_id}: its artifacts cannot be read, {root} is missing or empty; bring it back, or train all "
                "runs again with resume=false"
            ) from None

    @contextlib.contextmanager
    def artifact(self, run_id: str, path: str) -> Iterator[Path]:
        """Provide a run's artifact as a local file for the length of the block.

        Raises:
            RunError: the run has no such artifact.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                from mlflow.artifacts import download_artifacts

                local = Path(
                    download_artifacts(run_id=run_id, artifact_path=path, dst_path=folder, tracking_uri=self._store)
                )
            except Exception as error:
                reason = without_password(str(error).strip().splitlines()[-1])
                raise RunError(f"run {run_id}: its artifact {path} cannot be read ({reason})") from None
            yield local


AnyTracker = Tracker | NullTracker


def connect(uri: str | None, experiment: str) -> AnyTracker:
    """Open the tracking store at `uri`; None is one that keeps nothing."""
    return NullTracker() if uri is None else Tracker(uri, experiment)


def digest_of(name: str, content: bytes) -> str:
    """Return 32 hex digits that identify the bytes of an artifact; of a csv whatever its line ends."""
    content = content.replace(b"\r\n", b"\n") if name.endswith(".csv") else content
    return hashlib.sha256(content).hexdigest()[:32]


def newest(runs: list[RunRecord]) -> RunRecord | None:
    """Return the newest finished run, None where there is none.

    Args:
        runs: oldest first, as `Tracker.search` returns them.
    """
    return next((run for run in reversed(runs) if run.status == "FINISHED"), None)


def _record(run: Any) -> RunRecord:
    tags = run.data.tags
    return RunRecord(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        parent_id=tags.get(_PARENT),
        tags={key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)},
        metrics=dict(run.data.metrics),
    )


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in _flatten(part, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), str(value)[:_PARAM_CHARACTERS])]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git_commit() -> str | None:
    """Return the code's commit, with "-dirty" where tracked files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", here, "diff", "--quiet", "HEAD", "--", ":/"], capture_output=True, timeout=10
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")
