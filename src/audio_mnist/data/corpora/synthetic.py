"""The built-in corpus: digits spoken by eSpeak NG, no download, 20 kHz as in the competition.

Each clip is one digit by one of 60 voices (an English accent and a voice
variant), with a drawn rate, pitch, pitch range, gain and background noise. The
40 training voices and the 20 test voices share no variant, so a listener takes
them for different people.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from audio_mnist.config import fingerprint, require
from audio_mnist.data import espeak
from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.errors import DataError

VERSION = 1  # raise it whenever the sound of a clip changes


class Synthetic(CorpusReader):
    """Clips made in `data.cache_dir` the first time.

    Args:
        data: the `data` config.
        seed: random seed of every drawn quantity.
        train_clips: multiple of 10, at least 20.
        test_clips: multiple of 10.
        snr_low_db: least signal-to-noise ratio.
        snr_high_db: greatest signal-to-noise ratio; drawn uniformly between the two.
    """

    name = "synthetic"

    def __init__(
        self,
        data: dict[str, Any],
        *,
        seed: int = 0,
        train_clips: int = 400,
        test_clips: int = 200,
        snr_low_db: float = 15.0,
        snr_high_db: float = 40.0,
    ) -> None:
        super().__init__(data)
        for key, value, least in (("train_clips", train_clips, 20), ("test_clips", test_clips, 0)):
            fine = value >= least and value % 10 == 0
            require(fine, f"data.settings.{key}", value, f"a multiple of 10, at least {least}")
        require(snr_low_db <= snr_high_db, "data.settings.snr_low_db", snr_low_db, f"at most snr_high_db={snr_high_db}")
        self.settings = {
            "seed": seed,
            "train_clips": train_clips,
            "test_clips": test_clips,
            "snr_low_db": snr_low_db,
            "snr_high_db": snr_high_db,
        }

    def read(self) -> list[Clip]:
        key = fingerprint([VERSION, self.settings, _library_version()])
        folder = Path(self.data["cache_dir"]) / f"synthetic-{key}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    _make(self.settings, folder)
        except OSError as error:
            raise DataError(f"{folder}: the synthetic corpus cannot be written ({error.strerror or error})") from None
        return [
            Clip(clip["clip_id"], str(folder / clip["clip_id"]), str(clip["digit"]), clip["voice"], clip["split"])
            for clip in espeak.plan(self.settings)
        ]


def _library_version() -> str:
    try:
        return version("espeakng-loader")
    except PackageNotFoundError:
        raise DataError(
            f"data=synthetic needs the eSpeak NG wheel: {espeak.INSTALL}; or choose another data="
        ) from None


def _make(settings: dict[str, Any], folder: Path) -> None:
    """Make the clips in a separate process, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "audio_mnist.data.espeak", json.dumps(settings), str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"{folder}: the synthetic corpus could not be made: {reason}")
    os.replace(partial, folder)
