"""The `search` config: checked, and turned into what Optuna takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from audio_mnist.config import require
from audio_mnist.errors import ConfigError

if TYPE_CHECKING:
    import optuna

_KEYS = ("trials", "per", "hours", "sampler", "pruner", "seed", "storage", "space")
_SEARCHED = ("feature", "model", "augment", "optimizer", "trainer", "views", "class_weights", "sampling")


def check(settings: dict[str, Any], selection: str) -> None:
    """Check the `search` config.

    Raises:
        ConfigError: a key is wrong, epochs are not chosen on an inner part, or Optuna is not installed.
    """
    from audio_mnist.system.devices import require_packages

    for key in settings:
        if key not in _KEYS:
            raise ConfigError(f"unknown config key search.{key}; it has {', '.join(_KEYS)}")
    for key in _KEYS:
        if key not in settings:
            raise ConfigError(f"search.{key} is not set; conf/search/default.yaml has every key")
    require(
        selection == "inner",
        "selection",
        selection,
        "inner with a search: settings are chosen on an inner part, so that the scored fold stays unseen",
    )
    trials, hours = settings["trials"], settings["hours"]
    require(isinstance(trials, int) and trials >= 1, "search.trials", trials, "1 or more")
    timed = hours is None or (isinstance(hours, int | float) and hours > 0)
    require(timed, "search.hours", hours, "above 0, or null")
    for key, values in (("per", ("fold", "all")), ("sampler", ("tpe", "random")), ("pruner", ("none", "median"))):
        require(settings[key] in values, f"search.{key}", settings[key], " or ".join(values))
    space = settings["space"]
    require(isinstance(space, dict) and len(space) > 0, "search.space", space, "at least one key with its values")
    for key in space:
        require(
            str(key).partition(".")[0] in _SEARCHED,
            "search.space",
            key,
            f"keys of {', '.join(_SEARCHED)}; others would move clips between folds",
        )
    require_packages("search", "optuna")


def distribution_of(key: str, value: Any) -> "optuna.distributions.BaseDistribution":
    """Build the distribution that a key of the space describes.

    Raises:
        ConfigError: it describes none.
    """
    from optuna import distributions

    if isinstance(value, list) and value:
        return distributions.CategoricalDistribution(value)
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        whole = all(isinstance(value[end], int) for end in ("low", "high"))
        options: dict[str, Any] = {"log": value.get("log", False)}
        options |= {"step": value["step"]} if value.get("step") is not None else {}
        try:
            if whole:
                return distributions.IntDistribution(value["low"], value["high"], **options)
            return distributions.FloatDistribution(float(value["low"]), float(value["high"]), **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"search.space.{key}={value}: {error}") from None
    raise ConfigError(f"search.space.{key}={value}: expected a list of values, or low and high with log or step")


def build_sampler(name: str, seed: int) -> "optuna.samplers.BaseSampler":
    """Build the sampler of that name."""
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def build_pruner(name: str) -> "optuna.pruners.BasePruner":
    """Build the pruner of that name."""
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=4) if name == "median" else optuna.pruners.NopPruner()


def open_storage(address: str) -> "optuna.storages.BaseStorage":
    """Open the storage of studies at an address, or at the path of a journal.

    Raises:
        ConfigError: it cannot be opened.
    """
    from optuna import storages
    from optuna.storages.journal import JournalFileBackend

    try:
        if "://" in address:
            return storages.RDBStorage(address)
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        return storages.JournalStorage(JournalFileBackend(address))
    except Exception as error:  # whatever the database's driver raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"search.storage={address.rpartition('@')[2]}: cannot be opened ({reason})") from None


def fits(distribution: Any, value: Any) -> bool:
    """Tell whether the settings as given are a point of the space."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    if not isinstance(value, int | float) or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return abs(steps - round(steps)) < 1e-6


def as_override(value: Any) -> str:
    """Write a value as an override."""
    if isinstance(value, str):
        return f"'{value}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def searched(config: DictConfig) -> dict[str, Any]:
    """Return the `search` config of a sweep, {} where there is none."""
    settings = OmegaConf.to_container(config.get("search") or OmegaConf.create({}), resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}
