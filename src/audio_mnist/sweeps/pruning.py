"""A trial that asks, epoch by epoch, whether it is worth finishing."""

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from pytorch_lightning import Callback, LightningModule, Trainer

from audio_mnist.errors import PrunedError
from audio_mnist.sweeps.search_settings import build_pruner, open_storage


class Pruning(Callback):
    """Report a trial's inner loss, and end it where the study's pruner says so.

    Args:
        storage: address of the studies' storage.
        study: name of the study.
        trial: id of the trial in the storage.
        pruner: name of the pruner.
    """

    def __init__(self, storage: str, study: str, trial: int, pruner: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        loaded = optuna.load_study(study_name=study, storage=open_storage(storage), pruner=build_pruner(pruner))
        self._trial: optuna.Trial | None = optuna.Trial(loaded, trial)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the newest loss on the inner part.

        Raises:
            PrunedError: the trial is not worth finishing.
        """
        loss, epoch = trainer.callback_metrics.get("selection/loss"), trainer.current_epoch
        if loss is None or self._trial is None:
            return
        try:
            self._trial.report(float(loss), epoch)
        except UpdateFinishedTrialError:  # an earlier command's; the search queued its settings again
            self._trial = None
            return
        if self._trial.should_prune():
            raise PrunedError(f"pruned after epoch {epoch + 1}: worse than half of the trials before it")
