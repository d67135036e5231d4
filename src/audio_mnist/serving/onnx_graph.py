"""A predictor as one ONNX graph: windows of sound in, probabilities out. It runs without this package."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from audio_mnist.augment.waveform import middle
from audio_mnist.errors import ConfigError
from audio_mnist.features.onnx_encoder import DOMAIN, OnnxEncoder
from audio_mnist.inference.predictor import Predictor
from audio_mnist.scoring.mixture import LEAST, Mixture
from audio_mnist.system import devices
from audio_mnist.training.classifier import Classifier

METADATA = "audio_mnist"  # key of the graph's metadata: JSON with class_names and windows
OPSET = 20
_LEAST = 1e-12  # least probability, as in scoring.mixture and scoring.calibration


class Window(NamedTuple):
    """One input of the graph: a clip, resampled and placed.

    Attributes:
        name: name of the input.
        sample_rate_hz: rate that the clip is resampled to.
        samples: T of the window.
        place: share of the slack before the clip, or cut from its start: `placement` of `WaveformStore.gather`.
    """

    name: str
    sample_rate_hz: int
    samples: int
    place: float


class Graph(nn.Module):
    """Everything that a predictor computes of placed windows, in one module.

    Args:
        predictor: members and their mixture.

    Shape: a (B, T) window for each of `windows` -> probabilities (B, C), and each
    member's own (M, B, C).

    Source: `classifier.predict_together` and `mixture.Mixture`. The results are
    equal to 1e-5: they use float64 where this uses float32.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.mixture = predictor.mixture
        self.members = nn.ModuleList(c.net for c in predictor.classifiers)
        self.windows: list[Window] = []
        self.front_ends, self.resamplers = nn.ModuleList(), nn.ModuleList()
        self.steps: list[tuple[list[int], int]] = []  # per front end: its windows and their length
        self.step_of: list[int] = []  # per member
        known: dict[str, int] = {}
        for classifier in predictor.classifiers:
            key = classifier.input_key
            if key not in known:
                known[key] = len(self.steps)
                self._add(classifier)
            self.step_of.append(known[key])

    def _add(self, classifier: Classifier) -> None:
        rate_hz, length = classifier.sample_rate_hz, classifier.clip_samples
        inputs = []
        for share in classifier.view_placements:
            window = Window(f"waveform_{rate_hz}hz_{length}_{share:.4f}", rate_hz, length, share)
            if window not in self.windows:
                self.windows.append(window)
            inputs.append(self.windows.index(window))
        self.steps.append((inputs, length))
        self.front_ends.append(classifier.front_end())
        self.resamplers.append(classifier.resamplers())

    def forward(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        computed = []  # per step: number of views, and their features, one after another in the batch
        for (inputs, length), front_end, resamplers in zip(self.steps, self.front_ends, self.resamplers, strict=True):
            changes = cast(nn.ModuleList, resamplers)
            views = [middle(change(windows[number].unsqueeze(1)), length) for number in inputs for change in changes]
            computed.append((len(views), front_end(torch.cat(views))))
        answers = []
        for member, step in zip(self.members, self.step_of, strict=True):
            times, x = computed[step]
            p = member(x).softmax(dim=1)  # (times * B, C)
            answers.append(p.reshape(times, -1, p.shape[1]).mean(dim=0))
        members = torch.stack(answers)  # (M, B, C)
        return _mixed(self.mixture, members), members


def _mixed(mixture: Mixture, members: Tensor) -> Tensor:
    """Join (M, B, C) probabilities into (B, C), as `Mixture` does."""
    mean = members.mean(dim=0)
    if mixture.combine == "stack":
        rows = [[i for i, of in enumerate(mixture.recipes) if of == recipe] for recipe in mixture.weights]
        means = torch.stack([members[numbers].mean(dim=0) for numbers in rows])  # (recipes, B, C)
        weights = torch.tensor(list(mixture.weights.values()))[:, None, None]
        p = (weights * means.clamp_min(LEAST).log()).sum(dim=0).softmax(dim=1)
    elif mixture.combine == "logit_mean":
        p = members.clamp_min(_LEAST).log().mean(dim=0).softmax(dim=1)
    elif mixture.combine == "vote":
        votes = nn.functional.one_hot(members.argmax(dim=2), members.shape[2]).to(members).mean(dim=0)
        p = votes + mean / (2 * len(members))
        p = p / p.sum(dim=1, keepdim=True)
    else:
        p = mean
    if mixture.temperature == 1:
        return p
    return (p.clamp_min(_LEAST).log() / mixture.temperature).softmax(dim=1)


def export(predictor: Predictor, path: Path) -> None:
    """Write a predictor as one ONNX file, for any number of clips at a time.

    The metadata `audio_mnist` describes its inputs, the windows. Its outputs are
    `probabilities` (B, C) and `members` (M, B, C).

    Args:
        predictor: members, on the CPU, and their mixture.
        path: the file.

    Raises:
        ConfigError: the packages that write ONNX are not installed.
    """
    devices.require_packages("serve", "onnx", "onnxscript")
    import onnx

    graph = Graph(predictor).eval()
    examples = tuple(torch.zeros(2, window.samples) for window in graph.windows)
    clips = torch.export.Dim("clips", min=1, max=2**20)
    with _quiet():
        program = torch.onnx.export(
            graph,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=[window.name for window in graph.windows],
            output_names=["probabilities", "members"],
            dynamic_shapes=(tuple({0: clips} for _ in examples),),
            verbose=False,
        )
    assert program is not None
    model = _with_encoders(program.model_proto, OnnxEncoder.contents)
    described = {"class_names": predictor.class_names, "windows": [window._asdict() for window in graph.windows]}
    onnx.helper.set_model_props(model, {METADATA: json.dumps(described)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _with_encoders(model: Any, contents: dict[str, bytes]) -> Any:
    """Put the graphs of ONNX encoders in the place of the nodes that stand for them.

    Args:
        model: an `onnx.ModelProto`.
        contents: path -> text of the encoder's file.
    """

    nodes = []
    for number, node in enumerate(model.graph.node):
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        path = next(one.s.decode() for one in node.attribute if one.name == "path")
        graph = _encoder(contents[path], path, f"encoder{number}/")
        renamed = {graph.input[0].name: node.input[0], graph.output[0].name: node.output[0]}
        for inner in graph.node:
            for names in (inner.input, inner.output):
                names[:] = [renamed.get(name, name) for name in names]
        nodes += graph.node
        model.graph.initializer.extend(graph.initializer)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [one for one in model.opset_import if one.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _encoder(content: bytes, path: str, prefix: str) -> Any:
    """Return an encoder's graph in our version of ONNX, its names after a prefix.

    Raises:
        ConfigError: it has operators that ONNX itself does not define, or another version.
    """
    import onnx
    import onnx.version_converter  # not imported by onnx itself

    model = onnx.load_from_string(content)
    domains = sorted({one.domain for one in model.opset_import} - {"", "ai.onnx"})
    used = [domain for domain in domains if any(node.domain == domain for node in model.graph.node)]
    try:
        if used or model.functions:
            raise ValueError(f"operators of {', '.join(used) or 'its own functions'}")
        model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter has errors of its own
        raise ConfigError(
            f"feature.path={path}: the encoder cannot be part of an exported ensemble ({error}); export it with "
            f"standard operators of ONNX, opset {OPSET} or earlier"
        ) from None
    return onnx.compose.add_prefix(model, prefix).graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
