"""The embedded corpus: spoken digits by eSpeak NG, no download, 20 kHz as in the competition.

Each clip is one digit by one of 60 voices (an English accent and a voice
variant), with its own rate, pitch, pitch range, gain and background noise. The
40 training voices and the 20 test voices are different people to a listener:
they share no variant.

eSpeak NG's output depends on what the process said before and on a random
seed. So a process of its own initialises the library once and forks for every
clip, which sets the seed from the clip alone: the same settings give the same
bytes on one platform, in whatever order and process the clips are made.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soxr
from filelock import FileLock

from audio_mnist.config import fingerprint
from audio_mnist.errors import ConfigError, DataError

VERSION = 1  # raise it whenever the sound of a clip changes
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-US", "en", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029", "en-US-nyc")
# variants that sound like a person; those not listed whisper, croak or buzz
VARIANTS = (
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "anika", "antonio", "aunty", "belinda"),
    *("benjamin", "boris", "caleb", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5", "gustave", "ian", "iven"),
    *("john", "kaukovalta", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel"),
    *("miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis"),
    *("victor", "zac"),
)
TRAIN_VOICES, TEST_VOICES = 40, 20
SETTINGS = {"seed": int, "train_clips": int, "test_clips": int, "snr_low_db": float, "snr_high_db": float}
DEFAULTS = {"seed": 0, "train_clips": 400, "test_clips": 200, "snr_low_db": 15.0, "snr_high_db": 40.0}
SAMPLE_RATE_HZ = 20_000
_INSTALL = "pip install 'audio-mnist[synthetic]'"


def read(data: dict) -> list[tuple]:
    """Rows of the corpus, which is made in `data.cache_dir` the first time.

    Raises:
        ConfigError: an unknown or impossible setting.
        DataError: the speech synthesiser is not installed or fails.
    """
    settings = DEFAULTS | data["settings"]
    for key in ("train_clips", "test_clips"):
        if settings[key] < (20 if key == "train_clips" else 0) or settings[key] % 10:
            raise ConfigError(f"data.settings.{key}={settings[key]}: expected a multiple of 10, at least 20 to train")
    if settings["snr_low_db"] > settings["snr_high_db"]:
        raise ConfigError("data.settings.snr_low_db is above data.settings.snr_high_db")
    folder = Path(data["cache_dir"]) / f"synthetic-{fingerprint([VERSION, settings, _library_version()])}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _make(settings, folder)
    except OSError as error:
        raise DataError(f"{folder}: the synthetic corpus cannot be written ({error.strerror or error})") from None
    return [
        (clip["clip_id"], str(folder / clip["clip_id"]), str(clip["digit"]), clip["voice"], clip["split"])
        for clip in plan(settings)
    ]


def plan(settings: dict) -> list[dict]:
    """What each clip is: its digit, voice and every drawn quantity.

    A clip's draws depend on the seed, its split and its number alone.
    """
    shuffle = np.random.default_rng([settings["seed"], 0])
    variants = shuffle.permutation(len(VARIANTS))[: TRAIN_VOICES + TEST_VOICES]
    voices = [f"{ACCENTS[i % len(ACCENTS)]}+{VARIANTS[v]}" for i, v in enumerate(variants)]
    clips = []
    for split, count, of_split in (
        ("train", settings["train_clips"], voices[:TRAIN_VOICES]),
        ("test", settings["test_clips"], voices[TRAIN_VOICES:]),
    ):
        for number in range(count):
            rng = np.random.default_rng([settings["seed"], 1 + (split == "test"), number])
            digit = number % 10
            clips.append(
                {
                    "clip_id": f"{split}/{number:04d}.wav",
                    "split": split,
                    "digit": digit,
                    # every voice says every digit before it says one again
                    "voice": of_split[(number // 10) % len(of_split)],
                    "rate_wpm": int(rng.integers(110, 260)),
                    "pitch": int(rng.integers(20, 80)),
                    "range": int(rng.integers(20, 80)),
                    "gain_db": float(rng.uniform(-20, 0)),
                    "snr_db": float(rng.uniform(settings["snr_low_db"], settings["snr_high_db"])),
                    "noise_slope": float(rng.uniform(0, 2)),  # power falls as 1/f^slope: white to brown
                    "lead_s": float(rng.uniform(0.02, 0.15)),
                    "tail_s": float(rng.uniform(0.02, 0.15)),
                    "seed": int(rng.integers(2**31)),
                }
            )
    return clips


def _library_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("espeakng-loader")
    except PackageNotFoundError:
        raise DataError(f"data=synthetic needs the eSpeak NG wheel: {_INSTALL}; or choose other data=") from None


def _make(settings: dict, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "audio_mnist.data.corpora.synthetic", json.dumps(settings), str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"{folder}: the synthetic corpus could not be made: {reason}")
    os.replace(partial, folder)


class Voice:
    """eSpeak NG through ctypes, in synchronous mode. Initialise once a process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        synchronous = 2
        self._data = Path(espeakng_loader.get_data_path())
        self.sample_rate_hz = self._library.espeak_Initialize(synchronous, 0, str(self._data).encode(), 0)
        if self.sample_rate_hz <= 0:
            raise DataError(f"eSpeak NG did not start with its data in {self._data}; reinstall it: {_INSTALL}")

    def say(self, text: str, *, voice: str, rate_wpm: int, pitch: int, pitch_range: int, seed: int) -> np.ndarray:
        """(T,) float64 in -1 to 1 at `sample_rate_hz`."""
        pieces: list[np.ndarray] = []

        def take(samples, count: int, _events) -> int:
            if samples and count > 0:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float64) / 32768)
            return 0

        callback = self._callback_type(take)
        library = self._library
        library.espeak_SetSynthCallback(callback)
        # an unknown name silently keeps the voice before it, an unknown variant the plain voice
        variant = self._data / "voices" / "!v" / voice.partition("+")[2]
        if not variant.is_file() or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"eSpeak NG has no voice {voice}")
        for parameter, value in ((1, rate_wpm), (3, pitch), (4, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        encoded = text.encode() + b"\0"
        status = library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, 1, None, None)
        library.espeak_Synchronize()
        if status != 0 or not pieces:
            raise DataError(f"eSpeak NG could not say {text!r} as {voice} (status {status})")
        return np.concatenate(pieces)


def render(voice: Voice, clip: dict) -> np.ndarray:
    """(T,) float64 waveform of one planned clip at 20 kHz."""
    speech = voice.say(
        WORDS[clip["digit"]],
        voice=clip["voice"],
        rate_wpm=clip["rate_wpm"],
        pitch=clip["pitch"],
        pitch_range=clip["range"],
        seed=clip["seed"],
    )
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = soxr.resample(speech[loud[0] : loud[-1] + 1], voice.sample_rate_hz, SAMPLE_RATE_HZ, quality="VHQ")
    lead, tail = (round(clip[key] * SAMPLE_RATE_HZ) for key in ("lead_s", "tail_s"))
    padded = np.pad(speech, (lead, tail))
    noise = _noise(np.random.default_rng(clip["seed"]), len(padded), clip["noise_slope"])
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-clip["snr_db"] / 20)
    mixed = padded + noise
    return mixed / np.abs(mixed).max() * 10 ** (clip["gain_db"] / 20) * 0.99


def _noise(rng: np.random.Generator, count: int, slope: float) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum * np.maximum(frequency, 50.0) ** (-slope / 2), count)


def _main() -> None:
    import soundfile

    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    voice = Voice()
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
    running, width = 0, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    failed = False
    for clip in plan(settings):
        if running == width:
            failed |= os.wait()[1] != 0
            running -= 1
        if failed:
            break
        if os.fork() == 0:
            try:
                soundfile.write(folder / clip["clip_id"], render(voice, clip), SAMPLE_RATE_HZ, subtype="PCM_16")
            except BaseException as error:
                sys.stderr.write(f"{clip['clip_id']}: {error}\n")
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        running += 1
    for _ in range(running):
        failed |= os.wait()[1] != 0
    sys.exit(int(failed))


if __name__ == "__main__":
    _main()
