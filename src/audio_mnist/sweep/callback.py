"""What happens once around a sweep: everything checked before its first run, one table after its last.

Hydra's callback runs in the process that starts the sweep. The runs, in
processes of their own, find the sweep's tracked run through a file in the
sweep's folder, which works with any launcher that shares the file system.
"""

import contextlib
import json
import logging
import shlex
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from audio_mnist.config import fingerprint, to_plain, without_password, without_user
from audio_mnist.errors import AudioMnistError
from audio_mnist.schema import validate_train
from audio_mnist.sweep import workers
from audio_mnist.sweep.plan import Job, compose_all, given_overrides, overrides_of, plan
from audio_mnist.system.imports import quick_imports

if TYPE_CHECKING:
    from audio_mnist.tracking.tracker import RunRecord, Tracker
    from audio_mnist.tracking.untracked import Untracked

log = logging.getLogger(__name__)
_FILE = "sweep.json"
_LISTED = 20  # most runs that did not finish, of a sweep that may have hundreds
_COMPARED = 100  # most runs that one address of MLflow's page of comparison has room for in a note
RESULT_FILE = "result.json"  # in a job's folder: metrics of a run that is not tracked
ERROR_FILE = "error.txt"  # in a job's folder: why it ended before it was a tracked run


@dataclass
class _Sweep:
    run_id: str
    uri: str | None
    experiment: str
    jobs: list[Job]
    folder: Path
    caption: str
    notes: list[str] = field(default_factory=list)
    speaker_of: dict[str, str] | None = None  # where folds are by speaker
    taken_over: dict[str, str] = field(default_factory=dict)  # job -> finished run that is not trained again
    resume_dir: Path | None = None
    place: str = ""  # whose runs these are: `resuming.place`
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    starting: threading.Thread | None = None  # its workers
    where: str | None = None  # the override that named the tracking store, as it was given
    began: float = field(default_factory=time.monotonic)


_current: _Sweep | None = None


class SweepCallback(Callback):
    """Prepares a sweep in the process that starts it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks every job, decodes the corpus, creates the database and the parent run.

        Hydra turns a callback's exceptions into warnings, so an error that the
        user can mend ends the process here, before any run was started.
        """
        global _current
        try:
            _current = _start(config, str(kwargs.get("config_name") or "train"))
            if _current.starting is not None:
                _current.starting.join()
        except AudioMnistError as error:
            workers.stop()
            sys.exit(f"error: {error}")
        except Exception:  # a fault of ours, which Hydra would make a warning of
            traceback.print_exc()
            workers.stop()
            sys.exit(1)
        except BaseException:
            workers.stop()
            raise

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """All runs are over and tracked: the workers need not take seconds to end by themselves."""
        if _current is not None and _current.starting is not None:
            workers.stop()


def is_here() -> bool:
    """Whether this process is that of a sweep, rather than a worker's."""
    return _current is not None


def parent_of(sweep_dir: Path) -> str | None:
    """Id of the tracked run that the runs of this sweep hang under."""
    path = sweep_dir / _FILE
    return json.loads(path.read_text())["run_id"] if path.exists() else None


def taken_over(sweep_dir: Path, number: int) -> bool:
    """Whether the sweep's job of that number is a run that was finished before the sweep began."""
    path = sweep_dir / _FILE
    return path.exists() and number in json.loads(path.read_text())["taken_over"]


def finish() -> int:
    """Ends the sweep that this process started: its table, its status, what to do next.

    Returns:
        The number of its runs that did not finish.
    """
    global _current
    sweep, _current = _current, None
    if sweep is None:
        return 0
    from audio_mnist.report import tables as report
    from audio_mnist.sweep import ablation
    from audio_mnist.tracking import pages as mlflow_pages
    from audio_mnist.tracking import tracker as tracking

    tracker = tracking.connect(sweep.uri, sweep.experiment)
    by_config = _runs_of(sweep, tracker)
    labels = report.member_labels({job.recipe_fingerprint: job.recipe for job in sweep.jobs})
    by_variant: dict[str, list[RunRecord]] = {job.variant: [] for job in sweep.jobs}
    recipes_of = {v: {job.recipe_fingerprint: job.recipe for job in sweep.jobs if job.variant == v} for v in by_variant}
    named = {variant: report.member_labels(recipes) for variant, recipes in recipes_of.items()}
    title_of: dict[str, dict[str, str]] = {variant: {} for variant in by_variant}  # variant -> run id -> title
    rows: dict[str, dict[int, float | str]] = {label: {} for label in labels.values()}
    finished, unfinished, incomplete = [], [], set()
    for number, job in enumerate(sweep.jobs):
        found = by_config.get(job.config_fingerprint)
        if found and found.status == "FINISHED":
            rows[labels[job.recipe_fingerprint]][job.fold] = found.metrics["best/accuracy"]
            finished.append(found)
            by_variant[job.variant].append(found)
            title_of[job.variant][found.id] = named[job.variant][job.recipe_fingerprint]
        else:
            rows[labels[job.recipe_fingerprint]][job.fold] = found.status if found else "not run"
            if found:
                reason = f"{found.status}, run {found.id}: {found.tags.get('error', '')}"
            else:
                why = sweep.folder / str(number) / ERROR_FILE
                reason = f"not run: {why.read_text()}" if why.exists() else "not run"
            unfinished.append(f"  {job.overrides}: {reason}")
            incomplete.add(job.variant)
    distinct = list({run.id: run for run in finished}.values())
    if len(rows) > 1 and len(by_variant) == 1 and isinstance(tracker, tracking.Tracker):
        from audio_mnist.ensemble.members import fold_ensemble

        rows[report.ENSEMBLE] = dict(fold_ensemble(tracker, finished, len(labels)))
        if not rows[report.ENSEMBLE]:
            del rows[report.ENSEMBLE]
    folds = sorted({job.fold for job in sweep.jobs})
    notes = list(sweep.notes)
    if any(job.recipe["selection"] == "fold" for job in sweep.jobs):
        notes.append("optimistic: selection=fold chose epochs on the folds scored here")
    compared = ""
    if len(by_variant) > 1 and isinstance(tracker, tracking.Tracker):
        whole = {name: [] if name in incomplete else runs for name, runs in by_variant.items()}
        compared = ablation.render(tracker, whole, title_of, sweep.speaker_of)
    text = [compared or report.render(report.fold_table(rows, folds), sweep.caption)]
    text += [f"note: {note}" for note in notes]
    total = f"{len(finished)} of {len(sweep.jobs)} runs finished in {time.monotonic() - sweep.began:.0f} s"
    before = sum(job.key in sweep.taken_over for job in sweep.jobs)
    total += f", {before} of them before" if before else ""
    text.append(total + (":" if unfinished else ""))
    text += _listed(unfinished)
    if isinstance(tracker, tracking.Tracker):
        text += _next(sweep, distinct, mlflow_pages.save_view(tracker))
    else:
        text.append("note: not tracked (tracking.uri=null)")
    print("\n" + "\n".join(text), flush=True)
    parent = tracker.open(sweep.run_id)
    parent.log_text("\n".join(text) + "\n", "table.txt")
    parent.note("```\n" + text[0] + "```")
    if 0 < len(distinct) <= _COMPARED and isinstance(tracker, tracking.Tracker):
        page = mlflow_pages.comparison(tracker, [run.id for run in distinct])
        parent.head_note(f"[The {len(distinct)} finished runs, compared]({page})")
    parent.set_tag("finished", f"{len(finished)} of {len(sweep.jobs)}")
    parent.set_list("taken_over", list(sweep.taken_over.values()))
    parent.end("FAILED" if unfinished else "FINISHED")
    sweep.lock.close()
    return len(unfinished)


def _runs_of(sweep: _Sweep, tracker: "Tracker | Untracked") -> dict[str, "RunRecord"]:
    """Config fingerprint -> what is known of that run; those whose process was killed are closed."""
    from audio_mnist.tracking import tracker as tracking
    from audio_mnist.training import resume as resuming

    found: dict[str, RunRecord] = {}
    if isinstance(tracker, tracking.Tracker):
        for job in sweep.jobs:
            run_id = sweep.taken_over.get(job.key)
            taken = tracker.get(run_id) if run_id else None
            if taken is not None:
                found[job.config_fingerprint] = taken
        for run in tracker.children(sweep.run_id):
            # not by the job, which would be another one if the code was edited meanwhile
            key = run.tags["config_fingerprint"]
            held = sweep.resume_dir and resuming.is_held(sweep.resume_dir, run.tags["job"])
            if run.status == "RUNNING" and not held and run.tags.get("place", "") == sweep.place:
                ended = tracker.open(run.id)
                ended.set_tag("error", "the process was killed")
                ended.end("KILLED")
                run = tracker.get(run.id) or run
            if key not in found or found[key].status != "FINISHED":
                found[key] = run
        for job in sweep.jobs:  # trained meanwhile by another sweep
            newest = (
                None
                if job.config_fingerprint in found or not sweep.resume_dir
                else tracker.newest(job.key, sweep.place)
            )
            if newest is not None:
                found[job.config_fingerprint] = newest
                sweep.taken_over[job.key] = newest.id
        return found
    for number, job in enumerate(sweep.jobs):
        path = sweep.folder / str(number) / RESULT_FILE
        if path.exists():
            tags = {"config_fingerprint": job.config_fingerprint}
            metrics = json.loads(path.read_text())
            found[job.config_fingerprint] = tracking.RunRecord("untracked", "", "FINISHED", None, tags, metrics)
    return found


def _listed(unfinished: list[str]) -> list[str]:
    """Those first that say why."""
    ordered = sorted(unfinished, key=lambda line: line.endswith(": not run"))
    more = len(ordered) - _LISTED
    return ordered[:_LISTED] + ([f"  and {more} more"] if more > 0 else [])


def _next(sweep: _Sweep, finished: list["RunRecord"], table: str) -> list[str]:
    """What to do with a sweep that is over."""
    text = []
    uri = str(sweep.uri)
    given = sweep.where or f"tracking.uri={without_password(uri)}"
    where = "" if sweep.uri == "sqlite:///mlruns/mlflow.db" else f" {shlex.quote(given)}"
    where += "" if sweep.experiment == "audio-mnist" else f" tracking.experiment={shlex.quote(sweep.experiment)}"
    if finished:
        ids = ",".join(run.id for run in finished)
        text.append(f"combine them: python ensemble.py 'run_ids=[{ids}]'{where}")
    if uri.startswith("sqlite"):
        text.append(f"compare them: mlflow ui --backend-store-uri {sweep.uri}")
        text.append(f"              then open http://127.0.0.1:5000/{table}")
    elif uri.startswith("http"):
        text.append(f"compare them: {without_user(uri).rstrip('/')}/{table}")
    return text


def _start(config: DictConfig, config_name: str) -> _Sweep:
    with quick_imports(first=True):
        from audio_mnist.data.folds import Folds, assign_folds, split_clips
        from audio_mnist.data.prepare import PreparedCorpus, prepare

    overrides = overrides_of(config)
    configs = [validate_train(cfg) for cfg in compose_all(config_name, overrides)]
    plains = [to_plain(cfg) for cfg in configs]
    corpora: dict[str, PreparedCorpus] = {}
    cut: dict[str, Folds] = {}
    of_job: list[tuple[str, PreparedCorpus, Folds]] = []
    scored: dict[tuple[str, int], int] = {}  # (folds, fold) -> clips
    for plain in plains:
        if plain["trainer"]["devices"] > 1:
            raise AudioMnistError(
                f"trainer.devices={plain['trainer']['devices']} in a sweep: a run on several devices starts its own "
                "processes; train it without -m"
            )
        key = fingerprint(plain["data"])
        if key not in corpora:
            corpora[key] = prepare(plain["data"])
        corpus = corpora[key]
        way = fingerprint([key, plain["folds"]])
        if way not in cut:
            cut[way] = assign_folds(corpus.manifest, **plain["folds"])
        folds, fold = cut[way], plain["fold"]
        chosen = {name: plain[name] for name in ("fold", "selection", "inner_folds")}
        scored[folds.fingerprint, fold] = len(split_clips(corpus.manifest, folds, **chosen).fold)
        of_job.append((key, corpus, folds))
    _leave_cores(config, plains)
    # torch takes seconds to import: here and in the workers at once, and not before the clips were found fine
    starting = workers.start(config.hydra.launcher, configs[0].tracking.uri, len(configs))
    with quick_imports(first=True):
        from audio_mnist.report import tables as report
        from audio_mnist.tracking import backend as database
        from audio_mnist.tracking import tracker as tracking
        from audio_mnist.training import dry_run as recipes
        from audio_mnist.training import resume as resuming

        if configs[0].tracking.uri is not None:
            database.import_client(configs[0].tracking.uri)

    keys: list[str] = []
    checked: set[str] = set()
    for plain, (key, corpus, folds) in zip(plains, of_job, strict=True):
        parts = fingerprint([key, plain["feature"], plain["augment"], plain["model"]])
        if parts not in checked:
            recipes.check(plain, corpus)
            checked.add(parts)
        keys.append(resuming.job_key(plain, corpus.fingerprint, folds.fingerprint))
    notes = list(dict.fromkeys(note for folds in cut.values() for note in folds.notes))
    counts = {folds.count for folds in cut.values()}
    jobs = [
        plan(" ".join(map(without_password, o)), plain, key)
        for plain, o, key in zip(plains, overrides, keys, strict=True)
    ]
    first = configs[0]
    resumable = first.resume and first.tracking.uri is not None
    # two variants may be one run, which is then trained once: what one of them sets is what a feature has by default
    once = {(job.config_fingerprint, job.variant if resumable else "") for job in jobs}
    if len(once) < len(jobs):
        raise AudioMnistError(
            "the sweep names the same run twice; give each value once (where the clips lie does not make another run: "
            "sweep one data.root or data.manifest at a time; nor, with resume=false or tracking=none, "
            "do two variants that are the same for a feature)"
        )
    tracker = tracking.connect(first.tracking.uri, first.tracking.experiment)
    sweep_dir = Path(config.hydra.sweep.dir)
    sweep_dir.mkdir(parents=True, exist_ok=True)
    folder = resuming.resume_dir(plains[0]) if resumable else None
    lock = contextlib.ExitStack()
    together = fingerprint(sorted(keys))
    if folder is not None:
        lock.enter_context(resuming.held(folder, together, "another process runs the same sweep"))
    place = resuming.place(plains[0])
    run_id, taken = _parent(tracker, [corpora[key].fingerprint for key in corpora], keys, together, resumable, place)
    parent = tracker.open(run_id)
    parent.set_tag("overrides", " ".join(map(without_password, given_overrides(config))))
    parent.set_tag("place", place)
    parent.set_tag("begun", f"{time.time():.3f}")
    parent.set_tag("corpus", ", ".join(sorted({corpus.name for corpus in corpora.values()})))
    parent.set_list("taken_over", list(taken.values()))
    over = [number for number, key in enumerate(keys) if key in taken]
    (sweep_dir / _FILE).write_text(json.dumps({"run_id": run_id, "taken_over": over}))
    if len(counts) == 1:
        caption = report.fold_caption(sum(scored.values()), len(scored), counts.pop())
    else:  # several ways to cut folds in one sweep
        caption = f"Accuracy on each scored fold, of {' or '.join(map(str, sorted(counts)))} folds"
    corpus = next(iter(corpora.values()))
    log.info(
        "%d runs on %s: %d clips, %d classes, %d Hz, %d at a time; logs in %s",
        *(len(jobs), corpus.name, len(corpus.manifest), len(corpus.class_names), corpus.store.sample_rate_hz),
        *(OmegaConf.select(config, "hydra.launcher.n_jobs", default=1), sweep_dir),
    )
    if taken:
        log.info(
            "%d of them are finished already (same settings, clips, folds and code) and are not trained again; "
            "resume=false trains them all",
            len(over),
        )
    speaker_of = None
    if folds.group == "speaker" and len(corpora) == 1:
        speaker_of = dict(zip(corpus.manifest["clip_id"], corpus.manifest["speaker"], strict=True))
    if starting is not None and len(over) == len(jobs):  # nothing to train: this process passes over all jobs
        workers.stop()
        with read_write(config.hydra):
            config.hydra.launcher.n_jobs = 1
        starting = None
    return _Sweep(
        *(run_id, first.tracking.uri, first.tracking.experiment, jobs, sweep_dir, caption, notes, speaker_of),
        *(taken, folder, place, lock, starting),
        where=next((one for one in given_overrides(config) if one.startswith("tracking.uri=")), None),
    )


def _leave_cores(config: DictConfig, plains: list[dict[str, Any]]) -> None:
    """Fewer runs side by side where trainer.threads is swept, which the launcher's settings do not see."""
    side_by_side, asked = OmegaConf.select(config, "hydra.launcher.n_jobs"), config.trainer.threads
    most = max(plain["trainer"]["threads"] for plain in plains)
    if side_by_side and side_by_side > 1 and most > asked:
        with read_write(config.hydra):
            config.hydra.launcher.n_jobs = max(1, side_by_side * asked // most)


def _parent(
    tracker: "Tracker | Untracked", corpora: list[str], keys: list[str], together: str, resumable: bool, place: str
) -> tuple[str, dict[str, str]]:
    """The run of the sweep, that of the same sweep before where there is one; and which runs are finished."""
    from audio_mnist.tracking import tracker as tracking

    taken: dict[str, str] = {}
    if resumable and isinstance(tracker, tracking.Tracker):
        for corpus in corpora:
            for key, runs in tracker.trained(corpus).items():
                finished = [run.id for run in runs if run.status == "FINISHED"]
                if finished and key in keys:
                    taken[key] = finished[-1]
        before = tracker.sweep_of(together)
        if before is not None and (before.status != "RUNNING" or before.tags.get("place", "") == place):
            return tracker.reopen(before.id, {}).id, taken
    name = "sweep " + time.strftime("%Y-%m-%d %H:%M:%S")
    return tracker.start(name, kind="sweep", tags={"jobs": together, "place": place}, params={}).id, taken
