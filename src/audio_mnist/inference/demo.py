"""`demo.py`: a page where a person records or drops a clip and sees each member's answer."""

import os
import tempfile
import threading
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from audio_mnist.config import load_modules
from audio_mnist.data.decode import MIN_CLIP_S, Limits, decode
from audio_mnist.errors import ConfigError
from audio_mnist.features import FrontEnd
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predictor import Predictor, resampled
from audio_mnist.report import plots
from audio_mnist.schema import validate_demo
from audio_mnist.system import devices
from audio_mnist.tracking.tracker import Tracker

_AT_A_TIME = 4  # clips that are answered side by side, so that none waits for a long one
_KEPT_S = 600  # how long an upload is kept


def serve(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C.

    Args:
        cfg: the composed config of `conf/demo/demo.yaml`.

    Raises:
        AudioMnistError: there is no such model, the port is taken, or gradio is not installed.
    """
    cfg = validate_demo(cfg)
    devices.require_packages("demo", "gradio")
    load_modules(cfg.modules)
    devices.set_up_cpu(cfg.threads)
    predictor = load_predictor(Tracker(cfg.tracking.uri, cfg.tracking.experiment), cfg.model)
    with tempfile.TemporaryDirectory(prefix="audio-mnist-demo-") as uploads:
        # gradio reads these when it is imported: uploads end with the page, and nothing is reported to anyone
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        page = build(predictor, Limits(MIN_CLIP_S, cfg.max_clip_s, ""))
        import gradio

        try:
            _, address, _ = page.launch(
                server_name=cfg.host,
                server_port=cfg.port or None,
                inbrowser=cfg.open,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                max_file_size=int(cfg.max_upload_mb * 2**20),
                footer_links=[],
                # the system's fonts: nothing is fetched from elsewhere
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"host={cfg.host} port={cfg.port}: cannot listen there ({reason})") from None
        print(f"{predictor.name}: {address} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build(predictor: Predictor, limits: Limits) -> Any:
    """Build the page of a predictor, a `gradio.Blocks`.

    Args:
        predictor: the model.
        limits: durations that it accepts.
    """
    import gradio

    def answer(path: str | None) -> tuple[dict[str, float] | None, pd.DataFrame | None, Figure | None, str]:
        if path is None:
            return None, None, None, ""
        samples, rate_hz, reason = decode(path, limits)
        if samples is not None:
            reason = predictor.check(samples, rate_hz)
        if samples is None or reason:
            raise gradio.Error(f"This recording cannot be used: {reason}", duration=None, print_exception=False)
        return answer_of(predictor, samples, rate_hz)

    title = f"audio-mnist: {predictor.name}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as page:
        gradio.Markdown(f"# {title}\nRecord a clip or drop a file: one of {', '.join(predictor.class_names)}.")
        with gradio.Row():
            with gradio.Column():
                clip = gradio.Audio(
                    sources=["upload", "microphone"], type="filepath", label="clip", elem_id="clip", buttons=[]
                )
                label = gradio.Label(label="probabilities", num_top_classes=5, elem_id="answer")
                members = gradio.Dataframe(label="each member's answer", interactive=False, elem_id="members")
            with gradio.Column():
                picture = gradio.Plot(show_label=False, elem_id="picture")
                note = gradio.Markdown(elem_id="note")
        shown = [label, members, picture, note]
        clip.change(answer, clip, shown, api_name="predict", show_progress="minimal", concurrency_limit=_AT_A_TIME)
    return page


def answer_of(
    predictor: Predictor, samples: np.ndarray, rate_hz: int
) -> tuple[dict[str, float], pd.DataFrame, Figure, str]:
    """Return what the page shows of one clip.

    Args:
        predictor: the model.
        samples: (T,) float32.
        rate_hz: sample rate.

    Returns:
        The probability of each class, a table of the members' answers, the
        clip's waveform and features, and a note where only a part of it was
        used.
    """
    members = predictor.member_probabilities([(samples, rate_hz)])  # (M, 1, C)
    p = predictor.mixture(members)[0]
    first = predictor.classifiers[0]

    # a row per member
    rows: list[tuple[str, str, float]] = []
    for classifier, answer in zip(predictor.classifiers, members[:, 0], strict=True):
        settings = classifier.hparams
        name = f"{settings['feature']['name']} {settings['model']['name']}"
        number = sum(row[0].startswith(name) for row in rows) + 1
        rows.append((f"{name} {number}", predictor.class_names[int(answer.argmax())], round(float(answer.max()), 4)))

    # each feature once, drawn at the rate of the first member
    fronts: dict[str, FrontEnd] = {}
    for classifier in predictor.classifiers:
        if classifier.sample_rate_hz == first.sample_rate_hz:
            fronts.setdefault(classifier.hparams["feature"]["name"], classifier.front_end())
    drawn = resampled(samples, rate_hz, first.sample_rate_hz)
    duration_s = len(samples) / rate_hz
    picture = plots.anatomy(drawn, first.sample_rate_hz, fronts, f"{duration_s:.2f} s at {rate_hz} Hz")

    note = ""
    if duration_s > predictor.window_s:
        note = f"This clip is {duration_s:.2f} s long; the model uses its middle {predictor.window_s:.2f} s."
    answer = dict(zip(predictor.class_names, p.tolist(), strict=True))
    return answer, pd.DataFrame(rows, columns=["member", "label", "probability"]), picture, note
