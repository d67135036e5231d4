"""What a person should know of a corpus before training. Pure numpy; it reads a sample of the decoded clips."""

import numpy as np
from scipy.signal import welch

from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.errors import listed
from audio_mnist.scoring.intervals import FEW
from audio_mnist.scoring.measures import UNEQUAL

SPEECH_HZ = 16_000  # rate that holds all of speech
SILENT_DB = -50.0  # of a frame, below its clip's loudest one
_SAMPLE = 200  # clips that are measured
_HIGH_HZ = 24_000  # rates above it reach far beyond speech
_SPECTRUM = 1024  # samples
_FRAME_S = 0.02
_MUCH_SILENCE = 0.4


def advice(corpus: PreparedCorpus) -> list[str]:
    """Return one sentence for each thing that may need a setting, or limits what scores can say."""
    table, rate_hz = corpus.manifest, corpus.store.sample_rate_hz
    train = np.flatnonzero((table["split"] == "train").to_numpy())
    sample = np.sort(np.random.default_rng(0).permutation(train)[:_SAMPLE])
    clips = [np.array(corpus.store.clip(row)) for row in sample]
    found = [_on_rate(clips, rate_hz), _on_silence(clips, rate_hz, corpus.clip_samples), _on_window(corpus, train)]
    counts = table["label"].iloc[train].value_counts()
    if counts.max() >= UNEQUAL * counts.min():
        found.append(
            f"classes are unequal: {counts.index[-1]!r} has {counts.min()} clips, {counts.index[0]!r} {counts.max()}; "
            "consider score=macro_f1, and class_weights=balanced or sampling=balanced"
        )
    speakers = table["speaker"].iloc[train]
    number = speakers[speakers != ""].nunique()
    if number == 0 and (table["fold"].iloc[train] == "").all():  # published folds take care of it
        found.append(
            "the speakers are not known, so scores will hold for these speakers only; name them by a column speaker of "
            "a csv, or by data.settings.speaker_pattern (docs/config.md)"
        )
    if 0 < number < FEW:
        found.append(f"{number} speakers: scores about new speakers will have wide intervals; add speakers if you can")
    found.append(_on_copies(corpus))
    return [one for one in found if one]


def _on_rate(clips: list[np.ndarray], rate_hz: int) -> str:
    if rate_hz <= _HIGH_HZ:
        return ""
    long = [clip for clip in clips if len(clip) >= _SPECTRUM]
    if not long:
        return ""
    spectra = [welch(clip, rate_hz, nperseg=_SPECTRUM, noverlap=0)[1] for clip in long]
    power = np.sum([one / max(1e-20, float(one.sum())) for one in spectra], axis=0)
    hz = np.fft.rfftfreq(_SPECTRUM, 1 / rate_hz)
    rolloff = float(hz[np.searchsorted(np.cumsum(power), 0.95 * np.sum(power))])
    return (
        f"clips are used at {rate_hz} Hz, so features reach {rate_hz // 2} Hz; 95% of the sound lies below "
        f"{rolloff:.0f} Hz. For speech set data.sample_rate_hz={SPEECH_HZ}"
    )


def _on_silence(clips: list[np.ndarray], rate_hz: int, window: int) -> str:
    silent = total = 0
    frame = max(1, round(_FRAME_S * rate_hz))
    for clip in clips:
        frames = clip[: len(clip) // frame * frame].reshape(-1, frame)
        power = np.square(frames, dtype=np.float64).mean(axis=1)
        quiet = int((power <= power.max(initial=0.0) * 10 ** (SILENT_DB / 10)).sum())
        silent += quiet + max(0, window // frame - len(frames))
        total += max(window // frame, len(frames))
    share = silent / max(1, total)
    if share < _MUCH_SILENCE:
        return ""
    return (
        f"{share:.0%} of the windows is silence ({-SILENT_DB:.0f} dB below the clip's loudest part, or around the "
        "clip); a shorter data.clip_s trains faster"
    )


def _on_window(corpus: PreparedCorpus, train: np.ndarray) -> str:
    window_s = corpus.clip_samples / corpus.store.sample_rate_hz
    longer = int((corpus.manifest["duration_s"].iloc[train] > 1.05 * window_s).sum())
    if longer < 0.1 * len(train):
        return ""
    return (
        f"{longer} of {len(train)} clips are longer than the window of {window_s:.2f} s and are cut; "
        "data.clip_s makes it longer"
    )


def _on_copies(corpus: PreparedCorpus) -> str:
    later = corpus.manifest[corpus.manifest["recording"] != corpus.manifest["clip_id"]]
    if later.empty:
        return ""
    named = listed(f"{row.clip_id} (of {row.recording})" for row in later.itertuples())
    return f"copies of other clips, scored once: {named}"
