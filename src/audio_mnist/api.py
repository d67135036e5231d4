"""The Python face: what the commands do, called from a notebook. Same checks, same messages."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from audio_mnist.errors import AudioMnistError, ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from audio_mnist.inference.predictor import Predictor

PROJECT = Path(__file__).parents[2]  # the checkout, with conf/ and train.py
Overrides = str | Sequence[str]  # as on the command line, "feature=mfcc fold=1" or ["feature=mfcc", "fold=1"]


def load(model: str = "latest", overrides: Overrides = ()) -> "Predictor":
    """Load a tracked model.

    Args:
        model: "latest", the newest ensemble; the id of an ensemble or a training run; or a registered model,
            "models:/NAME@ALIAS".
        overrides: settings of `predict.py`, such as tracking.uri or modules.

    Returns:
        A predictor, with `predict(waveform, sample_rate_hz)` and `predict_files(...)`.

    Raises:
        AudioMnistError: there is no such model, or it cannot predict.
    """
    from audio_mnist.config import load_modules
    from audio_mnist.inference.load import load_predictor
    from audio_mnist.schema import validate_predict
    from audio_mnist.system import devices
    from audio_mnist.tracking.tracker import Tracker

    cfg = _compose("predict", ["audio=none", *_listed(overrides)], folder="predict")
    cfg.model = model
    cfg = validate_predict(cfg)
    load_modules(cfg.modules)
    devices.set_up_cpu(cfg.threads)
    return load_predictor(Tracker(cfg.tracking.uri, cfg.tracking.experiment), cfg.model)


def train(overrides: Overrides = (), *, config_dir: str | Path | None = None) -> "pd.DataFrame":
    """Train and score one fold in this process, as `python train.py` does.

    Args:
        overrides: settings of `train.py`.
        config_dir: folder of further choices, such as feature/wavelet.yaml.

    Returns:
        One row: run_id, feature, model, fold, accuracy, loss.

    Raises:
        AudioMnistError: something that the caller can fix.
    """
    import pandas as pd

    from audio_mnist.training.run import train as train_one

    search = []
    if config_dir is not None:
        folder = str(Path(config_dir).resolve()).replace("'", "\\'")
        search = [f"hydra.searchpath=['file://{folder}']"]
    cfg = _compose("train", [*_listed(overrides), *search])
    if cfg.trainer.devices != 1:  # such a run starts this script again, once per device
        raise ConfigError(f"trainer.devices={cfg.trainer.devices}: expected 1 here; use python train.py for several")
    trained = train_one(cfg)
    row = {"run_id": trained.run_id, "feature": cfg.feature.name, "model": cfg.model.name, "fold": cfg.fold}
    best = {key.removeprefix("best/"): value for key, value in trained.metrics.items()}
    return pd.DataFrame([row | {key: best[key] for key in ("accuracy", "loss")}])


def sweep(overrides: Overrides, *, config_dir: str | Path | None = None) -> "pd.DataFrame":
    """Train every combination of the values, as `python train.py OVERRIDES -m` does, each in a process.

    Args:
        overrides: settings of `train.py`, each with one value or several.
        config_dir: folder of further choices, such as feature/wavelet.yaml.

    Returns:
        One row per run: run_id, overrides, variant, label, fold, seed, status, accuracy, loss, reason (why it did not
        finish).

    Raises:
        AudioMnistError: something that the caller can fix, before any run was started.
    """
    import pandas as pd

    from audio_mnist.cli import unwritable
    from audio_mnist.sweeps.state import RUNS_FILE

    problem = unwritable(Path("mlruns"))
    if problem is not None:
        raise AudioMnistError(problem)
    folder = Path("mlruns/hydra") / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_sweep"
    choices = [] if config_dir is None else ["--config-dir", str(Path(config_dir).resolve())]
    script = _project() / "train.py"
    command = [sys.executable, str(script), *_listed(overrides), f"hydra.sweep.dir={folder}", "-m", *choices]
    # in a session of its own: Ctrl-C reaches it once, from here
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate()
    except KeyboardInterrupt:  # finished runs are kept
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    runs = folder / RUNS_FILE
    if not runs.exists():
        _, found, reason = f"\n{errors}".rpartition("\nerror: ")
        raise AudioMnistError(reason.strip() if found else f"train.py failed ({process.returncode}):\n{errors.strip()}")
    print(printed)
    return pd.read_csv(runs, dtype={"run_id": str}, keep_default_na=False, na_values={"accuracy": "", "loss": ""})


def ensemble(run_ids: str | Sequence[str] = "latest", overrides: Overrides = ()) -> "pd.DataFrame":
    """Combine runs and score them out of fold, as `python ensemble.py` does.

    Args:
        run_ids: ids of training runs, or "latest": every finished run of the newest sweep.
        overrides: settings of `ensemble.py`.

    Returns:
        One row per label and split: run_id (of the ensemble), split ("out of fold" or "test"), label, accuracy, low,
        high (95% interval), n, balanced_accuracy, macro_f1. Its `attrs["files"]` are the paths of the files that were
        written.

    Raises:
        AudioMnistError: the runs cannot be combined, or the corpus changed.
    """
    import pandas as pd

    from audio_mnist.ensembles.run import ensemble as combine

    cfg = _compose("ensemble", _listed(overrides))
    cfg.run_ids = run_ids if isinstance(run_ids, str) else [str(one) for one in run_ids]
    combined = combine(cfg, Path("mlruns/hydra") / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_ensemble")
    rows = [
        {"run_id": combined.run_id, "split": split, "label": label, "accuracy": s.value}
        | {"low": s.low, "high": s.high, "n": s.n}
        | {measure: by[measure][label].value for measure in ("balanced_accuracy", "macro_f1")}
        for split, by in (("out of fold", combined.evaluation.oof_by), ("test", combined.evaluation.test_by))
        for label, s in by.get("accuracy", {}).items()
    ]
    table = pd.DataFrame(rows)
    table.attrs["files"] = [str(path) for path in combined.files]
    return table


def _listed(overrides: Overrides) -> list[str]:
    return shlex.split(overrides) if isinstance(overrides, str) else list(overrides)


def _project() -> Path:
    if not (PROJECT / "conf").is_dir():
        raise ConfigError(f"{PROJECT / 'conf'}: no such folder; install the project from a checkout, pip install -e .")
    return PROJECT


def _compose(name: str, overrides: list[str], folder: str = "") -> DictConfig:
    """Compose a command's config; errors of Hydra become ours."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    import audio_mnist.sweeps.launchers  # noqa: F401 # conf/ refers to its resolver
    from audio_mnist.cli import explained

    try:
        with initialize_config_dir(str(_project() / "conf" / folder), version_base="1.3"):
            return compose(name, overrides)
    except HydraException as error:
        raise ConfigError(explained(error, _project() / f"{name}.py")) from None
