"""Addresses of MLflow's pages, each without the host, and the view of the runs table that they open with."""

import base64
import json
import zlib
from urllib.parse import urlencode

from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.tracker import Tracker

_VIEW = "audio-mnist-accuracies"


def save_view(tracker: Tracker) -> str:
    """Save a view of the runs table with the columns that matter; return the end of its address.

    MLflow keeps such views as tags of the experiment. It ignores one that it
    cannot read.
    """
    metrics, params = (
        ("best/accuracy", "best/loss", "oof/accuracy", "sweep/accuracy/Ensemble"),
        ("feature.name", "model.name", "fold", "swept"),
    )
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in params]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    # fixed times: the same columns always give the same text
    view = {"name": "accuracies", "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    with mlflow_errors(f"tracking.uri={tracker.shown_uri}"):
        tracker.client.set_experiment_tag(tracker.experiment_id, f"mlflow.sharedViewState.{_VIEW}", json.dumps(view))
    return f"#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"


def run_page(tracker: Tracker, run_id: str) -> str:
    """Return the end of the address of a run's page."""
    return f"#/experiments/{tracker.experiment_id}/runs/{run_id}"


def comparison_page(tracker: Tracker, run_ids: list[str]) -> str:
    """Return the end of the address of a page that compares runs."""
    asked = {"runs": json.dumps(run_ids), "experiments": json.dumps([tracker.experiment_id])}
    return f"#/compare-runs?{urlencode(asked)}"
