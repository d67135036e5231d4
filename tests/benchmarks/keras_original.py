"""The competition's recipe in Keras with librosa, five folds of two features: the yardstick of a whole sweep.

In an environment with tensorflow-cpu, librosa and scikit-learn, of which the project needs none:

    python tests/benchmarks/keras_original.py FSDD_RECORDINGS CLIPS.txt

CLIPS.txt names the 400 clips and their folds, a line each: file name and fold. `python -m
tests.benchmarks.against_keras KERAS_PYTHON` writes it, runs this in turn with the default sweep, and compares.
"""

import sys
import time
from pathlib import Path

import keras
import librosa
import numpy as np
from keras import layers

RATE_HZ, WINDOW, HOP, FRAMES, COPIES = 20_000, 2048, 512, 40, 5


def minmax(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min() + 1e-6)


def padded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = x[:, :FRAMES]
    before = rng.integers(0, FRAMES - x.shape[1] + 1)
    return np.pad(x, ((0, 0), (before, FRAMES - x.shape[1] - before)))


def mel(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    power = librosa.feature.melspectrogram(y=clip, sr=RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=40)
    return padded(minmax(librosa.power_to_db(power, ref=np.max)), rng)


def mfcc(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return minmax(padded(librosa.feature.mfcc(y=clip, sr=RATE_HZ, n_mfcc=40, n_fft=WINDOW, hop_length=HOP), rng))


def block(x, channels: int):
    inner = x.shape[-1]
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(inner, 1)(y)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(inner, 3, padding="same")(y)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    return layers.ReLU()(layers.Conv2D(channels, 1)(y) + layers.Conv2D(channels, 1)(x))


def net() -> keras.Model:
    """The original's, 83,562 trainable parameters."""
    entry = keras.Input((40, FRAMES, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(entry)))
    x = block(layers.MaxPooling2D()(x), 32)
    x = block(layers.MaxPooling2D()(x), 32)
    x = block(x, 64)
    x = block(layers.MaxPooling2D()(x), 64)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(32)(x)))
    x = layers.Dropout(0.5)(x)
    model = keras.Model(entry, layers.Dense(10, activation="softmax")(x))
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 83_562
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(folder: Path, listing: Path) -> None:
    began = time.perf_counter()
    rows = [line.split() for line in listing.read_text().splitlines()]
    labels, folds = np.array([int(name[0]) for name, _ in rows]), np.array([int(fold) for _, fold in rows])
    clips = [librosa.load(folder / name, sr=RATE_HZ)[0] for name, _ in rows]
    rng = np.random.default_rng(0)
    total = np.zeros((len(rows), 10))
    for feature in (mel, mfcc):
        features = np.stack([[feature(clip, rng) for _ in range(COPIES)] for clip in clips])[..., None]
        p = np.zeros_like(total)
        for fold in range(5):
            keras.utils.set_random_seed(fold)
            trained, scored = folds != fold, folds == fold
            x, y = features[trained].reshape(-1, 40, FRAMES, 1), np.repeat(labels[trained], COPIES)
            best = keras.callbacks.ModelCheckpoint(f"{listing}.weights.h5", save_best_only=True, save_weights_only=True)
            model = net()
            model.fit(
                *(x, y),
                batch_size=32,
                epochs=50,
                verbose=0,
                validation_data=(features[scored, 0], labels[scored]),
                callbacks=[best],
            )
            model.load_weights(f"{listing}.weights.h5")
            p[scored] = model.predict(features[scored, 0], verbose=0)
        total += p
        print(f"{feature.__name__}: {(p.argmax(axis=1) == labels).mean():.4f}", flush=True)
    print(f"ensemble: {(total.argmax(axis=1) == labels).mean():.4f}; {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
