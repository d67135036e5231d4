"""Hydra's callback: everything is checked before a sweep's first run, and one table ends it.

It runs in the process that starts the sweep. The runs, in other processes, find the sweep's
tracked run through `state`.
"""

import importlib
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from audio_mnist.config import fingerprint
from audio_mnist.errors import AudioMnistError
from audio_mnist.sweeps import (
    cluster,  # noqa: F401 # its launchers register themselves
    compose,
    view,
)
from audio_mnist.sweeps.launchers import Launcher, launcher_of
from audio_mnist.sweeps.state import Sweep
from audio_mnist.system.imports import quick_imports
from audio_mnist.tracking.uri import without_password

if TYPE_CHECKING:
    from audio_mnist.sweeps.plan import Planner
    from audio_mnist.tracking.tracker import AnyTracker

log = logging.getLogger(__name__)
_current: Sweep | None = None


class SweepCallback(Callback):
    """Prepares a sweep in the process that starts it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job, decode the corpus, create the database and the parent run.

        Hydra turns a callback's exceptions into warnings. So an error that the
        user can fix ends the process here, before any run starts.
        """
        global _current
        launcher = Launcher(config)
        try:
            launcher = launcher_of(config)
            _current = _start(config, str(kwargs.get("config_name") or "train"), launcher)
            launcher.wait()
        except AudioMnistError as error:
            launcher.stop()
            sys.exit(f"error: {error}")
        except Exception:  # a fault of ours; Hydra would turn it into a warning
            traceback.print_exc()
            launcher.stop()
            sys.exit(1)
        except BaseException:
            launcher.stop()
            raise

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Stop the workers: all runs are over and tracked, and by themselves they would take seconds."""
        if _current is not None:
            _current.launcher.stop()


def is_here() -> bool:
    """Tell whether this process started a sweep; a worker did not."""
    return _current is not None


def finish() -> int:
    """End the sweep that this process started: its table, its status, what to do next.

    Returns:
        The number of its runs that did not finish.
    """
    global _current
    sweep, _current = _current, None
    if sweep is None:
        return 0
    if sweep.view is not None:
        sweep.view.stop()
    from audio_mnist.sweeps import summary
    from audio_mnist.tracking.tracker import connect

    tracker = connect(sweep.uri, sweep.experiment)
    outcome = summary.collect(sweep, tracker)
    text = summary.summary_text(outcome, summary.next_steps(sweep, tracker, outcome))
    print("\n" + text, flush=True)
    summary.close(sweep, tracker, outcome, text)
    return len(outcome.unfinished)


def _start(config: DictConfig, config_name: str, launcher: Launcher) -> Sweep:
    launcher.check()
    log.info("checking the sweep's settings and clips")
    if view.is_terminal() and config.trainer.progress_bar is not False:
        os.environ[view.VARIABLE] = "1"  # before the workers start
    # clips and folds, without torch
    with quick_imports(first=True):
        from audio_mnist.sweeps import plan
    searching = _check_search(config) if config.get("search") else {}
    planner, overrides = plan.Planner(config_name, launcher.resolve), plan.overrides_of(config)
    jobs = planner.plan(overrides)
    settings = [job.settings for _, job in jobs]
    uri, experiment = settings[0]["tracking"]["uri"], settings[0]["tracking"]["experiment"]

    # importing torch takes seconds: here and in the workers at once, and only after the clips were found fine
    launcher.leave_cores(max(one["trainer"]["threads"] for one in settings))
    launcher.start(uri, len(jobs))
    with quick_imports(first=True):
        from audio_mnist.tracking import backend
        from audio_mnist.tracking.tracker import connect
        from audio_mnist.training import resume

        importlib.import_module("audio_mnist.training.dry_run")
        if uri is not None:
            backend.import_client(uri)

    # whether the jobs can run
    plan.check_parts(jobs)
    plan.check_distinct(jobs)

    # the tracked run, or the unfinished one of the same sweep
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    given = plan.given_overrides(config)
    sweep = Sweep(
        run_id="",
        uri=uri,
        experiment=experiment,
        jobs=jobs,
        folder=folder,
        launcher=launcher,
        caption=plan.caption_of(jobs),
        notes=list(dict.fromkeys(note for _, job in jobs for note in job.notes)),
        group_of=plan.groups_of(jobs),
        unit=jobs[0].job.folds.unit,
        resume_dir=resume.resume_dir(settings[0]) if jobs[0].job.resumable else None,
        resume_id=resume.resume_id(settings[0]),
        uri_override=next((one for one in given if one.startswith("tracking.uri=")), None),
    )
    tracker = connect(uri, experiment)
    if searching:  # before the tracked run: settings may be wrong
        _search(sweep, searching, overrides, planner, tracker)
    _open(sweep, given, plan.swept(plan.swept_overrides(config)), searching, tracker)
    sweep.write()
    _report(sweep)
    launcher.expect(sweep)
    compose.skip_validation()
    if settings[0]["trainer"]["progress_bar"] is not False:
        sweep.view = _view(sweep)
    return sweep


def _view(sweep: Sweep) -> view.View:
    """Show the runs' progress; a job is named by what differs between jobs."""
    overrides = [planned.overrides.split() for planned in sweep.jobs]
    names = [" ".join(one for one in of if not all(one in other for other in overrides)) for of in overrides]
    over = {number for number, (_, job) in enumerate(sweep.jobs) if job.key in sweep.taken_over}
    folders = [sweep.folder / str(number) for number in range(len(sweep.jobs))]
    watched = view.Watched([name or "run" for name in names], folders, set(over), len(over))
    if sweep.search is not None:
        watched.expected = sweep.search.expected
    return view.View(watched, sweep.jobs[0].job.settings["score"], live=view.is_terminal())


def _check_search(config: DictConfig) -> dict[str, Any]:
    from audio_mnist.sweeps import search_settings

    settings = search_settings.searched(config)
    search_settings.check(settings, config.selection)
    if config.tracking.uri is None:
        raise AudioMnistError("tracking.uri=null: a search needs tracked runs, which it finds again")
    return settings


def _search(
    sweep: Sweep, settings: dict[str, Any], overrides: list[list[str]], planner: "Planner", tracker: "AnyTracker"
) -> None:
    """Let a search decide which jobs Hydra's sweeper launches."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    from audio_mnist.sweeps.search import Search

    found = sweep.search = Search(settings, sweep, overrides, planner, tracker)

    def instead(sweeper: BasicSweeper, arguments: list[str]) -> list:  # noqa: ARG001 # Hydra's signature
        try:
            found.run(sweeper.launcher)
        except AudioMnistError as error:
            sys.exit(f"error: {error}")
        return []

    BasicSweeper.sweep = instead  # type: ignore[method-assign, assignment]
    log.info("search: %d studies of %d trials each", len(found.studies), settings["trials"])


def _open(sweep: Sweep, given: list[str], swept: str, searching: dict[str, Any], tracker: "AnyTracker") -> None:
    """Open the sweep's tracked run, and find the runs that are finished already."""
    from audio_mnist.training import resume

    keys = [job.key for _, job in sweep.jobs]
    searched = [{key: value for key, value in searching.items() if key not in ("trials", "hours")}] if searching else []
    together = fingerprint([*sorted(keys), *searched])
    corpora = ", ".join(sorted({job.corpus.name for _, job in sweep.jobs}))
    params = {"corpus": corpora, "swept": swept, "runs": len(sweep.jobs)}
    before = None
    if sweep.resume_dir is not None:
        why = "another process runs the same sweep"
        sweep.lock.enter_context(resume.held(sweep.resume_dir, together, why))
        for corpus in {job.corpus.fingerprint for _, job in sweep.jobs}:
            by_key: dict[str, list] = {}
            for run in tracker.search(kind="train", corpus_fingerprint=corpus):
                by_key.setdefault(run.tags.get("job", ""), []).append(run)
            finished = {key: tracker.usable(by_key[key]) for key in dict.fromkeys(keys) if key in by_key}
            sweep.taken_over |= {key: run.id for key, run in finished.items() if run is not None}
        same = tracker.search(kind="sweep", jobs=together)
        before = same[-1] if same else None
    if before is not None and (before.status != "RUNNING" or before.tags.get("resume_id", "") == sweep.resume_id):
        parent = tracker.reopen(before.id, params)
    else:
        name = "sweep " + time.strftime("%Y-%m-%d %H:%M:%S")
        parent = tracker.start(name, kind="sweep", tags={"jobs": together}, params=params)
    sweep.run_id = parent.id
    parent.set_tag("overrides", " ".join(map(without_password, given)))
    parent.set_tag("resume_id", sweep.resume_id)
    parent.set_tag("begun", f"{time.time():.3f}")
    parent.set_tag("corpus", corpora)
    parent.set_list("taken_over", list(sweep.taken_over.values()))


def _report(sweep: Sweep) -> None:
    from audio_mnist.data.advice import advice

    corpus = sweep.jobs[0].job.corpus
    known = corpus.manifest["speaker"]
    speakers = known[known != ""].nunique()
    log.info(
        "%d runs on %s: %d clips, %d classes, %s%d Hz, %s; logs in %s",
        *(len(sweep.jobs), corpus.name, len(corpus.manifest), len(corpus.class_names)),
        *(f"{speakers} speakers, " if speakers else "", corpus.store.sample_rate_hz),
        *(sweep.launcher.described, sweep.folder),
    )
    if len({one.job.corpus.fingerprint for one in sweep.jobs}) == 1:
        for line in advice(corpus):
            log.info("advice: %s", line)
    over = sum(job.key in sweep.taken_over for _, job in sweep.jobs)
    if over:
        log.info(
            "%d of them are finished already (same settings, clips, folds and code) and are not trained again; "
            "resume=false trains them all",
            over,
        )
