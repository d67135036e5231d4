"""Spoken digits by eSpeak NG: what each clip is, and how it is made.

eSpeak NG's output depends on the earlier output of the process and on a random
seed. A separate process therefore initialises the library once, forks for
every clip and sets the seed from the clip alone. So the same settings give the
same bytes on one platform, in whatever order and process the clips are made.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from audio_mnist.errors import DataError

INSTALL = "pip install 'audio-mnist[synthetic]'"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-US", "en", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029", "en-US-nyc")
# variants that sound like a person; the others whisper, croak or buzz
VARIANTS = (
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "anika", "antonio", "aunty", "belinda"),
    *("benjamin", "boris", "caleb", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5", "gustave", "ian", "iven"),
    *("john", "kaukovalta", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel"),
    *("miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis"),
    *("victor", "zac"),
)
TRAIN_VOICES, TEST_VOICES = 40, 20
SAMPLE_RATE_HZ = 20_000


def plan(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw each clip's digit, voice and every other quantity.

    A clip's draws depend only on the seed, its split and its number.

    Args:
        settings: seed, train_clips, test_clips, snr_low_db, snr_high_db.
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
                    # every voice says every digit once before it repeats one
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


class Voice:
    """eSpeak NG through ctypes, in synchronous mode. Create one per process."""

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
            raise DataError(f"eSpeak NG did not start with its data in {self._data}; reinstall it: {INSTALL}")

    def say(self, text: str, *, voice: str, rate_wpm: int, pitch: int, pitch_range: int, seed: int) -> np.ndarray:
        """Speak a text.

        Returns:
            (T,) float64 in -1 to 1 at `sample_rate_hz`.

        Raises:
            DataError: there is no such voice, or the library fails.
        """
        pieces: list[np.ndarray] = []

        def take(samples, count: int, _events) -> int:
            if samples and count > 0:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float64) / 32768)
            return 0

        callback = self._callback_type(take)
        library = self._library
        library.espeak_SetSynthCallback(callback)
        # an unknown name silently keeps the previous voice, an unknown variant gives the plain voice
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


def render(voice: Voice, clip: dict[str, Any]) -> np.ndarray:
    """Make one planned clip.

    Returns:
        (T,) float64 at 20 kHz.
    """
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
