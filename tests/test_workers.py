"""The processes of a sweep: found by Hydra's launcher with all imported, gone when they are not wanted."""

import os

import pytest
from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed
from joblib.externals.loky import reusable_executor
from omegaconf import DictConfig, OmegaConf, open_dict

from audio_mnist.sweeps.launchers import Launcher, launcher_of
from tests.conftest import PROJECT

# where it runs, and what was imported there before
ASK = "(__import__('os').getpid(), sorted({'pytorch_lightning', 'mlflow'} & set(__import__('sys').modules)))"


def sweep_config(*overrides: str) -> DictConfig:
    """The composed config with its `hydra` part."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base=None):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("tracking_uri", "imported"),
    [("sqlite:///x.db", ["mlflow", "pytorch_lightning"]), (None, ["pytorch_lightning"])],
)
def test_launcher_finds_the_started_workers(tracking_uri: str | None, imported: list[str]) -> None:
    """Hydra's own call of joblib gets processes that have imported what a run needs."""
    config = sweep_config("hydra.launcher.n_jobs=2")
    launcher = launcher_of(config)
    launcher.start(tracking_uri, 4)
    launcher.wait()
    started = set(reusable_executor._executor._processes)
    assert len(started) == 2 and os.getpid() not in started
    options = {key: value for key, value in OmegaConf.to_container(config.hydra.launcher).items() if key != "_target_"}
    found = Parallel(**options | {"backend": "loky", "timeout": 60})(delayed(eval)(ASK) for _ in range(4))
    assert {pid for pid, _ in found} <= started
    assert all(set(imported) <= set(names) for _, names in found)  # more, where an earlier sweep of this process did
    launcher.stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


@pytest.mark.parametrize("overrides", [["hydra.launcher.n_jobs=1"], ["hydra/launcher=basic"]])
def test_no_workers_where_runs_follow_one_another(overrides: list[str]) -> None:
    """The sweep's own process trains."""
    launcher, before = launcher_of(sweep_config(*overrides)), reusable_executor._executor
    launcher.start(None, 4)
    launcher.wait()
    assert launcher.side_by_side == 1 and reusable_executor._executor is before
    launcher.stop()


def test_launcher_leaves_cores_to_runs_with_more_threads() -> None:
    """A sweep over trainer.threads=1,2 runs half as many side by side; the launcher's config says so too."""
    config = sweep_config("hydra.launcher.n_jobs=4")
    launcher = launcher_of(config)
    launcher.leave_cores(2)
    assert launcher.side_by_side == config.hydra.launcher.n_jobs == 2


def test_a_new_launcher_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of `Launcher` is found by the end of its target."""
    monkeypatch.setattr(Launcher, "registry", list(Launcher.registry))

    class Cluster(Launcher):
        target = ".ClusterLauncher"

    config = sweep_config()
    with open_dict(config):
        config.hydra.launcher = {"_target_": "somewhere.ClusterLauncher"}
        config.hydra.runtime.choices["hydra/launcher"] = "cluster"
    assert isinstance(launcher_of(config), Cluster)
