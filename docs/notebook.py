# %% [markdown]
# # audio-mnist in a notebook
#
# The four functions do what the commands do, with the same checks and the same messages. This short study uses the
# built-in corpus of spoken digits, two folds and trainings of 300 steps.

# %%
import os
from pathlib import Path

import pooch
import soundfile

import audio_mnist

# %% [markdown]
# `sweep` trains every combination, in processes of their own. Call it again, and finished runs are skipped.

# %%
runs = audio_mnist.sweep("feature=mel,mfcc folds.count=2 fold=0,1 trainer.max_steps=300")

# %%
runs[["label", "fold", "status", "accuracy", "loss"]]

# %% [markdown]
# `ensemble` combines runs, and scores each clip by the runs that did not train on it.

# %%
scores = audio_mnist.ensemble(runs["run_id"])

# %%
scores[["split", "label", "accuracy", "low", "high", "n"]]

# %% [markdown]
# `load` gives a predictor: of the newest ensemble, of a run's id, or of a registered model (`models:/NAME@ALIAS`). The
# clip below is a seven that no run saw, by a voice that no run knows.

# %%
predictor = audio_mnist.load("latest")
cache = Path(os.environ.get("AUDIO_MNIST_CACHE") or pooch.os_cache("audio-mnist"))
clips = sorted(cache.glob("synthetic-*/test/*7.wav"))[:3]
waveform, sample_rate_hz = soundfile.read(clips[0])
predictor.predict(waveform, sample_rate_hz).round(3)

# %%
answers = predictor.predict_files(clips)
answers[["label", "p:7"]].round(3)
