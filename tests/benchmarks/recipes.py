"""Training time of the shipped recipe / the competition's own: python -m tests.benchmarks.recipes [PAIRS]

One fold of FSDD-400 for each of the two features by `train`, the whole of it in this process, in turn. The
competition's keeps its last epoch (selection=last), so that it spends nothing on choosing one.
"""

import contextlib
import io
import logging
import sys
import tempfile

from audio_mnist.training.run import train
from tests.benchmarks.timing import composed, machine, ratio, real


def trained(*overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        train(composed(*real(*overrides, f"tracking.uri=sqlite:///{folder}/mlflow.db")))


def main(pairs: int) -> None:
    logging.disable(logging.INFO)
    print(machine())
    trained("trainer.max_epochs=1", "trainer.min_epochs=1")  # decodes the clips, imports the rest
    trained("experiment=original", "trainer.max_epochs=1", "trainer.min_epochs=1")
    for feature in ("mel", "mfcc"):
        own = ("experiment=original", f"feature={feature}_original", "selection=last")
        ratio(
            f"{feature}: shipped recipe / the competition's",
            ("shipped", lambda feature=feature: trained(f"feature={feature}")),
            ("competition's, float32", lambda own=own: trained(*own)),
            repeats=pairs,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
