"""A classical classifier on the same folds, for comparison."""

from dataclasses import dataclass

import numpy as np
import torch
import torchaudio
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from audio_mnist import features
from audio_mnist.data.prepare import PreparedCorpus

# the usual front end of speech recognition: 25 ms windows, 10 ms hop, 20 coefficients of 40 bands
N_MFCC = 20
MFCC = {"name": "mfcc", "n_mfcc": N_MFCC, "n_mels": 40, "window_ms": 25.0, "hop_ms": 10.0, "normalize": "none"}


@dataclass(frozen=True)
class Baseline:
    """The answers of a classical classifier.

    Attributes:
        label: its row in a table.
        oof: (n,) class numbers of clips, each by the fit without its fold.
        test: (test clips,) class numbers, by the fit on all folds.
    """

    label: str
    oof: np.ndarray
    test: np.ndarray


def svm(corpus: PreparedCorpus, fold_of: np.ndarray, rows: np.ndarray, test_rows: np.ndarray) -> Baseline:
    """Fit a support vector machine (RBF kernel, C = 10) on each clip's MFCC statistics.

    Args:
        corpus: the decoded clips.
        fold_of: (clips,) fold numbers, below 0 outside the folds.
        rows: clips to answer out of fold, all in folds 0 and up.
        test_rows: test clips.
    """
    used = np.concatenate([np.flatnonzero(fold_of >= 0), test_rows])
    x = np.zeros((len(corpus.manifest), 4 * N_MFCC))
    x[used] = _statistics(corpus, used)
    y = corpus.targets()
    answers = np.full(len(y), -1)
    for fold in np.unique(fold_of[rows]):
        scored = rows[fold_of[rows] == fold]
        trained = np.flatnonzero((fold_of >= 0) & (fold_of != fold))
        answers[scored] = _machine().fit(x[trained], y[trained]).predict(x[scored])
    test = np.empty(0, dtype=np.int64)
    if len(test_rows):
        trained = np.flatnonzero(fold_of >= 0)
        test = _machine().fit(x[trained], y[trained]).predict(x[test_rows])
    return Baseline("SVM (MFCC statistics)", answers[rows], test)


def _machine():
    return make_pipeline(StandardScaler(), SVC(C=10))


@torch.inference_mode()
def _statistics(corpus: PreparedCorpus, rows: np.ndarray) -> np.ndarray:
    """Return (n, 80): mean and standard deviation over a clip's frames of 20 MFCCs and of their slopes."""
    front_end = features.build(MFCC, corpus.store.sample_rate_hz)
    statistics = []
    for row in rows:
        clip = torch.from_numpy(np.array(corpus.store.clip(row))).view(1, 1, -1)
        cepstrum = front_end(clip)[0, 0]  # (20, N)
        both = torch.cat([cepstrum, torchaudio.functional.compute_deltas(cepstrum)])  # (40, N)
        statistics.append(torch.cat([both.mean(dim=1), both.std(dim=1, correction=0)]))
    return torch.stack(statistics).double().numpy()
