"""The LightningModule: loss, metrics, optimiser and schedule around a net; and predictions with it."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from audio_mnist import features, models
from audio_mnist.data.store import WaveformStore
from audio_mnist.data.windows import middle
from audio_mnist.errors import RunError
from audio_mnist.features import FrontEnd
from audio_mnist.system import devices
from audio_mnist.training import graphs, muon


class Classifier(LightningModule):
    """A net, and all that a prediction with it needs.

    Hyperparameters are plain values, so `torch.load(weights_only=True)` opens a
    checkpoint and `Classifier.load_from_checkpoint` needs nothing else.

    Args:
        model: settings of the net, `name` and its arguments.
        feature: settings of the front end, `name` and its arguments.
        class_names: C names, in the order of the logits.
        sample_rate_hz: sample rate of the waveforms.
        clip_samples: T, the window that clips are placed in.
        optimizer: name, lr, matrix_lr, weight_decay, schedule, warmup_share, label_smoothing.
        views: views of a clip that a prediction averages: `placements` in its window, evenly spread, at each of several
            `speeds`. None: one, centred, at normal speed.
        class_weights: weight of each class in the training loss, mean 1 over the training clips; None for equal ones.
        front_end: the built front end, where the caller has it already.
        cuda_graph: whether a GPU replays the net's pass as CUDA graphs in training.

    Shape: features (B, channels, F, N) -> logits (B, C).

    Raises:
        ConfigError: settings of the net or the front end are wrong.
    """

    def __init__(
        self,
        *,
        model: dict[str, Any],
        feature: dict[str, Any],
        class_names: list[str],
        sample_rate_hz: int,
        clip_samples: int,
        optimizer: dict[str, Any],
        views: dict[str, Any] | None = None,
        class_weights: list[float] | None = None,
        front_end: FrontEnd | None = None,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["front_end", "cuda_graph"])
        views = views or {"placements": 1, "speeds": [1.0]}
        self.placements, self.speeds = int(views["placements"]), [float(speed) for speed in views["speeds"]]
        self.class_names, self.clip_samples, self.sample_rate_hz = class_names, clip_samples, sample_rate_hz
        front_end = front_end or features.build(feature, sample_rate_hz)
        net = models.for_feature(model, front_end, len(class_names))
        self.net = net.to(memory_format=torch.channels_last)
        self._feature, self._optimizer = feature, optimizer
        self._weights = None if class_weights is None else torch.tensor(class_weights)
        # in tuples: not submodules, so not in the checkpoint
        self._front_end = (front_end,)
        self._resamplers: tuple[nn.ModuleList, ...] = ()
        self._sums: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
        self._cuda_graph, self._capture_next = cuda_graph, False

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.contiguous(memory_format=torch.channels_last))

    def on_train_start(self) -> None:
        self._capture_next = self.device.type == "cuda" and self._cuda_graph and not self.net.closed_form
        if self.net.closed_form:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            with torch.no_grad():
                self.net.fit(data.training_set(self.device), weighted=self._weights is not None or data.balanced)

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self._capture_next:
            self._capture_next = False
            precision = self.trainer.precision
            dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(precision))
            graphs.capture(self.net, batch[0].contiguous(memory_format=torch.channels_last), dtype)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        x, targets = batch
        logits = self(x)  # (B, C)
        loss = self.training_loss(logits, targets)
        return None if self.net.closed_form else loss

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a training batch, and keep what the epoch's metrics need."""
        weights = None if self._weights is None else self._weights.to(logits.device)
        loss = cross_entropy(logits, targets, weight=weights, label_smoothing=self._optimizer["label_smoothing"])
        self._note("train", logits, targets, loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        x, targets = batch
        logits = self(x)  # (B, C)
        self._note("selection" if dataloader_idx else "fold", logits, targets, cross_entropy(logits, targets))

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("fold")
        self._log_epoch("selection")

    def _note(self, prefix: str, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Keep one batch's sums on the device: a step neither logs nor waits for the device."""
        logits, loss = logits.detach(), loss.detach()
        if targets.ndim == 2:  # shares of each class: the largest counts
            targets = targets.argmax(dim=1)
        right = (logits.argmax(dim=1) == targets).sum()
        self._sums.setdefault(prefix, []).append((len(targets), loss, right))

    def _log_epoch(self, prefix: str) -> None:
        self.log_dict(self.epoch_means(prefix), sync_dist=True)

    def epoch_means(self, prefix: str) -> dict[str, Tensor]:
        """Return the loss and the accuracy over the clips of train, fold or selection since the last call."""
        batches = self._sums.pop(prefix, [])
        if not batches:
            return {}
        counts = torch.tensor([count for count, _, _ in batches], dtype=torch.float32, device=self.device)
        losses = torch.stack([loss for _, loss, _ in batches]).float()
        rights = torch.stack([right for _, _, right in batches])
        means = {"loss": (losses * counts).sum() / counts.sum(), "accuracy": rights.sum() / counts.sum()}
        return {f"{prefix}/{key}": value for key, value in means.items()}

    def configure_optimizers(self) -> Any:
        return None if self.net.closed_form else optimizer_of(self._optimizer, [self.net], self.trainer)

    def front_end(self) -> FrontEnd:
        """Return the feature that this net was trained on, on this module's device."""
        return self._front_end[0].to(self.device)

    def resamplers(self) -> nn.ModuleList:
        """Return one resampler per speed of a prediction, on this module's device."""
        if not self._resamplers:
            # hundredths keep the resampling ratio, and so the filter, small
            made = [torchaudio.transforms.Resample(round(100 * speed), 100) for speed in self.speeds]
            self._resamplers = (nn.ModuleList(made),)
        return self._resamplers[0].to(self.device)

    @property
    def input_key(self) -> str:
        """Equal for classifiers that compute the same features of a clip."""
        return json.dumps([self._feature, self.sample_rate_hz, self.clip_samples, self.placements, self.speeds])

    @property
    def view_placements(self) -> list[float]:
        """Placements of a clip in its window, 0 to 1: `WaveformStore.gather`."""
        return [(number + 0.5) / self.placements for number in range(self.placements)]

    def predict_clips(self, store: WaveformStore, indices: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Predict class probabilities of stored clips, the mean over the views.

        Args:
            store: clips at this classifier's sample rate.
            indices: (n,) clips.
            batch_size: B, clips at a time; it changes only the speed.

        Returns:
            (n, C) float32, rows sum to 1.

        Raises:
            ValueError: the store has another sample rate.
        """
        return predict_together([self], store, indices, batch_size=batch_size)[0]


def optimizer_of(settings: dict[str, Any], nets: Sequence[nn.Module], trainer: Trainer) -> Any:
    """Return an optimiser with its schedule, as `LightningModule.configure_optimizers` does.

    Args:
        settings: settings of the optimiser.
        nets: what it trains.
        trainer: Lightning's trainer, which knows the number of steps.
    """
    name, lr, weight_decay = settings["name"], settings["lr"], settings["weight_decay"]
    parameters = [parameter for net in nets for parameter in net.parameters()]
    optimizer: torch.optim.Optimizer
    if name == "muon":
        of_muon = [parameter for net in nets for parameter in muon.matrices(net)]
        known = {id(parameter) for parameter in of_muon}
        others = [parameter for parameter in parameters if id(parameter) not in known]
        optimizer = muon.Muon(of_muon, others, lr=lr, matrix_lr=settings["matrix_lr"], weight_decay=weight_decay)
    else:
        fused = not trainer.gradient_clip_val  # under autocast Lightning clips no fused optimiser's gradients
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
        optimizer = kind(parameters, lr=lr, weight_decay=weight_decay, fused=fused)
    if settings["schedule"] == "none":
        return optimizer
    steps = max(2, int(trainer.estimated_stepping_batches))
    schedule: torch.optim.lr_scheduler.LRScheduler
    if settings["schedule"] == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    else:
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=settings["warmup_share"],
            cycle_momentum=name != "muon",
        )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def predict_together(
    classifiers: Sequence[Classifier],
    store: WaveformStore,
    indices: np.ndarray,
    *,
    batch_size: int = 128,
    threads: int = 1,
) -> np.ndarray:
    """Predict the same clips with several classifiers; those of one front end share its features.

    Args:
        classifiers: M classifiers of the same classes, on one device.
        store: clips at their sample rate.
        indices: (n,) clips.
        batch_size: B, clips at a time; it changes only the speed.
        threads: batches side by side, each in a thread with torch's own threads; it changes only the speed.

    Returns:
        (M, n, C) float32, rows sum to 1.

    Raises:
        ValueError: the store has another sample rate than a classifier.
        RunError: a probability is not finite.
    """
    groups: dict[str, list[int]] = {}
    for number, classifier in enumerate(classifiers):
        if store.sample_rate_hz != classifier.sample_rate_hz:
            raise ValueError(
                f"clips at {store.sample_rate_hz} Hz, but this net was trained at {classifier.sample_rate_hz} Hz"
            )
        groups.setdefault(classifier.input_key, []).append(number)
    for numbers in groups.values():  # made before threads ask for them
        classifiers[numbers[0]].front_end()
        classifiers[numbers[0]].resamplers()
    p = np.zeros((len(classifiers), len(indices), len(classifiers[0].class_names)), dtype=np.float32)
    batches = [(numbers, start) for numbers in groups.values() for start in range(0, len(indices), batch_size)]

    def add(numbers: list[int], start: int) -> None:
        part = slice(start, start + batch_size)
        _add_views([classifiers[n] for n in numbers], store, indices[part], [p[n, part] for n in numbers])

    # full float32 on a GPU too: predictions must repeat on other hardware
    with _evaluating(classifiers), devices.exact_convolutions():
        if threads == 1 or len(batches) == 1:
            for batch in batches:
                add(*batch)
        else:
            # a new thread does not have torch's setting before its first large operation
            count = partial(torch.set_num_threads, torch.get_num_threads())
            with ThreadPoolExecutor(threads, initializer=count) as pool:
                list(pool.map(add, *zip(*batches, strict=True)))
    if not np.isfinite(p).all():
        clip = int(indices[np.argwhere(~np.isfinite(p))[0][1]])
        raise RunError(
            f"the net has no finite probability for clip {clip} (counted from 0): its samples or the net's weights "
            "are too large; look at that recording, or train again"
        )
    return p


@torch.inference_mode()
def _add_views(classifiers: list[Classifier], store: WaveformStore, clips: np.ndarray, sums: list[np.ndarray]) -> None:
    """Add the mean probabilities of one batch to each classifier's (B, C) part of the result."""
    first = classifiers[0]
    front_end = first.front_end()
    for share in first.view_placements:
        placement = np.full(len(clips), share)
        waveforms = torch.from_numpy(store.gather(clips, first.clip_samples, placement)).unsqueeze(1).to(first.device)
        for resample in first.resamplers():
            x = front_end(middle(resample(waveforms), first.clip_samples))
            for classifier, total in zip(classifiers, sums, strict=True):
                logits = classifier(x)  # (B, C)
                total += logits.float().softmax(dim=1).cpu().numpy()
    for total in sums:
        total /= np.float32(first.placements * len(first.speeds))


@contextlib.contextmanager
def _evaluating(classifiers: Sequence[Classifier]) -> Iterator[None]:
    """Set classifiers to evaluation for the length of the block."""
    was_training = [classifier.training for classifier in classifiers]
    for classifier in classifiers:
        classifier.eval()
    yield
    for classifier, training in zip(classifiers, was_training, strict=True):
        classifier.train(training)


def load(path: Path, front_end: FrontEnd | None = None) -> Classifier:
    """Load a classifier from its checkpoint alone, on the CPU, ready to predict.

    Args:
        path: the checkpoint.
        front_end: its built front end, where the caller has it already.
    """
    return Classifier.load_from_checkpoint(path, map_location="cpu", front_end=front_end).eval()
