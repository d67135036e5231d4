"""The composed config: what overrides give, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from joblib import cpu_count
from omegaconf import OmegaConf

from audio_mnist.config import fingerprint, recipe, to_plain
from audio_mnist.errors import ConfigError
from audio_mnist.schema import validate_ensemble, validate_train
from audio_mnist.sweeps import launchers  # noqa: F401 # conf/ refers to its resolver
from audio_mnist.tracking.uri import without_password, without_user
from tests.conftest import PROJECT, composed


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        ([], "data.name", "synthetic"),
        ([], "feature.name", "mel"),
        ([], "selection", "last"),
        ([], "tracking.uri", "sqlite:///mlruns/mlflow.db"),
        ([], "folds", {"from": "auto", "count": 5, "group": "speaker", "seed": 0}),
        (["data=fsdd"], "folds.group", "none"),
        (
            ["data=fsdd", "folds.group=speaker", "folds.count=6"],
            "folds",
            {"from": "auto", "count": 6, "group": "speaker", "seed": 0},
        ),
        (["data=fsdd400"], "data.settings", {"train_per_class": 40, "draw_seed": 0}),
        (["data=fsdd400"], "data.name", "fsdd"),
        (["feature=mfcc"], "feature.n_mfcc", 20),
        (["feature=mfcc_original"], "feature.n_mels", 128),
        ([], "variant", "default"),
        ([], "augment.speed.probability", 1.0),
        (["augment=none"], "augment.speed.probability", 0.0),
        (["variant=no_noise"], "augment.noise.probability", 0.0),
        (["variant=no_noise"], "variant", "no_noise"),
        (["variant=bcresnet"], "model.name", "bcresnet"),
        (["experiment=original"], "selection", "fold"),
        (["experiment=original"], "feature.padding", "after_scaling"),
        (["experiment=original"], "augment.placement", {"copies": 5, "redraw": False}),
        (["experiment=original"], "optimizer.name", "adam"),
        (["experiment=original"], "trainer.precision", "32-true"),
        (["model.depth=2"], "model.depth", 2),
        (["trainer=ddp"], "trainer.strategy", "ddp"),
        (["trainer.max_epochs=3"], "trainer.max_epochs", 3),
        (["data=dacon", "data.root=x", "data.settings.allow_outside=true"], "data.settings.allow_outside", True),
        (["data=csv", "data.manifest=clips.csv"], "data.manifest", "clips.csv"),
    ],
)
def test_compose_gives(overrides: list[str], key: str, expected: Any) -> None:
    """One row an override, with the value that it must have."""
    value = OmegaConf.select(validate_train(composed(*overrides)), key)
    assert (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+surprise=1"], "unknown config key surprise"),
        (["+trainer.epochs=1"], "unknown config key trainer.epochs"),
        (["trainer.max_epochs=many"], "trainer.max_epochs: .*'many'.*Integer"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0: expected 1 or more"),
        (["trainer.batch_size=1"], "trainer.batch_size=1"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["trainer.threads=0"], "trainer.threads=0"),
        (["fold=7", "folds.from=deal"], "fold=7 does not exist: folds.count=5, so fold is 0 to 4"),
        (["fold=-1"], "fold=-1 does not exist"),
        (["folds.count=1"], "folds.count=1: expected 2 or more"),
        (["folds.from=csv"], "folds.from=csv: expected auto, column or deal"),
        (["+folds.by=take"], "unknown config key folds.by; it has count, group, seed, from"),
        (["score=f1"], "score=f1: expected one of accuracy, balanced_accuracy, macro_f1"),
        (["class_weights=equal"], "class_weights=equal: expected none or balanced"),
        (["sampling=equal"], "sampling=equal: expected plain or balanced"),
        (["selection=best"], "selection=best: expected one of last, inner, fold"),
        (["inner_folds=1"], "inner_folds=1"),
        (["seed=-1"], "seed=-1"),
        (["folds.seed=-1"], "folds.seed=-1"),
        (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1"),
        (["trainer.gradient_clip_val=0"], "trainer.gradient_clip_val=0"),
        (["data.on_bad_clip=ignore"], "data.on_bad_clip=ignore: expected error or skip"),
        (["data.sample_rate_hz=0"], "data.sample_rate_hz=0"),
        (["data.clip_s=0"], "data.clip_s=0"),
        (["data.min_clip_s=70"], "data.min_clip_s=70"),
        (["optimizer.name=sgd"], "optimizer.name=sgd"),
        (["optimizer.schedule=step"], "optimizer.schedule=step"),
        (["optimizer.lr=0"], "optimizer.lr=0"),
        (["optimizer.ema_decay=1"], "optimizer.ema_decay=1.0: expected between 0 and 1, or null"),
        (["trainer.max_steps=0"], "trainer.max_steps=0"),
        (["trainer.min_epochs=0"], "trainer.min_epochs=0"),
        (["views.placements=0"], "views.placements=0"),
        (["views.speeds=[]"], r"views.speeds=\[\]"),
        (["views.speeds=[1,1]"], r"views.speeds=\[1.0, 1.0\]"),
        (["views.speeds=[9]"], r"views.speeds=\[9.0\]"),
        (["optimizer.warmup_share=1"], "optimizer.warmup_share=1"),
        (["optimizer.label_smoothing=1"], "optimizer.label_smoothing=1"),
        (["trainer.early_stopping_patience=5"], "trainer.early_stopping_patience=5: expected .*selection=inner"),
        (["data=folder"], "data.root is not set"),
        (["data=csv"], "data.manifest is not set"),
    ],
)
def test_validate_train_refuses(overrides: list[str], message: str) -> None:
    """The message names the key, what was got and what was expected."""
    with pytest.raises(ConfigError, match=message):
        validate_train(composed(*overrides))


def test_validate_train_allows_early_stopping_with_inner() -> None:
    """Early stopping may watch the selection set."""
    cfg = validate_train(composed("selection=inner", "trainer.early_stopping_patience=5"))
    assert cfg.trainer.early_stopping_patience == 5


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(["run_ids=latest"], "latest"), (["run_ids=[a,b]"], ["a", "b"]), (["run_ids=abc"], ["abc"])],
)
def test_validate_ensemble_run_ids(overrides: list[str], expected: Any) -> None:
    """latest, a list, or one id."""
    assert validate_ensemble(composed(*overrides, name="ensemble")).run_ids == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"run_ids is not set: give run_ids=latest or run_ids=\[id1,id2,...\]"),
        (["run_ids=[]"], "run_ids="),
        (["run_ids={a: 1}"], "run_ids=.*expected latest or a list"),
        (["run_ids=latest", "combine=median"], "combine=median: expected one of mean, logit_mean, vote"),
        (["run_ids=latest", "calibrate=platt"], "calibrate=platt: expected one of temperature, none"),
        (["run_ids=latest", "baseline=forest"], "baseline=forest: expected svm or null"),
        (["run_ids=latest", "batch_size=0"], "batch_size=0"),
        (["run_ids=latest", "threads=0"], "threads=0"),
    ],
)
def test_validate_ensemble_refuses(overrides: list[str], message: str) -> None:
    """As for training."""
    with pytest.raises(ConfigError, match=message):
        validate_ensemble(composed(*overrides, name="ensemble"))


def test_without_user() -> None:
    assert without_user("https://u:p%40w@host:5000/mlflow") == "https://host:5000/mlflow"
    assert without_user("http://u:p@w@host") == without_user("http://host") == "http://host"
    assert without_user("http://host:5000/@team") == "http://host:5000/@team"


def test_without_password() -> None:
    """Addresses of stores, and messages that name them, as they may be logged."""
    for told, shown in {
        "postgresql://u:p%40w@host:5432/db": "postgresql://u:***@host:5432/db",
        "tracking.uri=mysql://u:p@s/s@host/db": "tracking.uri=mysql://u:***@host/db",
        "postgresql://me@server:secret@host/db": "postgresql://me@server:***@host/db",
        "postgresql://host/db?user=u&password=secret&x=1": "postgresql://host/db?user=u&password=***&x=1",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dsecret": "mssql+pyodbc:///?odbc_connect=***",
        "https://dapi123@host/path": "https://***@host/path",
        "http://u:secret@host:5000/api failed, for u@host": "http://u:***@host:5000/api failed, for u@host",
    }.items():
        assert without_password(told) == shown
    for uri in ("sqlite:///mlruns/mlflow.db", "http://127.0.0.1:5000", "postgresql://u@host/db", "databricks"):
        assert without_password(uri) == uri


def test_runs_side_by_side_have_a_core_for_each_thread() -> None:
    """The launcher's n_jobs on the CPU."""
    for threads in (1, cpu_count(), 10 * cpu_count()):
        overrides = [f"trainer.threads={threads}", "trainer.accelerator=cpu"]
        with initialize_config_dir(str(PROJECT / "conf"), version_base=None):
            launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
        assert launcher.n_jobs == max(1, cpu_count() // threads)


def test_every_variant_changes_one_thing() -> None:
    """Each composes, is named as its file, and makes another recipe than the default."""
    default = fingerprint(recipe(to_plain(validate_train(composed()))))
    names = [path.stem for path in (PROJECT / "conf" / "variant").glob("*.yaml")]
    prints = {}
    for name in names:
        cfg = validate_train(composed(f"variant={name}"))
        assert cfg.variant == name
        prints[name] = fingerprint(recipe(to_plain(cfg)))
    assert prints.pop("default") == default
    assert default not in prints.values() and len(set(prints.values())) == len(prints) >= 18


def test_ablation_sweeps_variants_that_exist() -> None:
    """experiment=ablation names files of conf/variant/, the default first."""
    listed = OmegaConf.load(PROJECT / "conf/experiment/ablation.yaml").hydra.sweeper.params.variant.split(",")
    assert listed[0] == "default"
    assert {path.stem for path in (PROJECT / "conf" / "variant").glob("*.yaml")} == {
        *listed,
        "sub_bands",
        "bcresnet",
        "wide_net",
    }


def test_recipe_leaves_out_where_things_lie() -> None:
    """Paths, tracking and display do not make another recipe; a number does."""
    plain, moved, other = (
        fingerprint(recipe(to_plain(validate_train(composed(*overrides)))))
        for overrides in (
            [],
            ["tracking.uri=sqlite:////tmp/x.db", "data.cache_dir=/tmp/x", "trainer.progress_bar=false"],
            ["optimizer.lr=0.1"],
        )
    )
    assert plain == moved != other


def test_every_yaml_key_has_a_comment() -> None:
    """Every value in conf/ says its unit, range or reason (Hydra's own settings and lists of defaults aside)."""
    silent = []
    for path in sorted((PROJECT / "conf").rglob("*.yaml")):
        if "hydra" in path.relative_to(PROJECT / "conf").parts:
            continue
        for number, line in enumerate(_own_lines(path), 1):
            key, _, value = line.partition(":")
            is_value = value.strip() and not key.lstrip().startswith(("-", "#", "defaults", "name"))
            if is_value and "#" not in line:
                silent.append(f"{path.relative_to(PROJECT)}:{number}: {line}")
    assert silent == []


def _own_lines(path: Path) -> list[str]:
    return path.read_text().split("\nhydra:")[0].splitlines()
