"""Log-Mel of 1,000 real clips, librosa clip by clip / ours in batches, one thread each, and what the Fourier
transforms alone would allow: python -m tests.benchmarks.features"""

import logging

import librosa
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from audio_mnist import features
from audio_mnist.config import to_plain
from audio_mnist.data.prepare import prepare
from audio_mnist.system import devices
from tests.benchmarks.timing import composed, machine, ratio, real


def main() -> None:
    logging.disable(logging.INFO)
    devices.set_up_cpu(1)
    print(machine())
    for name in ("mel", "mel_original"):
        plain = to_plain(composed(*real(f"feature={name}", "data.sample_rate_hz=20000")))
        corpus = prepare(plain["data"])
        rate, length, settings = corpus.store.sample_rate_hz, corpus.clip_samples, plain["feature"]
        front_end = features.build(settings, rate)
        clips = corpus.store.gather(np.arange(1000), length)  # (1000, T), the same windows for both

        def one_by_one(front_end=front_end, settings=settings, clips=clips, rate=rate) -> None:
            for clip in clips:
                power = librosa.feature.melspectrogram(
                    y=clip,
                    sr=rate,
                    n_fft=front_end.n_fft,
                    win_length=front_end.window,
                    hop_length=front_end.hop,
                    n_mels=settings["n_mels"],
                )
                librosa.power_to_db(power, ref=np.max, top_db=front_end.top_db)

        def in_batches(front_end=front_end, clips=clips) -> None:
            with torch.inference_mode():
                for start in range(0, len(clips), 32):
                    front_end.decibel(torch.from_numpy(clips[start : start + 32]).unsqueeze(1))

        frames = torch.from_numpy(clips[:32]).unfold(-1, front_end.n_fft, front_end.hop)
        missing = 1 + clips.shape[1] // front_end.hop - frames.shape[1]  # those that reach into the padding
        frames = torch.cat([frames, frames[:, :missing]], dim=1).contiguous()  # (32, N, n_fft)

        def transforms(frames=frames, clips=clips) -> None:
            for _ in range(0, len(clips), 32):
                torch.fft.rfft(frames)

        one_by_one()  # librosa compiles and caches at its first call
        ratio(
            f"log-Mel of 1,000 clips, feature={name} at {rate} Hz",
            ("librosa, clip by clip", one_by_one),
            ("ours, 32 at a time", in_batches),
        )
        ratio(
            "  the same / the Fourier transforms of ours alone",
            ("librosa, clip by clip", one_by_one),
            ("torch.fft.rfft of windowed frames", transforms),
        )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
