"""The LightningModule: loss, metrics, optimiser and schedule around a net."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy

from audio_mnist import features, models
from audio_mnist.augment.waveform import middle
from audio_mnist.data.store import WaveformStore


class Classifier(LightningModule):
    """A net, and all that a prediction with it needs.

    Hyperparameters are plain values, so `torch.load(weights_only=True)` opens a
    checkpoint and `Classifier.load_from_checkpoint` needs nothing beside it.

    Args:
        model: settings of the net, `name` and its arguments.
        feature: settings of the front end, `name` and its arguments.
        class_names: C names, in the order of the logits.
        sample_rate_hz: of the waveforms.
        clip_samples: T, the window that clips are placed in.
        optimizer: name, lr, weight_decay, schedule, warmup_share, label_smoothing.
        views: of a clip that a prediction averages: `placements` in its window,
            evenly spread, at each of several `speeds`. None: centred, as it is.

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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        views = views or {"placements": 1, "speeds": [1.0]}
        self.placements, self.speeds = int(views["placements"]), [float(speed) for speed in views["speeds"]]
        self.class_names, self.clip_samples, self.sample_rate_hz = class_names, clip_samples, sample_rate_hz
        front_end = features.build(feature, sample_rate_hz)
        net = models.for_feature(model, front_end, len(class_names))
        self.net = net.to(memory_format=torch.channels_last)
        self._feature, self._optimizer = feature, optimizer
        self._front_ends: dict[torch.device, features.FrontEnd] = {}  # not a submodule: no part of the checkpoint
        self._resamplers: dict[torch.device, list[torchaudio.transforms.Resample]] = {}
        self._sums: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, targets = batch
        logits = self(x)  # (B, C)
        loss = cross_entropy(logits, targets, label_smoothing=self._optimizer["label_smoothing"])
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
        """Keeps one batch's sums on the device: a step neither logs nor waits for the device."""
        logits, loss = logits.detach(), loss.detach()
        if targets.ndim == 2:  # shares of each class: the largest counts
            targets = targets.argmax(dim=1)
        right = (logits.argmax(dim=1) == targets).sum()
        self._sums.setdefault(prefix, []).append((len(targets), loss, right))

    def _log_epoch(self, prefix: str) -> None:
        """Means over the clips since the last call."""
        batches = self._sums.pop(prefix, [])
        if not batches:
            return
        counts = torch.tensor([count for count, _, _ in batches], dtype=torch.float32, device=self.device)
        losses = torch.stack([loss for _, loss, _ in batches]).float()
        rights = torch.stack([right for _, _, right in batches])
        means = {"loss": (losses * counts).sum() / counts.sum(), "accuracy": rights.sum() / counts.sum()}
        self.log_dict({f"{prefix}/{key}": value for key, value in means.items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        settings = self._optimizer
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings["name"]]
        fused = not self.trainer.gradient_clip_val  # Lightning clips no fused optimiser's gradients under autocast
        optimizer = kind(self.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"], fused=fused)
        if settings["schedule"] == "none":
            return optimizer
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule: torch.optim.lr_scheduler.LRScheduler
        if settings["schedule"] == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=settings["lr"], total_steps=steps, pct_start=settings["warmup_share"]
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def front_end(self) -> features.FrontEnd:
        """The feature that this net was trained on, on this module's device."""
        if self.device not in self._front_ends:  # a prediction of many batches builds it once
            self._front_ends[self.device] = features.build(self._feature, self.sample_rate_hz).to(self.device)
        return self._front_ends[self.device]

    @property
    def heard_as(self) -> str:
        """Equal for classifiers to which a clip becomes the same features."""
        return json.dumps([self._feature, self.sample_rate_hz, self.clip_samples, self.placements, self.speeds])

    @property
    def places(self) -> list[float]:
        """Where a prediction puts a clip in its window, in 0 to 1: `WaveformStore.gather`."""
        return [(number + 0.5) / self.placements for number in range(self.placements)]

    def resamplers(self) -> list[torchaudio.transforms.Resample]:
        """One for each of the speeds that a prediction hears a clip at, on this module's device."""
        if self.device not in self._resamplers:
            # hundredths keep the resampling ratio, and so the filter, small
            made = [torchaudio.transforms.Resample(round(100 * s), 100).to(self.device) for s in self.speeds]
            self._resamplers[self.device] = made
        return self._resamplers[self.device]

    def predict_clips(self, store: WaveformStore, indices: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Class probabilities of stored clips, the mean over its `views`.

        Args:
            store: clips at this classifier's sample rate.
            indices: (n,) clips.
            batch_size: B, clips at a time; it changes nothing but the speed.

        Returns:
            (n, C) float32, rows sum to 1.

        Raises:
            ValueError: the store has another sample rate.
        """
        return predict_together([self], store, indices, batch_size=batch_size)[0]


def predict_together(
    classifiers: Sequence[Classifier],
    store: WaveformStore,
    indices: np.ndarray,
    *,
    batch_size: int = 128,
    at_once: int = 1,
) -> np.ndarray:
    """What several classifiers say of the same clips; those of one front end share its features.

    Args:
        classifiers: M of the same classes, on one device.
        store: clips at their sample rate.
        indices: (n,) clips.
        batch_size: B, clips at a time; it changes nothing but the speed.
        at_once: batches side by side, each in a thread with torch's own threads; it changes nothing but the speed.

    Returns:
        (M, n, C) float32, rows sum to 1.

    Raises:
        ValueError: the store has another sample rate than a classifier.
    """
    sharing: dict[str, list[int]] = {}
    for number, classifier in enumerate(classifiers):
        if store.sample_rate_hz != classifier.sample_rate_hz:
            raise ValueError(
                f"clips at {store.sample_rate_hz} Hz, but this net was trained at {classifier.sample_rate_hz} Hz"
            )
        sharing.setdefault(classifier.heard_as, []).append(number)
    was_training = [classifier.training for classifier in classifiers]
    for classifier in classifiers:
        classifier.eval()
    p = np.zeros((len(classifiers), len(indices), len(classifiers[0].class_names)), dtype=np.float32)

    @torch.inference_mode()
    def add(numbers: list[int], start: int) -> None:
        first, rows = classifiers[numbers[0]], indices[start : start + batch_size]
        front_end = first.front_end()
        for share in first.places:
            place = np.full(len(rows), share)
            waveforms = torch.from_numpy(store.gather(rows, first.clip_samples, place)).unsqueeze(1).to(first.device)
            for change in first.resamplers():
                x = front_end(middle(change(waveforms), first.clip_samples))
                for number in numbers:
                    logits = classifiers[number](x)  # (B, C)
                    p[number, start : start + len(rows)] += logits.float().softmax(dim=1).cpu().numpy()

    for numbers in sharing.values():  # made before threads ask for them
        classifiers[numbers[0]].front_end()
        classifiers[numbers[0]].resamplers()
    batches = [(numbers, start) for numbers in sharing.values() for start in range(0, len(indices), batch_size)]
    # full float32 on a GPU too: predictions must repeat on other hardware
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        if at_once == 1 or len(batches) == 1:
            for batch in batches:
                add(*batch)
        else:
            # a thread that is new does not have torch's setting before its first large operation
            with ThreadPoolExecutor(
                at_once, initializer=partial(torch.set_num_threads, torch.get_num_threads())
            ) as pool:
                list(pool.map(add, *zip(*batches, strict=True)))
    for numbers in sharing.values():
        first = classifiers[numbers[0]]
        p[numbers] /= np.float32(first.placements * len(first.speeds))
    for classifier, training in zip(classifiers, was_training, strict=True):
        classifier.train(training)
    return p


def load(path: Path) -> Classifier:
    """A classifier from its checkpoint alone, on the CPU, ready to predict."""
    return Classifier.load_from_checkpoint(path, map_location="cpu").eval()
