"""What a search found: its table, the found settings as files, pictures of its studies."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from audio_mnist.sweeps import ablation
from audio_mnist.sweeps.outcome import FOUND, JobOutcome
from audio_mnist.sweeps.plan import PlannedJob
from audio_mnist.sweeps.search import GIVEN, Search, Study, best_of
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import AnyTracker

# parts that a config of found settings chooses itself
_CHOICES = tuple(f"{part}=" for part in ("augment", "feature", "model", "optimizer", "trainer", "variant"))


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
        if best is None:
            text += f"{study.name}: no trial finished, so its winner is the settings as given\n"
        else:
            settings = " ".join(f"{key}={_shown(value)}" for key, value in best.params.items())
            trials = study.study.get_trials(deepcopy=False)
            given = [t.value for t in trials if t.user_attrs.get(GIVEN) and t.value is not None]
            base = f", as given {given[0]:.4f}" if given else ""
            text += f"{study.name}: inner loss {best.value:.4f}{base}: {settings}\n"
    return text


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def settings_files(search: Search, jobs: Sequence[PlannedJob]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Write the found settings as configs, which `train.py -cd FOLDER experiment=NAME` takes.

    There is one for each study's winner, and one for each recipe with the middle of its folds' winners. All clips
    helped to choose the middle, so its own scores on these clips are marked as optimistic.

    Returns:
        Name -> yaml of each config; and for one config of each recipe, name -> further overrides of its command.
    """
    files, further = dict[str, str](), dict[str, list[str]]()
    recipes: dict[str, list[tuple[Study, dict[str, Any]]]] = {}
    for study in search.studies:
        best = best_of(study.study)
        if best is not None:
            recipes.setdefault(study.found_by, []).append((study, best.params))
    for found_by, winners in recipes.items():
        feature, name = jobs[winners[0][0].rows[0]].job.feature, ""
        for study, params in winners:
            fold = jobs[study.rows[0]].job.fold
            name = _free(feature if search.shared else f"{feature}_fold{fold}", found_by, files)
            comment = f"Winner of the study {study.name}: inner loss {study.study.best_value:.4f}."
            scope = {"optimistic": True} if search.shared else {"fold": fold}
            files[name] = _yaml(params | scope, study.base[0], comment)
        base = winners[0][0].base[0]
        if len(winners) > 1:
            name = _free(feature, found_by, files)
            middle = {key: _middle([params[key] for _, params in winners]) for key in winners[0][1]}
            comment = f"The middle of {len(winners)} folds' winners. It was not scored itself."
            files[name] = _yaml(middle | {"optimistic": True}, base, comment)
        found = tuple(f"{key}=" for key in winners[0][1])  # a typed value would win over the file's
        further[name] = [
            one for one in base if not one.startswith((*_CHOICES, *found, "experiment=", "search", "fold="))
        ]
    return files, further


def _free(name: str, found_by: str, files: Mapping[str, str]) -> str:
    return f"{name}_{found_by[:6]}" if name in files else name


def _middle(values: list[Any]) -> Any:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return statistics.median_low(values) if numbers else statistics.mode(values)


def _yaml(params: dict[str, Any], base: Sequence[str], comment: str) -> str:
    chosen = [one.partition("=") for one in base if one.startswith(_CHOICES)]
    experiment = [one.partition("=")[2] for one in base if one.startswith("experiment=")]
    defaults = [*experiment, *({f"override /{key}": choice} for key, _, choice in chosen)]
    settings = OmegaConf.create({"defaults": defaults} if defaults else {})
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
