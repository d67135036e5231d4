"""Results of a sweep: collected, described, and its tracked run closed."""

import json
import shlex
import time

import numpy as np
from matplotlib.figure import Figure

from audio_mnist.errors import RunError
from audio_mnist.report import tables
from audio_mnist.scoring import mixture
from audio_mnist.sweeps import ablation, learning_curve
from audio_mnist.sweeps.outcome import JobOutcome, Outcome
from audio_mnist.sweeps.plan import PlannedJob
from audio_mnist.sweeps.state import ERROR_FILE, RESULT_FILE, RUNS_FILE, Sweep
from audio_mnist.system import locks
from audio_mnist.tracking import pages
from audio_mnist.tracking.predictions import classes_of, logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import AnyTracker, RunRecord, Tracker
from audio_mnist.tracking.uri import without_password, without_user
from audio_mnist.training.resume import earlier_run

_LISTED = 20  # most unfinished runs that are listed
_COMPARED = 100  # most runs that a note's address of MLflow's comparison page has room for


def collect(sweep: Sweep, tracker: AnyTracker) -> Outcome:
    """Collect the result of every job; close the runs of killed processes."""
    runs = _tracked_runs(sweep, tracker) if tracker.keeps_runs else _untracked_runs(sweep)
    labels = tables.member_labels({job.recipe_fingerprint: job.recipe for _, job in sweep.jobs})
    titles = {variant: _titles(sweep.jobs, variant) for variant in dict.fromkeys(one.variant for one in sweep.jobs)}
    jobs = []
    for number, planned in enumerate(sweep.jobs):
        job, run = planned.job, runs.get(planned.job.config_fingerprint)
        outcome = JobOutcome(
            planned.overrides,
            planned.variant,
            labels[job.recipe_fingerprint],
            titles[planned.variant][job.recipe_fingerprint],
            job.fold,
            run,
            "" if run is not None and run.status == "FINISHED" else _reason(sweep, number, run),
            job.settings["subset"],
            (len(job.split.train), job.corpus.manifest["speaker"].iloc[job.split.train].nunique()),
        )
        jobs.append(outcome)
    notes = list(sweep.notes)
    if any(job.optimistic for _, job in sweep.jobs):
        notes.append("optimistic: selection=fold chose epochs on the folds scored here")
    comparison, figures = _compare(sweep, tracker, jobs)
    return Outcome(
        tuple(jobs),
        sweep.caption,
        tuple(notes),
        ensemble=fold_ensemble(tracker, jobs) if len(titles) == 1 and not comparison else {},
        comparison=comparison,
        figures=figures,
        tracked=tracker.keeps_runs,
        finished_before=sum(job.key in sweep.taken_over for _, job in sweep.jobs),
        seconds=time.monotonic() - sweep.began,
    )


def _compare(sweep: Sweep, tracker: AnyTracker, jobs: list[JobOutcome]) -> tuple[str, dict[str, Figure]]:
    """Compare variants, or subsets of the training clips; "" and no picture for another sweep."""
    variants, subsets = ({getattr(job, key) for job in jobs} for key in ("variant", "subset"))
    if not tracker.keeps_runs or (len(variants) > 1 and len(subsets) > 1):
        return "", {}
    if len(subsets) > 1:
        text, figure = learning_curve.render(tracker, jobs, sweep.group_of)
        return text, {"learning_curve": figure} if figure is not None else {}
    return (ablation.render(tracker, jobs, sweep.group_of) if len(variants) > 1 else ""), {}


def _titles(jobs: list[PlannedJob], variant: str) -> dict[str, str]:
    recipes = {one.job.recipe_fingerprint: one.job.recipe for one in jobs if one.variant == variant}
    return tables.member_labels(recipes)


def _reason(sweep: Sweep, number: int, run: RunRecord | None) -> str:
    if run is not None:
        return f"{run.status}, run {run.id}: {run.tags.get('error', '')}"
    path = sweep.folder / str(number) / ERROR_FILE
    return f"not run: {path.read_text()}" if path.exists() else "not run"


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
    for run in tracker.search(kind="train", parent_id=sweep.run_id):
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
        path = sweep.folder / str(number) / RESULT_FILE
        if path.exists():
            metrics = json.loads(path.read_text())
            found[job.config_fingerprint] = RunRecord("untracked", "", "FINISHED", None, {}, metrics)
    return found


def fold_ensemble(tracker: AnyTracker, jobs: list[JobOutcome]) -> dict[int, float]:
    """Return the accuracy of the mean of all labels' logged predictions, per fold that all of them finished."""
    labels = {job.label for job in jobs}
    by_fold: dict[int, list[RunRecord]] = {}
    for job in jobs:
        if job.finished and job.run is not None:
            by_fold.setdefault(job.fold, []).append(job.run)
    accuracies = {}
    for fold, runs in sorted(by_fold.items()):
        clips = {(run.tags.get("fold_fingerprint"), run.tags.get("corpus_fingerprint")) for run in runs}
        if tracker.keeps_runs and len(runs) == len(labels) > 1 and len(clips) == 1:
            logged = [logged_predictions(tracker, run.id) for run in runs]
            p = mixture.combine(np.stack([probabilities_of(table) for table in logged]), "mean")
            names = np.array(classes_of(logged[0]))
            accuracies[fold] = float((names[p.argmax(axis=1)] == logged[0]["label"].to_numpy()).mean())
    return accuracies


def table_text(outcome: Outcome) -> str:
    """Return the sweep's table: of folds, or of variants."""
    if outcome.comparison:
        return outcome.comparison
    rows: dict[str, dict[int, float | str]] = {}
    for job in outcome.jobs:
        rows.setdefault(job.label, {})[job.fold] = job.cell
    if outcome.ensemble:
        rows[tables.ENSEMBLE] = dict(outcome.ensemble)
    return tables.render(tables.fold_table(rows, sorted({job.fold for job in outcome.jobs})), outcome.caption)


def summary_text(outcome: Outcome, next_steps: list[str]) -> str:
    """Describe a sweep: its table, its notes, what did not finish, what to do next. Pure."""
    lines = [table_text(outcome)]
    lines += [f"note: {note}" for note in outcome.notes]
    done = len(outcome.jobs) - len(outcome.unfinished)
    total = f"{done} of {len(outcome.jobs)} runs finished in {outcome.seconds:.0f} s"
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
    parent.note("```\n" + table_text(outcome) + "```")
    for name, figure in outcome.figures.items():
        parent.log_figure(figure, f"figures/{name}.png")
    ids = outcome.run_ids
    if 0 < len(ids) <= _COMPARED and isinstance(tracker, Tracker):
        parent.head_note(f"[The {len(ids)} finished runs, compared]({pages.comparison_page(tracker, ids)})")
    parent.set_tag("finished", f"{len(outcome.jobs) - len(outcome.unfinished)} of {len(outcome.jobs)}")
    parent.set_list("taken_over", list(sweep.taken_over.values()))
    parent.end("FAILED" if outcome.unfinished else "FINISHED")
    sweep.lock.close()
    try:
        (sweep.folder / RUNS_FILE).write_text(runs, encoding="utf-8")
        for name, figure in outcome.figures.items():
            figure.savefig(sweep.folder / f"{name}.png", dpi=150)
            print(f"picture: {sweep.folder / f'{name}.png'}", flush=True)
    except OSError as error:
        raise RunError(f"{sweep.folder / RUNS_FILE}: cannot be written ({error.strerror or error})") from None
