"""Identity of a run: what two runs share that give the same bits on one machine."""

import functools
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from audio_mnist.config import fingerprint, module_digests, recipe
from audio_mnist.data.decode import recordings_in
from audio_mnist.system import devices

# what a training's bits depend on; a comment in any other file retrains nothing
SOURCES = ("augment", "data", "features", "models", "training", "system/devices.py")
PACKAGES = ("torch", "torchaudio", "pytorch-lightning", "numpy")


def used_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `config.recipe` with the device and the precision that are really used.

    `auto` and `cpu` are the same on a machine without a GPU, and differ on one
    with a GPU.
    """
    given, asked = recipe(settings), settings["trainer"]
    used = {
        "accelerator": devices.kind(asked["accelerator"]),
        "precision": devices.precision(asked["precision"], asked["accelerator"]),
    }
    return given | {"trainer": given["trainer"] | used}


def job_key(settings: dict[str, Any], corpus_fingerprint: str, fold_fingerprint: str) -> str:
    """Identify a run by its settings, clips, noise, folds, device, precision and code."""
    clips = [fingerprint(_noise(settings["augment"])), corpus_fingerprint, fold_fingerprint]
    return fingerprint([used_recipe(settings), *clips, code_version(), module_digests(settings["modules"])])


@functools.cache
def code_version() -> str:
    """Identify the source files and packages that a training's bits depend on."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in SOURCES:
        files = [root / source] if source.endswith(".py") else sorted((root / source).rglob("*.py"))
        for path in files:
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return fingerprint([digest.hexdigest(), [metadata.version(name) for name in PACKAGES]])


def _noise(augment: dict[str, Any]) -> list[list]:
    """Return path, size and time of each recording that `augment.background` plays."""
    noise = augment.get("background") or {}
    if not noise.get("probability") or not noise.get("folder"):
        return []
    stats = [(path, path.stat()) for path in recordings_in(Path(noise["folder"]).expanduser())]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in stats]
