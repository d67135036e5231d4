"""Tracked runs. MLflow is known here, in tracked.py, database.py, registry.py and served.py alone."""

import contextlib
import getpass
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_mnist.config import without_password
from audio_mnist.errors import RunError
from audio_mnist.tracking import backend as database
from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.run import PREFIX, Run, list_of
from audio_mnist.tracking.untracked import Untracked

BEST_CHECKPOINT = "checkpoints/best.ckpt"
FOLD_PREDICTIONS = "fold_predictions.csv"
CONFIG = "config.yaml"
MODEL_NAME = re.compile(r"[A-Za-z][\w.-]*")  # of a registered model
_NAMED = re.compile(rf"(?:models:/)?(?P<name>{MODEL_NAME.pattern})(?:@(?P<alias>.+)|/(?P<version>.+))?")
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class RunRecord:
    """What is known of one tracked run.

    Attributes:
        id: MLflow's run id.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: those of `PREFIX`, without it.
        metrics: last value of each.
    """

    id: str
    name: str
    status: str
    parent_id: str | None
    tags: dict[str, str]
    metrics: dict[str, float]


def connect(uri: str | None, experiment: str) -> "Tracker | Untracked":
    """The tracking store at `uri`; one that keeps nothing where that is None."""
    return Untracked() if uri is None else Tracker(uri, experiment)


class Tracker:
    """Runs of one experiment in one tracking store.

    Args:
        uri: any MLflow tracking URI. A SQLite database is created where it does
            not exist yet, with the artifacts beside it.
        experiment: created where it does not exist yet.

    Raises:
        RunError: the store cannot be reached or created.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.shown_uri = uri, without_password(uri)
        database.import_client(uri)
        try:
            artifacts = database.prepare_sqlite(uri) if uri.startswith("sqlite") else None
            with mlflow_errors(f"tracking.uri={self.shown_uri}"):
                self.client = database.connect(uri)
                self.experiment_id = self._find_or_create(experiment, artifacts)
        except OSError as error:
            raise RunError(
                f"tracking.uri={self.shown_uri}: cannot be written ({error.strerror or error}); "
                "choose another tracking.uri or mend the folder's permissions"
            ) from None

    def _find_or_create(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=artifacts)
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RunError(f"tracking.experiment={name} was deleted in MLflow; restore it or choose another name")
        return found.experiment_id

    def start(
        self, name: str, *, kind: str, tags: dict[str, str], params: dict[str, Any], parent_id: str | None = None
    ) -> "Run":
        """A new RUNNING run.

        Args:
            name: shown in the runs table.
            kind: "sweep", "train", "ensemble" or "explore".
            tags: without `PREFIX`.
            params: flattened into dotted keys.
            parent_id: the run that it is shown under.
        """
        all_tags = {PREFIX + key: value for key, value in tags.items()} | {
            PREFIX + "kind": kind,
            "mlflow.user": _user(),
            "mlflow.source.name": f"{kind}.py" if kind in ("ensemble", "explore") else "train.py",
            "mlflow.source.type": "LOCAL",
        }
        if parent_id:
            # of a type whose parents MLflow's table shows opened
            all_tags |= {_PARENT: parent_id, "mlflow.runType": "evaluation"}
        commit = _git_commit()
        if commit:
            all_tags["mlflow.source.git.commit"] = commit
        with mlflow_errors(f"tracking.uri={self.shown_uri}"):
            run = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
        self._log_params(run.info.run_id, params)
        return Run(self.client, run.info.run_id)

    def reopen(self, run_id: str, params: dict[str, Any], parent_id: str | None = None) -> "Run":
        """A run that did not finish, RUNNING again; metrics that it has already are not logged twice.

        Args:
            run_id: of the run.
            params: those that it lacks are logged.
            parent_id: the run that it is shown under from now on; None: as before.
        """
        with mlflow_errors(f"run {run_id}"):
            run = self.client.get_run(run_id)
            known = run.data.params  # MLflow changes none; what may differ does not change the training
            self._log_params(run_id, {key: value for key, value in _flatten(params) if key not in known})
            histories = {key: self.client.get_metric_history(run_id, key) for key in run.data.metrics}
            if parent_id is not None:
                self.client.set_tag(run_id, _PARENT, parent_id)
            if PREFIX + "error" in run.data.tags:
                self.client.delete_tag(run_id, PREFIX + "error")
            self.client.update_run(run_id, status="RUNNING")
        return Run(self.client, run_id, {key: max(m.step for m in values) for key, values in histories.items()})

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(key, value) for key, value in _flatten(params)]
        with mlflow_errors(f"run {run_id}"):
            for start in range(0, len(flat), 100):  # MLflow's limit for one call
                self.client.log_batch(run_id, params=flat[start : start + 100])

    def open(self, run_id: str) -> "Run":
        """An existing run, to log to or to end."""
        return Run(self.client, run_id)

    def get(self, run_id: str) -> RunRecord | None:
        """The run of that id, None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
            return _record(run) if run.info.lifecycle_stage == "active" else None
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise RunError(f"tracking.uri={self.shown_uri}: {without_password(error.message)}") from None

    def children(self, parent_id: str) -> list[RunRecord]:
        """The training runs under a parent, oldest first."""
        return self._search(f"tags.`{_PARENT}` = '{parent_id}' and tags.`{PREFIX}kind` = 'train'")

    def trained(self, corpus_fingerprint: str) -> dict[str, list[RunRecord]]:
        """The training runs of a corpus by their job, oldest first: `resuming.job_key`."""
        found: dict[str, list[RunRecord]] = {}
        for run in self._search(f"tags.`{PREFIX}corpus_fingerprint` = '{corpus_fingerprint}'"):
            if run.tags.get("kind") == "train" and "job" in run.tags:
                found.setdefault(run.tags["job"], []).append(run)
        return found

    def newest(self, job: str, place: str) -> RunRecord | None:
        """The newest finished run of a job; else the newest of this place, whose state is here: `resuming.place`."""
        runs = self._search(f"tags.`{PREFIX}job` = '{job}' and tags.`{PREFIX}kind` = 'train'")
        own = [run for run in runs if run.tags.get("place", "") == place]
        finished = [run for run in runs if run.status == "FINISHED"]
        chosen = finished or own
        return chosen[-1] if chosen else None

    def sweep_of(self, jobs: str) -> RunRecord | None:
        """The newest sweep of the same jobs, None where there is none."""
        found = self._search(f"tags.`{PREFIX}jobs` = '{jobs}' and tags.`{PREFIX}kind` = 'sweep'")
        return found[-1] if found else None

    def latest_sweep(self) -> tuple[RunRecord | None, list[RunRecord], int]:
        """The newest sweep that has finished runs; these, with those that it took over; how many newer have none."""
        sweeps = self._search(f"tags.`{PREFIX}kind` = 'sweep'")
        newest_first = sorted(sweeps, key=lambda sweep: sweep.tags.get("begun", ""), reverse=True)
        for newer, parent in enumerate(newest_first):
            ids = list_of(parent.tags, "taken_over")
            taken = [run for run in map(self.get, ids) if run is not None]
            own = [run for run in self.children(parent.id) if run.id not in ids]
            finished = [run for run in taken + own if run.status == "FINISHED"]
            if finished:
                return parent, finished, newer
        return None, [], len(sweeps)

    def latest(self, kind: str) -> RunRecord | None:
        """The newest finished run of a kind, None where there is none."""
        finished = [run for run in self._search(f"tags.`{PREFIX}kind` = '{kind}'") if run.status == "FINISHED"]
        return finished[-1] if finished else None

    def registered_run(self, model: str) -> str | None:
        """Id of the run of a registered model, None where `model` names none.

        Args:
            model: NAME (its newest version), NAME@ALIAS or NAME/VERSION, with or without models:/ before it.

        Raises:
            RunError: there is such a name, but no such alias or version.
        """
        named = _NAMED.fullmatch(model)
        if named is None:
            return None
        with mlflow_errors(f"model={model}"):
            found = self.client.search_model_versions(f"name = '{named['name']}'")
            if not found:
                return None
            aliases = self.client.get_registered_model(named["name"]).aliases  # alias -> version
        run_ids = {int(version.version): version.run_id for version in found}
        wanted = named["version"] or str(max(run_ids))
        if named["alias"] is not None:
            wanted = str(aliases.get(named["alias"], "none"))
        if wanted.isdigit() and int(wanted) in run_ids:
            return run_ids[int(wanted)]
        known = [str(number) for number in sorted(run_ids)] + [f"@{alias}" for alias in aliases]
        raise RunError(f"model={model}: {named['name']} has no such version; it has {', '.join(known)}")

    def _search(self, query: str) -> list[RunRecord]:
        found: list[RunRecord] = []
        token = None
        with mlflow_errors(f"tracking.uri={self.shown_uri}"):
            while True:
                page = self.client.search_runs(
                    [self.experiment_id], query, order_by=["attributes.start_time ASC"], page_token=token
                )
                found += [_record(run) for run in page]
                token = page.token
                if not token:
                    return found

    @contextlib.contextmanager
    def artifact(self, run_id: str, path: str) -> Iterator[Path]:
        """A run's artifact as a local file, for the length of the block.

        Raises:
            RunError: the run has no such artifact.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                from mlflow.artifacts import download_artifacts

                local = Path(
                    download_artifacts(run_id=run_id, artifact_path=path, dst_path=folder, tracking_uri=self.uri)
                )
            except Exception as error:
                reason = without_password(str(error).strip().splitlines()[-1])
                raise RunError(f"run {run_id}: its artifact {path} cannot be read ({reason})") from None
            yield local


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
    return [(prefix.rstrip("."), str(value)[:6000])]  # MLflow's limit


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git_commit() -> str | None:
    """Commit of the code, with "-dirty" where tracked files differ from it; None outside git."""
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
