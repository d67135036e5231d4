"""What a person sees in MLflow after a ten-run sweep and its ensemble, in a real browser.

The pictures stay in pytest's temporary folder (`pytest --basetemp=FOLDER` names it).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from audio_mnist.tracking.tracker import Tracker, newest
from tests.conftest import Browser, MlflowServer, run_command, write_tones

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Shown:
    """A sweep of ten runs with its ensemble, and where MLflow shows them."""

    folder: Path
    output: str
    ids: list[str]
    ensemble: str
    sweep: str
    host: str

    def address(self, end: str) -> str:
        return f"{self.host}/{end}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Two commands in a fresh folder, then `mlflow ui` as the sweep's last lines say."""
    folder = tmp_path_factory.mktemp("pages")
    write_tones(folder / "tones", clips=10)
    swept = run_command(
        folder,
        *("train.py", "data=folder", "data.root=tones", "feature=mel,mfcc", "fold=0,1,2,3,4", "trainer.max_epochs=3"),
        *("trainer.batch_size=4", "trainer.accelerator=cpu", "-m"),
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    joined = run_command(folder, "ensemble.py", "run_ids=latest")
    assert joined.returncode == 0, joined.stdout + joined.stderr
    tracker = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist")
    ensemble = newest(tracker.search(kind="ensemble"))
    assert ensemble is not None and ensemble.parent_id is not None
    ids = [run.id for run in tracker.search(kind="train", parent_id=ensemble.parent_id)]
    server = MlflowServer(folder, "ui", "--backend-store-uri", "sqlite:///mlruns/mlflow.db")
    try:
        server.start()
        yield Shown(folder, swept.stdout, ids, ensemble.id, ensemble.parent_id, server.address)
    finally:
        server.stop()


def test_runs_table_shows_ten_runs_under_their_sweep(shown: Shown, browser: Browser, tmp_path: Path) -> None:
    """At the address that the sweep printed, without a click: names, accuracies, feature and fold."""
    printed = re.search(r"then open http://127.0.0.1:5000/(\S+)", shown.output)
    assert printed, shown.output
    with browser.open(shown.address(printed[1])) as tab:
        tab.wait_for_selector("text=mel resnet fold 4")
        for heading in (
            "best/accuracy",
            "best/loss",
            "oof/accuracy",
            "sweep/accuracy/Ensemble",
            "feature.name",
            "fold",
        ):
            assert tab.get_by_role("columnheader", name=heading, exact=True).first.is_visible(), heading
        names = [f"{feature} resnet fold {fold}" for feature in ("mel", "mfcc") for fold in range(5)]
        for name in (*names, "ensemble of 10 (stack)"):
            tab.get_by_text(name, exact=True).first.wait_for()
        cells = tab.query_selector_all("[role=gridcell][col-id*='best/accuracy']")
        accuracies = [cell.inner_text() for cell in cells]
        tab.screenshot(path=tmp_path / "runs.png")
        # the runs are below their parent: further to the right than its name is
        left = {name: tab.get_by_text(name).first.bounding_box() for name in ("sweep 20", names[0])}
        assert left["sweep 20"]["x"] < left[names[0]]["x"]
    numbers = [float(text) for text in accuracies if text != "-"]
    assert len(numbers) == 10 and all(0 <= number <= 1 for number in numbers)
    assert (tmp_path / "runs.png").stat().st_size > 10_000


def test_sweeps_row_says_what_was_swept_and_how_it_ended(shown: Shown) -> None:
    """Parameters, metrics and the picture of its curves; the experiment opens as one of model training."""
    tracker = Tracker(f"sqlite:///{shown.folder}/mlruns/mlflow.db", "audio-mnist")
    run = tracker.client.get_run(shown.sweep)
    assert run.data.params == {"corpus": "tones (folder)", "swept": "feature=mel,mfcc fold=0,1,2,3,4", "runs": "10"}
    assert run.data.metrics.keys() >= {f"sweep/accuracy/{row}" for row in ("Mel", "MFCC", "Ensemble")}
    assert run.data.metrics["sweep/finished"] == 10 and run.data.metrics["sweep/n"] == 30
    pictures = {file.path for file in tracker.client.list_artifacts(shown.sweep, "figures")}
    assert "figures/training_curves.png" in pictures
    experiment = tracker.client.get_experiment(tracker.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_chart_view_draws_the_runs(shown: Shown, browser: Browser, tmp_path: Path) -> None:
    """A bar of each run's accuracy, lines of its epochs."""
    printed = re.search(r"then open http://127.0.0.1:5000/(\S+)", shown.output)
    assert printed
    with browser.open(shown.address(printed[1]) + "&compareRunsMode=CHART") as tab:
        tab.wait_for_selector(".js-plotly-plot .barlayer .point, .js-plotly-plot .bars .point")
        tab.wait_for_timeout(2000)
        bars = tab.query_selector_all(".js-plotly-plot")[0].query_selector_all(".point")
        tab.screenshot(path=tmp_path / "charts.png")
        assert len(bars) >= 10
        assert "best/accuracy" in tab.inner_text("body")


def test_sweeps_page_leads_to_the_comparison_and_the_ensemble(shown: Shown, browser: Browser, tmp_path: Path) -> None:
    """The note has the table, a link to the ten runs side by side, and one to the ensemble with its score."""
    with browser.open(shown.address(f"#/experiments/1/runs/{shown.sweep}")) as tab:
        tab.wait_for_selector("text=The 10 finished runs, compared")
        assert re.search(r"Ensemble of 10: \d\.\d{4} out of fold \(\d", tab.inner_text("body"))
        tab.screenshot(path=tmp_path / "sweep.png")
        ensemble, compared = (tab.get_attribute(f"a:has-text('{t}')", "href") for t in ("Ensemble of 10", "compared"))
        tab.goto(shown.address(str(ensemble)))
        tab.wait_for_selector("text=ensemble of 10 (stack)")
        assert shown.ensemble in tab.url
        tab.goto(shown.address(str(compared)))
        tab.wait_for_selector("text=Parallel Coordinates Plot")
        tab.wait_for_selector(".js-plotly-plot .parcoords, .js-plotly-plot canvas")
        tab.wait_for_timeout(2000)
        tab.screenshot(path=tmp_path / "compared.png")
        assert "Comparing 10 Runs" in tab.inner_text("body")
