"""A search for settings that does not cheat: Optuna asks, runs of the sweep answer, the scored fold stays unseen.

Each fold has a study. A trial trains as a run with `selection=inner` does, and its score is the loss on that inner
part. The study's winner is then trained and scored on the fold, once, beside the settings as given. Studies are kept,
so the same command continues them.
"""

import logging
import math
import socket
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from audio_mnist.config import fingerprint, require
from audio_mnist.sweeps.plan import Planner
from audio_mnist.sweeps.search_settings import (
    as_override,
    build_pruner,
    build_sampler,
    distribution_of,
    fits,
    open_storage,
)
from audio_mnist.sweeps.state import Sweep
from audio_mnist.tracking.tracker import AnyTracker, RunRecord
from audio_mnist.training.resume import earlier_run

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
PRUNED = "pruned"
_STATES = ("finished", PRUNED, "failed", "killed", "queued again")
_ABSENT = object()
_JOURNAL = "search.journal"
# attributes of a trial: what became of its run, the run's id, who runs it, whether it has the settings as given
_ENDED, _RUN, _OWNER, GIVEN = "ended", "run", "owner", "given"
_LOOK_S = 5.0  # between two looks at the trials of other hosts
_MOST_AT_ONCE = 4  # trials of one study at a time: a sampler that learns must see results


@dataclass
class Study:
    """The search for one fold, or for all folds.

    Attributes:
        name: overrides that tell it from the other studies.
        rows: numbers of the jobs with the settings as given, one per fold.
        base: overrides of each of those jobs, without the search's.
        study: Optuna's study.
        found_by: identity of the search, the same for all folds of a recipe: its winners are one member.
        winners: numbers of the jobs with the found settings, in the order of `rows`.
    """

    name: str
    rows: list[int]
    base: list[list[str]]
    study: "optuna.Study"
    found_by: str
    winners: list[int] = field(default_factory=list)

    def count(self) -> dict[str, int]:
        """Return the number of trials by what became of them."""
        ended = [trial.user_attrs.get(_ENDED, "running") for trial in self.study.get_trials(deepcopy=False)]
        return {state: ended.count(state) for state in _STATES}

    @property
    def done(self) -> int:
        """Number of trials that need no other one in their place."""
        return sum(number for state, number in self.count().items() if state != "queued again")


class Search:
    """A search in the process that started it.

    Args:
        settings: the `search` config.
        sweep: the sweep, with the jobs that have the settings as given.
        base: overrides of those jobs.
        planner: plans further jobs.
        tracker: where the runs are tracked.

    Raises:
        ConfigError: a key is wrong, or Optuna is not installed.
    """

    def __init__(
        self, settings: dict[str, Any], sweep: Sweep, base: list[list[str]], planner: Planner, tracker: AnyTracker
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings, self._sweep, self._planner, self._tracker = settings, sweep, planner, tracker
        self._overrides, self.given = list(base), len(base)  # of all jobs; number of those as given
        self._space = {key: distribution_of(key, value) for key, value in settings["space"].items()}
        self._owner = f"{socket.gethostname()} {sweep.resume_id}"
        self._storage = open_storage(settings["storage"] or str(_journal(sweep)))
        self.studies = self._studies(base)
        self._began, self._waited = time.monotonic(), False

    @property
    def shared(self) -> bool:
        """Whether one study serves all folds, so that its scores are optimistic."""
        return self._settings["per"] == "all"

    @property
    def expected(self) -> int:
        """Number of runs from beginning to end."""
        trials = sum(max(0, self._settings["trials"] - one.done) * len(one.base) for one in self.studies)
        return trials + 2 * self.given

    def run(self, launcher: Any) -> None:
        """Run all trials, then the winners and the settings as given.

        Args:
            launcher: Hydra's launcher of the sweep.
        """
        self._requeue()
        while not self._out_of_time():
            due = [one for one in self.studies if self._missing(one) > 0]
            if due:
                self._round(due, launcher)
            elif not self._wait_for_others():
                break
        log.info("trials are over; the settings as given and the winners are scored")
        launcher.launch(self._overrides[: self.given], initial_job_idx=0)
        winners: list[list[str]] = []
        names: list[str] = []
        for study in self.studies:
            best = best_of(study.study)
            found = [] if best is None else self._settings_of(best.params, "fold")
            winners += [[*base, *found, f"found_by={study.found_by}"] for base in study.base]
            names += [f"winner of {study.name}"] * len(study.base)
        first = self._add(winners, names)
        rows = iter(range(first, first + len(winners)))
        for study in self.studies:
            study.winners = [next(rows) for _ in study.base]
        launcher.launch(winners, initial_job_idx=first)

    def _out_of_time(self) -> bool:
        hours = self._settings["hours"]
        return hours is not None and time.monotonic() - self._began > 3600 * hours

    def _missing(self, one: Study) -> int:
        """Return the number of trials that nobody has begun."""
        return self._settings["trials"] - one.done - len(self._others(one))

    def _others(self, one: Study) -> list["optuna.trial.FrozenTrial"]:
        """Return the trials of a study that other hosts run now."""
        import optuna

        running = one.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return [trial for trial in running if _OWNER in trial.user_attrs and not self._is_own(trial)]

    def _is_own(self, trial: "optuna.trial.FrozenTrial") -> bool:
        """Tell whether this host runs a trial, or ran it before; its name may have changed."""
        if not self._settings["storage"]:  # the sweep's lock lets one process at a time use the journal
            return True
        return str(trial.user_attrs.get(_OWNER, "")).rpartition(" ")[2] == self._owner.rpartition(" ")[2]

    def _wait_for_others(self) -> bool:
        """Wait a little for trials of other hosts: all hosts must see the same winner. False where there are none."""
        hosts = {trial.user_attrs[_OWNER].split()[0] for one in self.studies for trial in self._others(one)}
        if hosts and not self._waited:
            names = ", ".join(sorted(hosts))
            log.info(
                "waiting for trials of %s; where a search was stopped, repeat its command there. "
                "search.hours=0.01 does not wait",
                names,
            )
        self._waited = bool(hosts)
        if hosts:
            time.sleep(_LOOK_S)
        return bool(hosts)

    def _studies(self, base: list[list[str]]) -> list[Study]:
        """Group the jobs as given into studies: by all that differs, or by all but the fold."""
        import optuna

        jobs, together = self._sweep.jobs, dict[str, list[int]]()
        for number, planned in enumerate(jobs):
            key = planned.job.recipe_fingerprint if self.shared else planned.job.config_fingerprint
            together.setdefault(key, []).append(number)
        studies: list[Study] = []
        for rows in together.values():
            first = jobs[rows[0]].job
            fixed = {key: value for key, value in self._settings.items() if key not in ("trials", "hours", "storage")}
            identity = fingerprint([*(jobs[row].job.key for row in rows), fixed])
            study = optuna.create_study(
                storage=self._storage,
                study_name=f"{first.feature} fold {first.fold} {identity}",
                pruner=build_pruner(self._settings["pruner"]),
                load_if_exists=True,
            )
            known = study.get_trials(deepcopy=False)
            study.sampler = build_sampler(self._settings["sampler"], self._seed(len(known), len(studies)))
            given = self._given_values(first.settings)
            if not known and all(fits(self._space[key], value) for key, value in given.items()):
                study.enqueue_trial(given, user_attrs={GIVEN: True}, skip_if_exists=True)
            found_by = fingerprint([first.recipe_fingerprint, fixed])
            studies.append(Study(self._name(rows), rows, [base[row] for row in rows], study, found_by))
        return studies

    def _seed(self, trials: int, studies: int) -> int:
        """Return a seed for a sampler that draws neither its first trials again nor those of another host."""
        seed = self._settings["seed"] + trials + 1000 * studies
        return (seed + zlib.crc32(self._owner.encode())) % 2**32 if self._settings["storage"] else seed

    def _name(self, rows: list[int]) -> str:
        texts = [one.overrides.split() for one in self._sweep.jobs]
        differing = [one for one in texts[rows[0]] if not all(one in other for other in texts)]
        differing = [one for one in differing if not (self.shared and one.startswith("fold="))]
        return " ".join(differing) or ("all folds" if self.shared else f"fold={self._sweep.jobs[rows[0]].job.fold}")

    def _given_values(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings as given, for the keys of the space."""
        whole = OmegaConf.create(settings)
        given = {key: OmegaConf.select(whole, key, default=_ABSENT) for key in self._space}
        wrong = [key for key, value in given.items() if value is _ABSENT or OmegaConf.is_config(value)]
        require(not wrong, "search.space", ", ".join(wrong), "keys of a run that hold one value, such as optimizer.lr")
        return given

    def _requeue(self) -> None:
        """Queue the trials of a search that was interrupted again: their runs resume."""
        import optuna

        for one in self.studies:
            for trial in one.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                if not self._is_own(trial):
                    continue
                optuna.Trial(one.study, trial._trial_id).set_user_attr(_ENDED, "queued again")
                one.study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
                if trial.params:
                    attributes = {GIVEN: True} if trial.user_attrs.get(GIVEN) else None
                    one.study.enqueue_trial(trial.params, user_attrs=attributes)

    def _round(self, due: Sequence[Study], launcher: Any) -> None:
        """Ask each study for trials until all workers are busy, run them, tell the studies."""
        at_once = -(-self._sweep.launcher.side_by_side // sum(len(one.rows) for one in due))
        at_once = max(1, min(at_once, _MOST_AT_ONCE))
        asked = []
        for one in due:
            for _ in range(min(at_once, self._missing(one))):
                asked.append((one, one.study.ask(self._space)))
                asked[-1][1].set_user_attr(_OWNER, self._owner)
        overrides = [[*base, *self._settings_of(trial.params, "inner")] for one, trial in asked for base in one.base]
        names = [f"trial {trial.number} of {one.name}" for one, trial in asked for _ in one.base]
        first = len(self._sweep.jobs)
        ends = np.cumsum([0, *(len(one.base) for one, _ in asked)]) + first
        if self._settings["pruner"] != "none" and not self.shared:  # a trial of several runs has no single course
            for row, (one, trial) in zip(ends.tolist(), asked, strict=False):
                self._sweep.trials[row] = self._pruning(one, trial)
        launcher.launch(overrides, initial_job_idx=self._add(overrides, names))
        for (one, trial), begin, end in zip(asked, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            self._tell(one, trial, range(begin, end))
        done = sum(one.done for one in self.studies)
        log.info("%d of %d trials are over", done, self._settings["trials"] * len(self.studies))

    def _pruning(self, one: Study, trial: "optuna.Trial") -> dict[str, Any]:
        # an address may hold a password; the run has it in its own config
        address = None if self._settings["storage"] else str(_journal(self._sweep))
        names = {"storage": address, "study": one.study.study_name, "pruner": self._settings["pruner"]}
        return names | {"trial": trial._trial_id}

    def _tell(self, one: Study, trial: "optuna.Trial", rows: Sequence[int]) -> None:
        import optuna

        runs = [self._run_of(row) for row in rows]
        ended = next((state for state in map(_ended, runs) if state != "finished"), "finished")
        trial.set_user_attr(_RUN, ", ".join(run.id for run in runs if run is not None))
        trial.set_user_attr(_ENDED, ended)
        if ended == "finished":
            loss = statistics.fmean(run.metrics["best/loss"] for run in runs if run is not None)
            one.study.tell(trial, loss, skip_if_finished=True)
        else:
            states = optuna.trial.TrialState
            one.study.tell(trial, state=states.PRUNED if ended == PRUNED else states.FAIL, skip_if_finished=True)

    def _run_of(self, row: int) -> RunRecord | None:
        job = self._sweep.jobs[row].job
        found = self._tracker.search(kind=job.kind, job=job.key)
        return next((run for run in reversed(found) if run.status == "FINISHED"), found[-1] if found else None)

    def _add(self, overrides: list[list[str]], names: list[str]) -> int:
        """Add jobs to the sweep, those that are finished already among them; return the first one's number."""
        first = len(self._sweep.jobs)
        planned = self._planner.plan(overrides)
        self._sweep.jobs += planned
        self._overrides += overrides
        over = set()
        for number, (_, job) in enumerate(planned, start=first):
            run = earlier_run(self._tracker, job.key, self._sweep.resume_id, job.kind) if job.resumable else None
            if run is not None and run.status == "FINISHED":
                self._sweep.taken_over[job.key] = run.id
                over.add(number)
        self._sweep.write()
        if self._sweep.view is not None:
            self._sweep.view.add(names, [self._sweep.folder / str(first + n) for n in range(len(names))], over)
        return first

    def _settings_of(self, params: dict[str, Any], scored: str) -> list[str]:
        optimistic = ["optimistic=true"] if self.shared and scored == "fold" else []
        return [*(f"{key}={as_override(value)}" for key, value in params.items()), f"scored={scored}", *optimistic]


def _ended(run: RunRecord | None) -> str:
    """Say what became of a trial's run: "finished", "pruned", "failed" or "killed"."""
    if run is None or run.status == "FAILED":
        return "failed"
    if run.status == "FINISHED":
        return "finished" if math.isfinite(run.metrics["best/loss"]) else "failed"
    return PRUNED if run.tags.get("pruned") == "true" else "killed"


def _journal(sweep: Sweep) -> Path:
    return (sweep.resume_dir or sweep.folder) / _JOURNAL


def best_of(study: "optuna.Study") -> "optuna.trial.FrozenTrial | None":
    """Return a study's best finished trial, None where there is none."""
    import optuna

    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return study.best_trial if finished else None
