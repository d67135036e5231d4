"""The processes of a sweep: found by Hydra's launcher with all imported, gone when they are not wanted."""

import os

import pytest
from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed
from joblib.externals.loky import reusable_executor
from omegaconf import DictConfig, OmegaConf

from audio_mnist.sweep import workers
from tests.conftest import PROJECT

# where it runs, and what was imported there before
ASK = "(__import__('os').getpid(), sorted({'pytorch_lightning', 'mlflow'} & set(__import__('sys').modules)))"


def launcher(*overrides: str) -> DictConfig:
    """Of the composed config."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base=None):
        return compose("train", list(overrides), return_hydra_config=True).hydra.launcher


@pytest.mark.parametrize(
    ("tracking_uri", "imported"),
    [("sqlite:///x.db", ["mlflow", "pytorch_lightning"]), (None, ["pytorch_lightning"])],
)
def test_launcher_finds_the_started_workers(tracking_uri: str | None, imported: list[str]) -> None:
    """Hydra's own call of joblib gets processes that have imported what a run needs."""
    chosen = launcher("hydra.launcher.n_jobs=2")
    thread = workers.start(chosen, tracking_uri, 4)
    assert thread is not None
    thread.join(120)
    started = set(reusable_executor._executor._processes)
    assert len(started) == 2 and os.getpid() not in started
    options = {key: value for key, value in OmegaConf.to_container(chosen).items() if key != "_target_"}
    found = Parallel(**options | {"backend": "loky", "timeout": 60})(delayed(eval)(ASK) for _ in range(4))
    assert {pid for pid, _ in found} <= started
    assert all(names == imported for _, names in found)
    workers.stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


@pytest.mark.parametrize("overrides", [["hydra.launcher.n_jobs=1"], ["hydra/launcher=basic"]])
def test_no_workers_where_runs_follow_one_another(overrides: list[str]) -> None:
    """The sweep's own process trains."""
    assert workers.start(launcher(*overrides), None, 4) is None
