"""A search for settings: what it refuses, what it never sees, how it continues."""

import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from audio_mnist.cli import _password_in
from audio_mnist.errors import AudioMnistError, PrunedError
from audio_mnist.sweeps import search, search_report, search_settings
from audio_mnist.tracking.tracker import RunRecord, Tracker
from audio_mnist.training.job import plan
from audio_mnist.training.run import train
from tests.conftest import PROJECT, composed, run_command, write_tones
from tests.test_cluster import wait_for
from tests.test_resuming import start

Config = Callable[..., DictConfig]
SEARCH = (
    *("train.py", "data=folder", "data.root=tones", "feature=mel", "fold=0,1", "folds.count=2", "trainer.batch_size=4"),
    *("search=default", "inner_folds=3", "trainer.accelerator=cpu", "resume_every_s=0"),
)


def settings(**changed: object) -> dict:
    return search_settings.searched(composed("search=default")) | changed


# --- what is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": 0}, "search.trials=0: expected 1 or more"),
        ({"per": "feature"}, "search.per=feature: expected fold or all"),
        ({"space": {}}, "search.space={}: expected at least one key"),
        ({"sampler": "grid"}, "search.sampler=grid: expected tpe or random"),
        ({"hours": -1}, "search.hours=-1: expected above 0"),
        ({"hours": "2"}, "search.hours=2: expected above 0"),
        ({"tries": 3}, "unknown config key search.tries"),
        ({"space": {"folds.seed": [0, 1]}}, "search.space=folds.seed: expected keys of feature, model"),
    ],
)
def test_check_refuses(changed: dict, message: str) -> None:
    """Each wrong key has its own message."""
    with pytest.raises(AudioMnistError, match=re.escape(message)):
        search_settings.check(settings(**changed), "inner")


def test_check_names_a_key_that_an_own_file_lacks() -> None:
    """Not a KeyError."""
    own = settings()
    del own["hours"]
    with pytest.raises(AudioMnistError, match=r"search\.hours is not set; conf/search/default\.yaml has every key"):
        search_settings.check(own, "inner")


@pytest.mark.parametrize("selection", ["last", "fold"])
def test_check_refuses_a_selection_that_would_cheat(selection: str) -> None:
    """Only an inner part may decide."""
    with pytest.raises(AudioMnistError, match=f"selection={selection}: expected inner"):
        search_settings.check(settings(), selection)


@pytest.mark.parametrize("values", [3, {"low": 1}, [], {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}])
def test_a_space_that_is_none_is_refused(values: object) -> None:
    """Neither a list nor a range; a range upside down; a logarithm of 0."""
    with pytest.raises(AudioMnistError, match=r"search\.space\.model\.dropout="):
        search_settings.distribution_of("model.dropout", values)


def test_scored_inner_needs_an_inner_part(tone_config: Config) -> None:
    """A run with selection=last has none to be scored on."""
    with pytest.raises(AudioMnistError, match="scored=inner: expected fold; or inner, with selection=inner"):
        plan(tone_config("scored=inner"))


# --- what a trial sees


def test_a_trial_has_no_row_of_the_scored_fold(tone_config: Config, tmp_path: Path) -> None:
    """By construction: neither its index sets nor its tracked predictions hold a clip of the fold."""
    cfg = tone_config("selection=inner", "inner_folds=3", "scored=inner")
    trial, whole = plan(cfg), plan(tone_config("selection=inner", "inner_folds=3"))
    fold = set(whole.split.fold)
    assert fold and trial.key != whole.key
    assert not fold & {*trial.split.train, *trial.split.fold, *trial.split.selection}
    np.testing.assert_array_equal(trial.split.fold, whole.split.selection)
    trained = train(cfg)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert tracker.search(kind="train") == []  # no ensemble takes it for a fold's run
    (run,) = tracker.search(kind="trial")
    assert run.id == trained.run_id
    with tracker.artifact(run.id, "fold_predictions.csv") as path:
        seen = {line.split(",")[0] for line in path.read_text().splitlines()[1:]}
    ids = trial.corpus.manifest["clip_id"].to_numpy()
    assert seen == set(ids[whole.split.selection])


def test_settings_found_by_one_study_for_all_folds_are_optimistic(tone_config: Config) -> None:
    """The mark is part of the run's identity, and of its tag."""
    marked = plan(tone_config("selection=inner", "inner_folds=3", "optimistic=true"))
    assert marked.optimistic and marked.key != plan(tone_config("selection=inner", "inner_folds=3")).key


def test_winners_of_all_folds_are_one_member(tone_config: Config) -> None:
    """Their settings differ by fold; their recipe is the search that found them."""
    first, second, other = (
        plan(tone_config("fold=0", "model.dropout=0.1", "found_by=a")),
        plan(tone_config("fold=1", "model.dropout=0.4", "found_by=a")),
        plan(tone_config("fold=1", "model.dropout=0.4", "found_by=b")),
    )
    assert first.recipe_fingerprint == second.recipe_fingerprint != other.recipe_fingerprint
    assert first.config_fingerprint != second.config_fingerprint


def test_trials_are_told_apart() -> None:
    """Finished, pruned, failed, killed, and a loss that is no number."""
    run = RunRecord("a", "", "FINISHED", None, {}, {"best/loss": 0.5})
    assert search._ended(run) == "finished"
    assert search._ended(replace(run, metrics={"best/loss": float("nan")})) == "failed"
    assert search._ended(replace(run, status="FAILED")) == search._ended(None) == "failed"
    assert search._ended(replace(run, status="KILLED", tags={"pruned": "true"})) == "pruned"
    assert search._ended(replace(run, status="KILLED", tags={"pruned": "false"})) == "killed"


@pytest.mark.parametrize(
    ("values", "inside", "outside"),
    [
        ([0.1, 0.2], 0.2, 0.3),
        ({"low": 0.0, "high": 1.0, "step": 0.25}, 0.5, 0.6),
        ({"low": 1, "high": 4}, 4, 5),
        ({"low": 0.001, "high": 0.1, "log": True}, 0.003, None),
    ],
)
def test_settings_as_given_are_the_first_trial_where_the_space_has_them(
    values: object, inside: object, outside: object
) -> None:
    """Lists, steps, whole numbers, logarithms."""
    distribution = search_settings.distribution_of("key", values)
    assert search_settings.fits(distribution, inside) and not search_settings.fits(distribution, outside)


def test_values_are_written_as_overrides() -> None:
    """Hydra reads each back as it was."""
    values = [0.0031, 3e-05, 3, True, None, "mean_max", "a b"]
    parser = OverridesParser.create()
    assert [parser.parse_override(f"key={search_settings.as_override(value)}").value() for value in values] == values


def test_pruning_ends_a_trial_that_is_worse(tmp_path: Path) -> None:
    """Five trials report 1.0; the sixth reports 9.0 and ends with an error that names the epoch."""
    from audio_mnist.sweeps.pruning import Pruning

    address = str(tmp_path / "search.journal")
    study = optuna.create_study(storage=search_settings.open_storage(address), study_name="s")
    for _ in range(5):
        trial = study.ask()
        trial.report(1.0, 3)
        study.tell(trial, 1.0)

    now = SimpleNamespace(callback_metrics={"selection/loss": 9.0}, current_epoch=3)
    pruning = Pruning(address, "s", study.ask()._trial_id, "median")
    with pytest.raises(PrunedError, match="pruned after epoch 4"):
        pruning.on_train_epoch_end(now, None)  # type: ignore[arg-type]


def test_an_unreachable_storage_is_one_error() -> None:
    """Without a traceback, and without the password."""
    with pytest.raises(AudioMnistError, match=r"search.storage=nowhere:1/x: cannot be opened") as error:
        search_settings.open_storage("postgresql://me:secret@nowhere:1/x")
    assert "secret" not in str(error.value)
    address = "search.storage=postgresql://me:secret@nowhere:1/x"
    typed = _password_in(["search=default", address])
    assert typed is not None and "'search.storage=${oc.env:NAME}'" in typed and "secret" not in typed


def searching(owner: str, studies: list[search.Study], **changed: object) -> search.Search:
    """A search of one host, without a sweep."""
    found = object.__new__(search.Search)
    found._settings, found._owner, found._waited, found.studies = settings(**changed), owner, False, studies
    return found


def test_no_trial_is_drawn_twice() -> None:
    """Neither by a search that continues, nor by two hosts of one storage that start together."""
    drawn = []
    for known, owner in ((0, "a x"), (3, "a x"), (0, "b x")):
        seed = searching(owner, [], storage="studies.journal")._seed(known, 0)
        study = optuna.create_study(sampler=search_settings.build_sampler("random", seed))
        drawn += [study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"] for _ in range(3)]
    assert len(set(drawn)) == 9
    assert searching("a x", [])._seed(2, 1) == searching("b x", [])._seed(2, 1) == 1002  # alone: the same everywhere


def test_a_host_waits_for_the_trials_of_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins none in their place, and it scores no winner before they have ended."""
    monkeypatch.setattr(search, "_LOOK_S", 0.0)
    study = optuna.create_study()
    one = search.Study("fold=0", [0], [[]], study, "")
    here, there = (searching(name, [one], trials=2, storage="studies.journal") for name in ("a x", "b y"))
    trials = [study.ask(), study.ask()]
    for trial, owner in zip(trials, (here._owner, there._owner), strict=True):
        trial.set_user_attr("owner", owner)
    trials[0].set_user_attr("ended", "finished")
    study.tell(trials[0], 1.0)
    with caplog.at_level("INFO"):
        assert here._missing(one) == 0 and here._wait_for_others() and here._wait_for_others()
    assert caplog.text.count("waiting for trials of b;") == 1
    trials[1].set_user_attr("ended", "queued again")  # its search was stopped there
    study.tell(trials[1], state=optuna.trial.TrialState.FAIL)
    assert here._missing(one) == 1 and not here._wait_for_others()

    moved = study.ask()  # without a storage of its own it can only be this host's, whose name has changed
    moved.set_user_attr("owner", "old-name y")
    assert here._missing(one) == 0
    assert searching("a x", [one], trials=2, storage=None)._missing(one) == 1


def test_found_settings_name_their_feature(tmp_path: Path) -> None:
    """Each file and each command trains the recipe that the settings were found for; a file for each fold too."""
    studies, jobs = [], []
    for feature, rate in (("mel", 0.01), ("mfcc", 0.03)):
        for fold in (0, 1):
            study = optuna.create_study(study_name=f"{feature} fold {fold}")
            study.enqueue_trial({"optimizer.lr": rate + fold})
            study.tell(study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(0.001, 9)}), 0.5)
            base = ["data=folder", f"feature={feature}", "data.root=a b", f"fold={fold}", "search.trials=1"]
            base += ["experiment=original", "optimizer.lr=7.0"]  # typed
            studies.append(search.Study(f"fold={fold}", [len(jobs)], [base], study, feature))
            jobs.append(SimpleNamespace(job=SimpleNamespace(feature=feature, fold=fold)))
    given: Any = SimpleNamespace(shared=False, studies=studies)
    files, further = search_report.settings_files(given, jobs)  # type: ignore[arg-type]
    assert sorted(files) == ["mel", "mel_fold0", "mel_fold1", "mfcc", "mfcc_fold0", "mfcc_fold1"]
    assert further == {name: ["data=folder", "data.root=a b"] for name in ("mel", "mfcc")}
    (tmp_path / "experiment").mkdir()
    for name, text in files.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        where = f"hydra.searchpath=[file://{tmp_path}]"
        middle, winner = (
            compose("train", [where, f"experiment={name}", *(further["mfcc"])]) for name in ("mfcc", "mfcc_fold1")
        )
    assert middle.selection == "fold" and middle.data.sample_rate_hz == 20_000  # the typed experiment's
    assert (middle.feature.name, middle.optimizer.lr, middle.optimistic) == ("mfcc", 0.03, True)
    assert (winner.feature.name, winner.optimizer.lr, winner.optimistic, winner.fold) == ("mfcc", 1.03, False, 1)


# --- the whole


@pytest.mark.slow
def test_a_killed_search_continues_and_its_settings_can_be_trained(tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command finishes the trials, once each; more trials continue the studies."""
    write_tones(tmp_path / "tones", clips=10)
    command = (*SEARCH, "search.trials=3", "trainer.max_epochs=6", "-m")
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    killed = start(tmp_path, *command)
    wait_for(lambda: any(run.status == "FINISHED" for run in tracker.search(kind="trial")), "a finished trial")
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    again = run_command(tmp_path, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "trials: 6 finished, 0 pruned, 0 failed, 0 killed" in again.stdout
    trials = tracker.search(kind="trial")
    assert len({run.tags["job"] for run in trials}) == len(trials) == 6
    assert {run.status for run in tracker.search()} == {"FINISHED"}
    assert re.search(r"│ found +│", again.stdout) and re.search(r"│ default +│", again.stdout)
    assert re.search(r"fold=1: inner loss [\d.]+, as given [\d.]+: optimizer.lr=", again.stdout)

    # the ensemble is of the winners
    joined = run_command(tmp_path, "ensemble.py", "run_ids=latest")
    assert joined.returncode == 0 and "2 finished runs" in joined.stdout, joined.stdout + joined.stderr

    # the found settings are a config
    where = re.search(r"found settings: python train.py -cd (\S+) experiment=mel (data=folder .*)", again.stdout)
    assert where, again.stdout
    quick = ("trainer.max_epochs=1", "tracking.uri=null")
    trained = run_command(tmp_path, "train.py", "-cd", where[1], "experiment=mel", *where[2].split(), *quick)
    assert trained.returncode == 0 and "optimistic" in trained.stdout, trained.stdout + trained.stderr

    # two more trials of each study
    more = run_command(tmp_path, *command[:-3], "search.trials=4", *command[-2:])
    assert "trials: 8 finished" in more.stdout, more.stdout + more.stderr
    assert len(tracker.search(kind="trial")) == 8
    sweep = tracker.search(kind="sweep")[-1]
    pictures = {file.path for file in tracker.client.list_artifacts(sweep.id, "figures/search/fold-0")}
    assert "figures/search/fold-0/history.png" in pictures


@pytest.mark.slow
def test_one_study_for_all_folds_says_that_it_is_optimistic(tmp_path: Path) -> None:
    """In the table's note, and in the tag of the winners' runs."""
    write_tones(tmp_path / "tones")
    swept = run_command(tmp_path, *SEARCH, "search.trials=2", "search.per=all", "trainer.max_epochs=2", "-m")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "optimistic: one study for all folds" in swept.stdout
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert sorted(run.tags["optimistic"] for run in tracker.search(kind="train")) == ["false"] * 2 + ["true"] * 2
    joined = run_command(tmp_path, "ensemble.py", "run_ids=latest")
    assert "optimistic" in joined.stdout


def test_search_without_a_sweep_or_a_store_is_refused(tmp_path: Path) -> None:
    """One message each."""
    lost = run_command(tmp_path, "train.py", "search=default", "tracking=none", "fold=0,1", "-m")
    assert lost.returncode == 1 and "a search needs tracked runs" in lost.stderr and "Traceback" not in lost.stderr
    single = run_command(tmp_path, "train.py", "search=default")
    assert single.returncode == 1 and "search needs a sweep: add -m" in single.stderr
    assert "Traceback" not in single.stderr
