"""Results of a sweep: collected, described, and its tracked run closed."""

import contextlib
import json
import shlex
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audio_mnist.data.split import ALL
from audio_mnist.errors import RunError, counted
from audio_mnist.report import plots, tables
from audio_mnist.scoring import measures, mixture
from audio_mnist.sweeps import ablation, learning_curve, search_report, seeds
from audio_mnist.sweeps.outcome import FOUND, JobOutcome, Outcome
from audio_mnist.sweeps.plan import PlannedJob
from audio_mnist.sweeps.search import Search
from audio_mnist.sweeps.state import ERROR_FILE, RESULT_FILE, RUNS_FILE, Sweep
from audio_mnist.system import locks
from audio_mnist.tracking import pages
from audio_mnist.tracking.predictions import classes_of, logged_predictions, probabilities_of
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import AnyTracker, RunRecord, Tracker
from audio_mnist.tracking.uri import without_password, without_user
from audio_mnist.training.job import OPTIMISTIC
from audio_mnist.training.resume import earlier_run

_LISTED = 20  # most unfinished runs that are listed
_DRAWN = 400  # most runs with curves in one picture
_COMPARED = 100  # most runs that a note's address of MLflow's comparison page has room for


def collect(sweep: Sweep, tracker: AnyTracker) -> Outcome:
    """Collect the result of every job; close the runs of killed processes."""
    runs = _tracked_runs(sweep, tracker) if tracker.keeps_runs else _untracked_runs(sweep)
    named = sweep.jobs if sweep.search is None else sweep.jobs[: sweep.search.given]
    labels = tables.member_labels({job.family: _without_seed(job.recipe) for _, job in named})
    titles = {variant: _titles(named, variant) for variant in dict.fromkeys(one.variant for one in named)}
    jobs = []
    for number, planned in enumerate(sweep.jobs):
        job, run = planned.job, runs.get(planned.job.config_fingerprint)
        outcome = JobOutcome(
            planned.overrides,
            planned.variant,
            labels.get(job.family, ""),
            titles[planned.variant].get(job.family, ""),
            job.fold,
            run,
            "" if run is not None and run.status == "FINISHED" else _reason(sweep, number, run),
            job.settings["subset"],
            (len(job.split.train), job.corpus.manifest["speaker"].iloc[job.split.train].nunique()),
            job.settings["score"],
            job.settings["seed"],
        )
        jobs.append(outcome)
    notes = list(sweep.notes)
    if any(job.optimistic for _, job in sweep.jobs):
        notes.append(OPTIMISTIC)
    comparison, figures = _compare(sweep, tracker, jobs)
    if sweep.search is not None:
        jobs = search_report.outcomes(sweep.search, jobs)
    figures |= _training_curves(tracker, jobs)
    plain = len(titles) == 1 and not comparison
    return Outcome(
        tuple(jobs),
        sweep.caption,
        tuple(notes),
        ensemble=_ensembles(tracker, jobs) if plain else {},
        comparison=comparison,
        seeds=seeds.render(tracker, jobs, sweep.group_of, sweep.unit) if plain and tracker.keeps_runs else "",
        figures=figures,
        tracked=tracker.keeps_runs,
        finished_before=sum(job.key in sweep.taken_over for _, job in sweep.jobs if job.kind == "train"),
        seconds=time.monotonic() - sweep.began,
        clips=sum({(job.folds.fingerprint, job.fold): len(job.split.fold) for _, job in sweep.jobs}.values()),
    )


def _compare(sweep: Sweep, tracker: AnyTracker, jobs: list[JobOutcome]) -> tuple[str, dict[str, Figure]]:
    """Compare variants, or subsets of the training clips; "" and no picture for another sweep."""
    if sweep.search is not None and sweep.search.studies[0].winners:
        return search_report.render(sweep.search, tracker, jobs, sweep.group_of, sweep.unit), {}
    variants, subsets = ({getattr(job, key) for job in jobs} for key in ("variant", "subset"))
    if not tracker.keeps_runs or (len(variants) > 1 and len(subsets) > 1):
        return "", {}
    if len(subsets) > 1:
        text, figure = learning_curve.render(tracker, jobs, sweep.group_of, sweep.unit)
        return text, {"learning_curve": figure} if figure is not None else {}
    return (ablation.render(tracker, jobs, sweep.group_of, sweep.unit) if len(variants) > 1 else ""), {}


def _training_curves(tracker: AnyTracker, jobs: list[JobOutcome]) -> dict[str, Figure]:
    """Draw the losses of all finished runs by epoch; nothing for one run, too many, or nets without epochs."""
    runs = {job.run.id: job for job in jobs if job.finished and job.run is not None}
    if not 1 < len(runs) <= _DRAWN:
        return {}
    curves: dict[str, dict[str, list[dict[int, float]]]] = {}
    for run_id, job in runs.items():
        of_label = curves.setdefault(job.label, {})
        for metric in ("train/loss", "fold/loss"):
            of_label.setdefault(metric, []).append(tracker.history(run_id, metric))
    if not any(len(one) > 1 for of in curves.values() for many in of.values() for one in many):
        return {}
    return {"training_curves": plots.training_curves(curves)}


def _titles(jobs: list[PlannedJob], variant: str) -> dict[str, str]:
    recipes = {one.job.family: _without_seed(one.job.recipe) for one in jobs if one.variant == variant}
    return tables.member_labels(recipes)


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "seed"}


def _reason(sweep: Sweep, number: int, run: RunRecord | None) -> str:
    if run is not None:
        return f"{run.status}, run {run.id}: {sweep.died.get(number) or run.tags.get('error', '')}"
    path = sweep.folder_of(number) / ERROR_FILE
    reason = path.read_text() if path.exists() else sweep.died.get(number)
    return f"not run: {reason}" if reason else "not run"


def _tracked_runs(sweep: Sweep, tracker: AnyTracker) -> dict[str, RunRecord]:
    """Return config fingerprint -> run. Not by job key: the code may have been edited meanwhile."""
    found: dict[str, RunRecord] = {}
    # finished before this sweep
    for _, job in sweep.jobs:
        run_id = sweep.taken_over.get(job.key)
        run = tracker.get(run_id) if run_id else None
        if run is not None:
            found[job.config_fingerprint] = run
    # trained by this sweep
    trained = tracker.search(kind="train", parent_id=sweep.run_id)
    trained += tracker.search(kind="trial", parent_id=sweep.run_id) if sweep.search is not None else []
    for run in trained:
        key = run.tags["config_fingerprint"]
        if key not in found or found[key].status != "FINISHED":
            found[key] = _closed(run, sweep, tracker)
    # trained meanwhile by another sweep
    for _, job in sweep.jobs:
        if job.config_fingerprint not in found and sweep.resume_dir is not None:
            run = earlier_run(tracker, job.key, sweep.resume_id)
            if run is not None:
                found[job.config_fingerprint] = run
                sweep.taken_over[job.key] = run.id
    return found


def _closed(run: RunRecord, sweep: Sweep, tracker: AnyTracker) -> RunRecord:
    """End a run as KILLED where its process is gone."""
    if any(sweep.jobs[number].job.key == run.tags["job"] for number in sweep.launcher.living):
        return run
    held = sweep.resume_dir is not None and locks.is_held(sweep.resume_dir, run.tags["job"])
    if run.status != "RUNNING" or held or run.tags.get("resume_id", "") != sweep.resume_id:
        return run
    ended = tracker.open(run.id)
    ended.set_tag("error", "the process was killed")
    ended.end("KILLED")
    return tracker.get(run.id) or run


def _untracked_runs(sweep: Sweep) -> dict[str, RunRecord]:
    found = {}
    for number, (_, job) in enumerate(sweep.jobs):
        path = sweep.folder_of(number) / RESULT_FILE
        if path.exists():
            metrics = json.loads(path.read_text())
            found[job.config_fingerprint] = RunRecord("untracked", "", "FINISHED", None, {}, metrics)
    return found


def _ensembles(tracker: AnyTracker, jobs: list[JobOutcome]) -> dict[int, dict[int, float]]:
    by_seed = {seed: [job for job in jobs if job.seed == seed] for seed in dict.fromkeys(job.seed for job in jobs)}
    found = {seed: fold_ensemble(tracker, some) for seed, some in by_seed.items()}
    return {seed: folds for seed, folds in found.items() if folds}


def fold_ensemble(tracker: AnyTracker, jobs: list[JobOutcome]) -> dict[int, float]:
    """Return the leading score of all labels' logged predictions, per fold that all of them finished.

    Labels are weighed as `ensemble.py` does: each fold with weights of the others.
    """
    labels = {job.label for job in jobs}
    by_fold: dict[int, list[RunRecord]] = {}
    for job in sorted(jobs, key=lambda job: job.label):
        if job.finished and job.run is not None:
            by_fold.setdefault(job.fold, []).append(job.run)
    joint: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # fold -> (labels, n, C) probabilities, (n,) class numbers
    for fold, runs in sorted(by_fold.items()):
        clips = {(run.tags.get("fold_fingerprint"), run.tags.get("corpus_fingerprint")) for run in runs}
        if tracker.keeps_runs and len(runs) == len(labels) > 1 and len(clips) == 1:
            logged = [logged_predictions(tracker, run.id) for run in runs]
            numbers = {name: number for number, name in enumerate(classes_of(logged[0]))}
            truth = logged[0]["label"].map(numbers).to_numpy()
            joint[fold] = np.stack([probabilities_of(table) for table in logged]), truth
    if not joint:
        return {}
    p, truth = (
        np.concatenate(parts, axis=axis) for parts, axis in zip(zip(*joint.values(), strict=True), (1, 0), strict=True)
    )
    fold_of = np.repeat(list(joint), [len(one[1]) for one in joint.values()])
    predicted, measure, classes = mixture.stack(p, truth, fold_of).argmax(axis=1), jobs[0].score, p.shape[2]
    return {
        fold: measures.value(measure, truth[fold_of == fold], predicted[fold_of == fold], classes) for fold in joint
    }


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """Return the metrics of a sweep's tracked run: mean scores over folds by row, its runs, and those that finished."""
    done = len(outcome.jobs) - len(outcome.unfinished)
    metrics = {"sweep/runs": float(len(outcome.jobs)), "sweep/finished": float(done), "sweep/n": float(outcome.clips)}
    rows: dict[str, list[float | str]] = {}
    if outcome.comparison:
        for job in outcome.jobs:
            differs = [part for part in (job.variant, job.subset) if part not in (ablation.DEFAULT, ALL)]
            rows.setdefault(" ".join([job.title, *differs]), []).append(job.cell)
    else:
        rows = {label: list(cells.values()) for label, cells in outcome.rows().items()}
    for label, cells in rows.items():
        values = [cell for cell in cells if isinstance(cell, float)]
        if len(values) == len(cells):
            metrics[f"sweep/{outcome.jobs[0].score}/{tables.metric_name(label)}"] = float(np.mean(values))
    return metrics


def table_text(outcome: Outcome) -> str:
    """Return the sweep's table: of folds, or of variants."""
    if outcome.comparison:
        return outcome.comparison
    folds, count = sorted({job.fold for job in outcome.jobs}), len({job.seed for job in outcome.jobs})
    caption = outcome.caption + (f"; each cell is the mean of {count} seeds" if count > 1 else "")
    return tables.render(tables.fold_table(outcome.rows(), folds), caption) + outcome.seeds


def summary_text(outcome: Outcome, next_steps: list[str]) -> str:
    """Describe a sweep: its table, its notes, what did not finish, what to do next. Pure."""
    lines = [table_text(outcome)]
    lines += [f"note: {note}" for note in outcome.notes]
    done = len(outcome.jobs) - len(outcome.unfinished)
    total = f"{done} of {counted(len(outcome.jobs), 'run')} finished in {outcome.seconds:.0f} s"
    total += f", {outcome.finished_before} of them before" if outcome.finished_before else ""
    lines.append(total + (":" if outcome.unfinished else ""))
    lines += _listed([f"  {job.overrides}: {job.reason}" for job in outcome.unfinished])
    lines += next_steps if outcome.tracked else ["note: not tracked (tracking.uri=null)"]
    return "\n".join(lines)


def _listed(unfinished: list[str]) -> list[str]:
    """List unfinished runs, those with a reason first."""
    ordered = sorted(unfinished, key=lambda line: line.endswith(": not run"))
    more = len(ordered) - _LISTED
    return ordered[:_LISTED] + ([f"  and {more} more"] if more > 0 else [])


def next_steps(sweep: Sweep, tracker: AnyTracker, outcome: Outcome) -> list[str]:
    """Return the commands and addresses that a person needs after a sweep."""
    if not isinstance(tracker, Tracker):
        return []
    lines, uri = [], tracker.uri
    where = "" if uri == "sqlite:///mlruns/mlflow.db" else sweep.uri_override or f"tracking.uri={without_password(uri)}"
    where = f" {shlex.quote(where)}" if where else ""
    where += "" if sweep.experiment == "audio-mnist" else f" tracking.experiment={shlex.quote(sweep.experiment)}"
    if outcome.run_ids:
        lines.append(f"combine them: python ensemble.py 'run_ids=[{','.join(outcome.run_ids)}]'{where}")
    view = pages.save_view(tracker)
    if uri.startswith("sqlite"):
        lines.append(f"compare them: mlflow ui --backend-store-uri {uri}")
        lines.append(f"              then open http://127.0.0.1:5000/{view}")
    elif uri.startswith("http"):
        lines.append(f"compare them: {without_user(uri).rstrip('/')}/{view}")
    return lines


def close(sweep: Sweep, tracker: AnyTracker, outcome: Outcome, text: str) -> None:
    """Log the summary to the sweep's tracked run, end it and release the sweep's lock."""
    parent = tracker.open(sweep.run_id)
    runs = outcome.table().to_csv(index=False)
    parent.log_text(runs, RUNS_FILE)
    parent.log_text(text + "\n", "table.txt")
    parent.log_metrics(metrics_of(outcome))
    parent.note("```\n" + table_text(outcome) + "```")
    for name, figure in outcome.figures.items():
        parent.log_figure(figure, f"figures/{name}.png")
    if sweep.search is not None:
        _close_search(sweep.search, sweep, parent)
    ids = outcome.run_ids
    if 0 < len(ids) <= _COMPARED and isinstance(tracker, Tracker):
        parent.head_note(f"[The {len(ids)} finished runs, compared]({pages.comparison_page(tracker, ids)})")
    parent.set_tag("finished", f"{len(outcome.jobs) - len(outcome.unfinished)} of {len(outcome.jobs)}")
    trials = {planned.job.key for planned in sweep.jobs if planned.job.kind == "trial"}
    parent.set_list("taken_over", [run_id for key, run_id in sweep.taken_over.items() if key not in trials])
    if any(job.variant == FOUND for job in outcome.jobs):
        parent.set_list("found", ids)
    parent.end("FAILED" if outcome.unfinished else "FINISHED")
    sweep.lock.close()
    try:
        (sweep.folder / RUNS_FILE).write_text(runs, encoding="utf-8")
        for name, figure in outcome.figures.items():
            figure.savefig(sweep.folder / f"{name}.png", dpi=150)
            print(f"picture: {sweep.folder / f'{name}.png'}", flush=True)
    except OSError as error:
        raise RunError(f"{sweep.folder / RUNS_FILE}: cannot be written ({error.strerror or error})") from None


def _close_search(search: Search, sweep: Sweep, parent: Run) -> None:
    """Write what a search found, as configs that train.py takes, and its pictures."""
    search_report.log_pictures(search, parent)
    files, further = search_report.settings_files(search, sweep.jobs)
    folder = sweep.folder / FOUND / "experiment"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, text in files.items():
        parent.log_text(text, f"{FOUND}/experiment/{name}.yaml")
    for name, overrides in further.items():
        command = shlex.join(["-cd", str(folder.parent), f"experiment={name}", *overrides])
        print(f"found settings: python train.py {command}", flush=True)
