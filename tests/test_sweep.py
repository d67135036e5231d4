"""A sweep before its first run and after its last: what its jobs are, what it says of them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from audio_mnist.errors import AudioMnistError, ConfigError
from audio_mnist.schema import validate_train
from audio_mnist.sweeps.compose import SharingLoader, compose_all
from audio_mnist.sweeps.outcome import JobOutcome, Outcome
from audio_mnist.sweeps.plan import PlannedJob, check_distinct, groups_of
from audio_mnist.sweeps.summary import summary_text
from audio_mnist.tracking.tracker import RunRecord
from audio_mnist.training import job as jobs
from tests.conftest import PROJECT

Config = Callable[..., DictConfig]


def test_compose_all_gives_what_hydra_composes() -> None:
    """Job by job, wherever the fold stands, though folds of one kind are composed once."""
    overrides = [
        [f"feature={feature}", f"fold={fold}", f"variant={variant}", "data=fsdd400", *fixed]
        for variant, fixed in (("default", []), ("deltas", ["experiment=original", "folds.count=2"]))
        for feature in ("mel", "mfcc")
        for fold in range(2)
    ]
    overrides += [["fold=1", "seed=3"], ["seed=3"]]
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        ours = list(compose_all("train", overrides))
        assert ours == [compose("train", own) for own in overrides]
        assert [cfg.fold for cfg in ours] == [0, 1, 0, 1, 0, 1, 0, 1, 1, 0]
        (wrong,) = compose_all("train", [["fold=first"]])
        with pytest.raises(ConfigError, match="fold: Value 'first'"):
            validate_train(wrong)
        with pytest.raises(AudioMnistError, match="nonsense"):
            list(compose_all("train", [["nonsense=1", "fold=0"]]))
        features = [[f"feature={name}", "feature.n_mels=64", "fold=0"] for name in ("mel", "gammatone")]
        expected = r"a key that this job does not have: feature=gammatone .* by themselves"
        with pytest.raises(AudioMnistError, match=expected):
            list(compose_all("train", features))


def test_worker_shares_a_composition_and_gets_what_hydra_composes() -> None:
    """With the overrides and the folder name of each job; one recipe is composed once for all its folds and seeds."""
    jobs = [["feature=mel", f"fold={fold}", f"seed={seed}", "data.clip_s=2"] for fold in (0, 3) for seed in (0, 12)]
    jobs += [["feature=mfcc", "fold=1", "seed=1", "data.clip_s=2"], ["feature=mel", "fold=first", "seed=1"]]
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        given = ["feature=mel,mfcc", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
        master = hydra.config_loader.load_configuration("train", given, run_mode=RunMode.MULTIRUN)
        composed: list[list[str]] = []

        class Counted:  # Hydra's loader
            def load_sweep_config(self, config: DictConfig, own: list[str]) -> DictConfig:
                composed.append(own)
                return hydra.config_loader.load_sweep_config(config, own)

        for own in jobs:
            cfg = SharingLoader(Counted()).load_sweep_config(master, own)
            assert cfg == hydra.config_loader.load_sweep_config(master, own)
            cfg.hydra.job.num = 7  # as Hydra does: the next job must not see it
        assert composed == [jobs[0], jobs[4], jobs[5]]


# --- jobs


def test_job_is_planned_without_torch_and_knows_its_sets(tone_config: Config) -> None:
    """Settings are plain, clips are decoded, the scored fold is set apart, paths are absolute."""
    job = jobs.plan(tone_config("fold=1", "seed=3"))
    assert (job.fold, job.feature, job.optimistic, job.resumable) == (1, "mel", False, True)
    assert len(job.split.train) + len(job.split.fold) == len(job.corpus.manifest) == 24
    assert set(job.folds.fold_of[job.split.fold]) == {1}
    assert Path(job.settings["data"]["root"]).is_absolute()
    assert job.settings["seed"] == 3 and "root" not in job.recipe["data"]


def test_job_key_depends_on_what_bits_depend_on(tone_config: Config, tmp_path: Path) -> None:
    """Another fold, seed or clip is another job; a moved folder, another variant name or progress bar is not."""
    job = jobs.plan(tone_config())
    moved = shutil.copytree(job.settings["data"]["root"], tmp_path / "moved")
    for same in ([f"data.root={moved}"], ["variant=default"], ["trainer.progress_bar=false"], ["resume_every_s=1"]):
        assert jobs.plan(tone_config(*same)).key == job.key, same
    for other in (["fold=1"], ["seed=1"], ["folds.seed=1"], ["feature=mfcc"], ["trainer.threads=2"]):
        assert jobs.plan(tone_config(*other)).key != job.key, other
    (moved / "low" / "s0_0.wav").unlink()
    assert jobs.plan(tone_config(f"data.root={moved}")).key != job.key


def test_job_is_the_same_however_the_device_is_named(tone_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU accelerator=auto is accelerator=cpu. On a GPU it is another job, which never resumes this one."""
    auto, cpu = (jobs.plan(tone_config(f"trainer.accelerator={name}")) for name in ("auto", "cpu"))
    assert auto.device == cpu.device == "cpu" and auto.key == cpu.key
    assert auto.recipe_fingerprint == cpu.recipe_fingerprint  # one row, and one member of an ensemble
    exact, rounded = (jobs.plan(tone_config(f"trainer.precision={name}")) for name in ("32-true", "bf16-mixed"))
    assert exact.key != rounded.key and cpu.key in (exact.key, rounded.key)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: cpu.precision == "bf16-mixed")
    gpu = jobs.plan(tone_config("trainer.accelerator=auto"))
    assert gpu.device == "cuda" and gpu.precision == cpu.precision and gpu.key != cpu.key


def test_check_distinct_names_the_jobs_that_are_one_run(tone_config: Config, tmp_path: Path) -> None:
    """The message names both and what to remove; two variants may be one run where finished runs are kept."""
    first, second = (PlannedJob(f"fold={fold}", jobs.plan(tone_config(f"fold={fold}"))) for fold in (0, 1))
    check_distinct([first, second])
    with pytest.raises(AudioMnistError, match=r"jobs 0 and 2 have identical settings: fold=0. Remove one.$"):
        check_distinct([first, second, first])
    shutil.copytree(first.job.settings["data"]["root"], tmp_path / "moved")
    (tmp_path / "moved" / "low" / "s0_0.wav").unlink()
    moved = PlannedJob("data.root=moved", jobs.plan(tone_config(f"data.root={tmp_path}/moved", "fold=0")))
    assert moved.job.key != first.job.key
    with pytest.raises(AudioMnistError, match=r"data.root=moved. Remove one. Sweep one data.root or data.manifest"):
        check_distinct([first, moved])
    settings = first.job.settings | {"variant": "other"}
    check_distinct([first, PlannedJob("variant=other", replace(first.job, settings=settings))])
    anew = [PlannedJob("x", replace(first.job, settings=first.job.settings | own)) for own in ({}, settings)]
    anew = [one._replace(job=replace(one.job, settings=one.job.settings | {"resume": False})) for one in anew]
    with pytest.raises(AudioMnistError, match="identical settings"):
        check_distinct(anew)


def test_groups_of_is_for_sweeps_that_all_cut_by_group(tone_config: Config) -> None:
    """One job with folds.group=none among them, in any place, and no speakers are resampled."""
    pattern = "data.settings.speaker_pattern='(?P<speaker>s.)_'"
    grouped, single = (PlannedJob("", jobs.plan(tone_config(pattern, f"folds.group={g}"))) for g in ("auto", "none"))
    groups = groups_of([grouped, grouped])
    assert groups is not None and groups["low/s1_1.wav"] == "s1" and len(groups) == 24
    assert groups_of([grouped, single]) is None and groups_of([single, grouped]) is None


# --- outcomes


def outcome_of(*accuracies: float | None) -> Outcome:
    """A sweep of one feature whose folds have these accuracies, None where the run failed."""
    outcomes = []
    for fold, accuracy in enumerate(accuracies):
        status = "FAILED" if accuracy is None else "FINISHED"
        metrics = {} if accuracy is None else {"best/accuracy": accuracy}
        run = RunRecord(f"run{fold}", "", status, None, {}, metrics)
        reason = f"FAILED, run run{fold}: ValueError: NaN" if accuracy is None else ""
        outcomes.append(JobOutcome(f"fold={fold}", "default", "Mel", "Mel", fold, run, reason))
    return Outcome(tuple(outcomes), "n = 24 clips", notes=("folds share speakers",), seconds=12.3, finished_before=1)


def test_summary_text_has_table_notes_totals_and_next_steps() -> None:
    """Everything that a person reads after a sweep, from values alone."""
    text = summary_text(outcome_of(0.5, 1.0), ["combine them: COMMAND"])
    assert "│ Mel │ 0.5000 │ 1.0000 │ 0.7500 ± 0.3536 │" in text
    lines = text.splitlines()
    assert lines[-3:] == [
        "note: folds share speakers",
        "2 of 2 runs finished in 12 s, 1 of them before",
        "combine them: COMMAND",
    ]


def test_summary_text_says_what_did_not_finish_and_why() -> None:
    """A failed fold stands in the table and below it, and counts for the exit status."""
    outcome = outcome_of(0.5, None)
    text = summary_text(outcome, [])
    assert "│ FAILED │" in text and "1 of 2 runs finished in 12 s, 1 of them before:" in text
    assert text.endswith("  fold=1: FAILED, run run1: ValueError: NaN")
    assert len(outcome.unfinished) == 1 and outcome.run_ids == ["run0"]


def test_summary_text_adds_the_ensembles_row() -> None:
    """Where all features finished a fold."""
    text = summary_text(replace(outcome_of(0.5, 1.0), ensemble={0: {0: 0.75, 1: 1.0}}), [])
    assert "│ Ensemble │ 0.7500 │ 1.0000 │" in text


def test_summary_text_has_every_reason_and_not_hundreds_of_lines() -> None:
    """Runs that failed come before those that were never begun, of which the rest is a number."""
    idle = [JobOutcome(f"seed={n}", "default", "Mel", "Mel", 0, None, "not run") for n in range(203)]
    failed = [
        JobOutcome("fold=3", "default", "Mel", "Mel", 0, None, "FAILED, run 1: ValueError: NaN"),
        JobOutcome("fold=9", "default", "Mel", "Mel", 0, None, "not run: no such device"),
    ]
    text = summary_text(Outcome((*idle[:3], *failed, *idle[3:]), ""), [])
    shown = text.splitlines()[-21:]
    assert shown[:2] == ["  fold=3: FAILED, run 1: ValueError: NaN", "  fold=9: not run: no such device"]
    assert shown[2] == "  seed=0: not run" and shown[-1] == "  and 185 more"
