"""Composed configs: checked against types, made plain, fingerprinted; classes built from their settings."""

import hashlib
import importlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audio_mnist.errors import ConfigError

# keys that change neither a weight nor a prediction of a run
_NOT_IN_RECIPE = ("tracking", "score", "variant", "resume", "resume_dir", "resume_every_s", "modules", "search")
_digests: dict[str, str] = {}  # file or module -> SHA-256 of the text that was imported
_NOT_IN_DATA = ("root", "manifest", "cache_dir", "on_bad_clip", "copies", "similar_speakers", "verify_store")


def typed(schema: type, cfg: DictConfig) -> DictConfig:
    """Merge `cfg` into a dataclass's types and resolve its interpolations.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    try:
        missing = OmegaConf.missing_keys(cfg)  # a merge would fill them
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        if "not in" in reason and "Key" in reason:
            raise ConfigError(f"unknown config key {key}; conf/ lists the keys") from None
        raise ConfigError(f"{key}: {reason}") from None
    if missing:
        raise ConfigError(f"{sorted(missing)[0]} is not set: give it on the command line, KEY=VALUE")
    assert isinstance(merged, DictConfig)
    return merged


def require(condition: bool, key: str, got: object, expected: str) -> None:
    """Raise a `ConfigError` that names the key, the value and what was expected, unless `condition` holds.

    >>> require(0 < 1, "optimizer.lr", 1, "above 0")
    """
    if not condition:
        raise ConfigError(f"{key}={got}: expected {expected}")


class Registered:
    """Base of whatever a config can name.

    A direct subclass, such as FrontEnd, defines an empty `registry`. Its
    subclasses that have a `name` are added to that registry.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        known = cls.registry.get(cls.name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{cls.__module__}.{cls.__qualname__}: its name {cls.name!r} is taken by "
                f"{known.__module__}.{known.__qualname__}; choose another"
            )
        cls.registry[cls.name] = cls


def construct(registry: dict[str, Any], group: str, settings: dict[str, Any], *given: Any, keys: str = "") -> Any:
    """Call `registry[settings["name"]](*given, **the other settings)`.

    The settings of a class are the keyword-only arguments of its constructor
    and, where that takes `**others`, those of its base.

    Args:
        registry: name -> class.
        group: config group that chooses the name.
        settings: the name and the arguments.
        given: positional arguments.
        keys: prefix of the arguments' config keys; the group where it is empty.

    Raises:
        ConfigError: the name is unknown; an argument is unknown, missing or of the wrong type.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    keys = keys or group
    if name not in registry:
        known = ", ".join(sorted(registry))
        raise ConfigError(f"{group}.name={name}: expected one of {known}, or one of your own, modules=[FILE.py]")
    parameters = _settings_of(registry[name])
    for key, value in arguments.items():
        if key not in parameters:
            raise ConfigError(f"unknown config key {keys}.{key}; {group}={name} has {', '.join(parameters) or 'none'}")
        expected = parameters[key].annotation
        if not _is_a(value, expected):
            wanted = expected.__name__ if isinstance(expected, type) else str(expected)
            raise ConfigError(f"{keys}.{key}={value!r}: expected {wanted}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{keys}.{key} is not set: {group}={name} needs it")
    return registry[name](*given, **arguments)


def _settings_of(kind: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            parameters = inspect.signature(vars(base)["__init__"], eval_str=True).parameters.values()
        except NameError:  # an annotation that only a type checker can resolve
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found = found | {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _is_a(value: Any, expected: Any) -> bool:
    origin = typing.get_origin(expected)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, option) for option in typing.get_args(expected))
    if origin is not None:  # list[int]: the items are the class's own business
        return isinstance(value, origin)
    if expected in (int, float):
        wide = (int, float) if expected is float else int
        return isinstance(value, wide) and not isinstance(value, bool)
    return expected is inspect.Parameter.empty or not isinstance(expected, type) or isinstance(value, expected)


def load_modules(modules: Sequence[str]) -> None:
    """Import features, nets, augmentations and corpora from outside the package, so that configs can name them.

    Args:
        modules: Python files, or names of importable modules. A file that changed is imported again.

    Raises:
        ConfigError: a module is not found, fails while it is imported, or changed since then.
    """
    for module in modules:
        try:
            if module.endswith(".py"):
                _load_file(Path(module).expanduser().resolve())
            else:
                importlib.import_module(module)
                digest = _digests.setdefault(module, _digest_of(module))
                if digest != _digest_of(module):
                    raise ConfigError(f"modules: {module} changed since it was imported; restart Python")
        except ConfigError:
            raise
        except Exception as error:  # whatever that code raises
            raise ConfigError(f"modules: {module} cannot be imported ({type(error).__name__}: {error})") from None


def _load_file(path: Path) -> None:
    text = path.read_bytes()
    name, digest = _module_name(path), hashlib.sha256(text).hexdigest()
    if _digests.get(str(path)) == digest:
        return
    loaded = types.ModuleType(name)
    loaded.__file__ = str(path)
    sys.modules[name] = loaded
    # not through the import system, which may take the bytecode of an earlier text
    exec(compile(text, path, "exec"), loaded.__dict__)
    _digests[str(path)] = digest


def _digest_of(module: str) -> str:
    """Return the SHA-256 of a module's files; of a package all files below it."""
    loaded = sys.modules[module]
    folders = [Path(folder) for folder in getattr(loaded, "__path__", [])]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    if not folders:
        files = [Path(str(loaded.__file__))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def module_digests(modules: Sequence[str]) -> list[str]:
    """Return the SHA-256 of the text of each module, as it was imported, for the identity of a run."""
    load_modules(modules)
    return [_digests[str(Path(m).expanduser().resolve()) if m.endswith(".py") else m] for m in modules]


def _module_name(path: Path) -> str:
    return f"audio_mnist_own_{fingerprint(str(path))}_{path.stem}"


def to_plain(cfg: Any) -> dict[str, Any]:
    """Convert to plain dicts, lists, numbers and strings."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def recipe(cfg: dict[str, Any]) -> dict[str, Any]:
    """Keep the settings that a training's result depends on; drop paths, tracking, names and display.

    >>> recipe({"data": {"name": "fsdd", "root": "x"}, "trainer": {"progress_bar": True}, "seed": 1, "resume": True})
    {'data': {'name': 'fsdd'}, 'trainer': {}, 'seed': 1}
    """
    data = {k: v for k, v in cfg["data"].items() if k not in _NOT_IN_DATA}
    trainer = {k: v for k, v in cfg["trainer"].items() if k not in ("progress_bar", "runs_per_gpu", "together")}
    if cfg["trainer"].get("together"):  # null keeps the bits of runs alone
        trainer["together"] = True
    others = {k: v for k, v in cfg.items() if k not in _NOT_IN_RECIPE}
    if others.get("optimizer", {}).get("name", "muon") != "muon":
        others["optimizer"] = {k: v for k, v in others["optimizer"].items() if k != "matrix_lr"}
    if "sha256" in others.get("feature", {}):  # an encoder's file, wherever it lies
        others["feature"] = {k: v for k, v in others["feature"].items() if k != "path"}
    return others | {"data": data, "trainer": trainer}


def fingerprint(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of `value` as canonical JSON.

    >>> fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _user_cache() -> str:
    import pooch

    return str(pooch.os_cache("audio-mnist"))


# conf/ refers to it
OmegaConf.register_new_resolver("audio_mnist.user_cache", _user_cache, replace=True)
