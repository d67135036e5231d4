"""What a search found: its table, the found settings as files, pictures of its studies."""

import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from audio_mnist.sweeps import ablation
from audio_mnist.sweeps.outcome import FOUND, JobOutcome
from audio_mnist.sweeps.plan import PlannedJob
from audio_mnist.sweeps.search import GIVEN, Search, best_of
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import AnyTracker


def outcomes(search: Search, jobs: Sequence[JobOutcome]) -> list[JobOutcome]:
    """Return the outcomes of the winners and of the settings as given, as two variants of one recipe."""
    found = []
    for study in search.studies:
        for name, rows in ((ablation.DEFAULT, study.rows), (FOUND, study.winners)):
            for row, given in zip(rows, study.rows, strict=False):
                job, like = jobs[row], jobs[given]
                found.append(
                    JobOutcome(
                        job.overrides,
                        name,
                        like.label,
                        like.label,
                        job.fold,
                        job.run,
                        job.reason,
                        score=job.score,
                        seed=job.seed,
                    )
                )
    return found


def render(
    search: Search, tracker: AnyTracker, jobs: Sequence[JobOutcome], group_of: dict[str, str] | None, unit: str
) -> str:
    """Render a search: the table of both variants, how the trials ended, what was found."""
    text = ablation.render(tracker, outcomes(search, jobs), group_of, unit)
    text = text or "no table: not every run of the winners and of the settings as given finished\n"
    text = text.replace("Each variant out of fold", "Settings as given, and found by the search, out of fold", 1)
    count = {state: sum(study.count()[state] for study in search.studies) for state in search.studies[0].count()}
    text += "trials: " + ", ".join(f"{number} {state}" for state, number in count.items()) + "\n"
    if search.shared:
        text += (
            "optimistic: one study for all folds chose the settings on clips that are scored here (search.per=all)\n"
        )
    for study in search.studies:
        best = best_of(study.study)
        if best is not None:
            settings = " ".join(f"{key}={_shown(value)}" for key, value in best.params.items())
            trials = study.study.get_trials(deepcopy=False)
            given = [t.value for t in trials if t.user_attrs.get(GIVEN) and t.value is not None]
            base = f", as given {given[0]:.4f}" if given else ""
            text += f"{study.name}: inner loss {best.value:.4f}{base}: {settings}\n"
    return text


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def settings_files(search: Search, jobs: Sequence[PlannedJob]) -> dict[str, str]:
    """Return name -> yaml of the found settings, which `train.py -cd FOLDER experiment=NAME` takes.

    There is one for each study's winner, and one for each recipe with the middle of its folds' winners. All clips
    helped to choose the middle, so its own scores on these clips are marked as optimistic.
    """
    files, of_recipe = {}, dict[tuple[str, str], list[dict[str, Any]]]()
    for study in search.studies:
        best = best_of(study.study)
        if best is None:
            continue
        job = jobs[study.rows[0]].job
        name = job.feature if search.shared else f"{job.feature}_fold{job.fold}"
        name += "" if name not in files else f"_{study.found_by[:6]}"
        comment = f"Winner of the study {study.name}: inner loss {best.value:.4f}."
        files[name] = _yaml(best.params | ({"optimistic": True} if search.shared else {"fold": job.fold}), comment)
        of_recipe.setdefault((study.found_by, job.feature), []).append(best.params)
    for (found_by, feature), winners in of_recipe.items():
        if len(winners) > 1:
            middle = {key: _middle([params[key] for params in winners]) for key in winners[0]}
            comment = f"The middle of {len(winners)} folds' winners. It was not scored itself."
            name = feature if feature not in files else f"{feature}_{found_by[:6]}"
            files[name] = _yaml(middle | {"optimistic": True}, comment)
    return files


def command_of(search: Search, folder: Path, name: str) -> str:
    """Return the command that trains with found settings."""
    base = [one for one in search.studies[0].base[0] if not one.startswith(("search", "fold="))]
    return f"python train.py -cd {folder} experiment={name} {shlex.join(base)}"


def _middle(values: list[Any]) -> Any:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return statistics.median_low(values) if numbers else statistics.mode(values)


def _yaml(params: dict[str, Any], comment: str) -> str:
    settings = OmegaConf.create()
    for key, value in params.items():
        OmegaConf.update(settings, key, value)
    return f"# @package _global_\n# {comment}\n{OmegaConf.to_yaml(settings)}"


def log_pictures(search: Search, parent: Run) -> None:
    """Log each study's history, the importance of its keys and its parallel coordinates."""
    import warnings

    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as drawn

    kinds: dict[str, Callable[..., Any]] = {
        "history": drawn.plot_optimization_history,
        "importances": drawn.plot_param_importances,
        "parallel": drawn.plot_parallel_coordinate,
    }
    with warnings.catch_warnings(), plt.rc_context({"backend": "agg"}):
        warnings.simplefilter("ignore")
        for study in search.studies:
            for name, draw in kinds.items():
                try:
                    axes = draw(study.study)
                except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials
                    continue
                figure = axes.figure if hasattr(axes, "figure") else axes[0].figure
                figure.suptitle(study.name)
                folder = study.name.replace("=", "-").replace(" ", "_").replace("/", "-")
                parent.log_figure(figure, f"figures/search/{folder}/{name}.png")
                plt.close(figure)
