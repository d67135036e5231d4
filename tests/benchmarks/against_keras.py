"""The competition's recipe in Keras and librosa / the default sweep, on the same 400 clips and folds:

    python -m tests.benchmarks.against_keras KERAS_PYTHON

KERAS_PYTHON is the interpreter of an environment with tensorflow-cpu, librosa and scikit-learn. Both use all
cores. Whole processes are timed; each prints its accuracies, out of fold.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from audio_mnist.config import to_plain
from audio_mnist.data.folds import cut_folds
from audio_mnist.data.prepare import prepare
from tests.benchmarks.timing import PROJECT, composed, machine, real


def main(python: str) -> None:
    print(machine())
    source = Path(os.environ["AUDIO_MNIST_DATA"]) / "fsdd" / "recordings"
    plain = to_plain(composed(*real()))
    corpus = prepare(plain["data"])
    fold_of = cut_folds(corpus.manifest, plain["folds"]).fold_of
    names = [Path(path).name for path in corpus.manifest["path"]]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "clips.txt"
        listing.write_text("".join(f"{n} {f}\n" for n, f in zip(names, fold_of, strict=True) if f >= 0))
        keras = (python, str(Path(__file__).with_name("keras_original.py")), str(source), str(listing))
        ours = (sys.executable, str(PROJECT / "train.py"), *real("feature=mel,mfcc", "fold=0,1,2,3,4", "-m"))
        for name, arguments in (("ours", ours), ("Keras and librosa", keras)):
            began = time.perf_counter()
            done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
            seconds.append(time.perf_counter() - began)
            print(f"{name}: {seconds[-1]:.0f} s\n{done.stdout[-2500:]}", flush=True)
            if done.returncode:
                sys.exit(done.stderr)
    print(f"Keras and librosa / ours: {seconds[1] / seconds[0]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
