"""Composed configs: checked against types, made plain, fingerprinted; classes built from their settings."""

import hashlib
import inspect
import json
import re
import shutil
import sys
import types
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audio_mnist.errors import ConfigError


def typed(schema: type, cfg: DictConfig) -> DictConfig:
    """`cfg` merged into a dataclass's types, interpolations resolved.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    try:
        missing = OmegaConf.missing_keys(cfg)  # a merge would fill them
        typed = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        if "not in" in reason and "Key" in reason:
            raise ConfigError(f"unknown config key {key}; conf/ lists the keys") from None
        raise ConfigError(f"{key}: {reason}") from None
    if missing:
        raise ConfigError(f"{sorted(missing)[0]} is not set: give it on the command line, KEY=VALUE")
    assert isinstance(typed, DictConfig)
    return typed


def require(fine: bool, key: str, got: object, expected: str) -> None:
    """Raises a `ConfigError` that says what was got and expected, unless all is fine."""
    if not fine:
        raise ConfigError(f"{key}={got}: expected {expected}")


def construct(registry: dict[str, type], group: str, settings: dict[str, Any], *given: Any) -> Any:
    """Calls `registry[settings["name"]](*given, **the other settings)`.

    The settings that a class has are the keyword-only arguments of its
    constructor and, where that takes `**others`, those of its base.

    Raises:
        ConfigError: the name is unknown, an argument is unknown, missing or of the wrong type.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in registry:
        raise ConfigError(f"{group}.name={name}: expected one of {', '.join(sorted(registry))}")
    parameters = _settings_of(registry[name])
    for key, value in arguments.items():
        if key not in parameters:
            raise ConfigError(f"unknown config key {group}.{key}; {group}={name} has {', '.join(parameters)}")
        expected = parameters[key].annotation
        if not _is_a(value, expected):
            wanted = expected.__name__ if isinstance(expected, type) else str(expected)
            raise ConfigError(f"{group}.{key}={value!r}: expected {wanted}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{group}.{key} is not set: {group}={name} needs it")
    return registry[name](*given, **arguments)


def _settings_of(kind: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found = found | {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _is_a(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(expected))
    if expected in (int, float):
        wide = (int, float) if expected is float else int
        return isinstance(value, wide) and not isinstance(value, bool)
    return expected is inspect.Parameter.empty or isinstance(value, expected)


def check_settings(settings: dict[str, Any], types_: dict[str, Any]) -> None:
    """Refuses unknown keys and wrong types of `data.settings`.

    Raises:
        ConfigError: names the key.
    """
    for key, value in settings.items():
        if key not in types_:
            raise ConfigError(f"unknown config key data.settings.{key}; this corpus has {', '.join(types_) or 'none'}")
        if not _is_a(value, types_[key]):
            raise ConfigError(
                f"data.settings.{key}={value!r}: expected {getattr(types_[key], '__name__', types_[key])}"
            )


def to_plain(cfg: Any) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def recipe(cfg: dict[str, Any]) -> dict[str, Any]:
    """What a training's result depends on, beside its corpus: paths, tracking, names and display are left out."""
    data = {k: v for k, v in cfg["data"].items() if k not in ("root", "manifest", "cache_dir", "on_bad_clip")}
    trainer = {k: v for k, v in cfg["trainer"].items() if k != "progress_bar"}
    others = {
        k: v for k, v in cfg.items() if k not in ("tracking", "variant", "resume", "resume_dir", "resume_every_s")
    }
    return others | {"data": data, "trainer": trainer}


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def without_password(text: str) -> str:
    """A tracking URI, or a text that names some, as it may be shown and logged."""
    text = re.sub(r"(://[^/:\s]*):\S*@", r"\1:***@", text)  # name:password@
    text = re.sub(r"(https?://)[^/:@\s]+@", r"\1***@", text)  # token@
    return re.sub(r"(?i)((?:password|passwd|pwd|token|odbc_connect)=)[^&\s'\"]+", r"\1***", text)


def without_user(uri: str) -> str:
    """A server's address without a name and password, as a browser opens it."""
    return re.sub(r"://[^/\s]*@", "://", uri)


def _parallel_runs(accelerator: str, threads: int) -> int:
    """Runs of a sweep side by side: one a GPU where they train on one, else as many as have a core a thread."""
    if accelerator != "cpu" and shutil.which("nvidia-smi"):
        import torch  # slow, so only where there may be a GPU

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    if accelerator != "cpu" and sys.platform == "darwin":
        import torch

        if torch.backends.mps.is_available():
            return 1
    import joblib

    return max(1, joblib.cpu_count() // (threads if isinstance(threads, int) and threads > 0 else 1))


def _user_cache() -> str:
    import pooch

    return str(pooch.os_cache("audio-mnist"))


# conf/ refers to these
OmegaConf.register_new_resolver("audio_mnist.parallel_runs", _parallel_runs, replace=True)
OmegaConf.register_new_resolver("audio_mnist.user_cache", _user_cache, replace=True)
