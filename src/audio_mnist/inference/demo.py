"""`demo.py`: a page on which a person records or drops a clip and sees what each member hears in it."""

import os
import tempfile
import threading
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from audio_mnist.data.decode import Limits, decode
from audio_mnist.errors import ConfigError
from audio_mnist.features import FrontEnd
from audio_mnist.inference.predictor import Predictor, load_predictor
from audio_mnist.report import plots as pictures
from audio_mnist.schema import validate_demo
from audio_mnist.system import devices
from audio_mnist.tracking.tracker import Tracker

_KEPT_S = 600  # an upload stays this long


def serve(cfg: DictConfig) -> None:
    """Serves the page until Ctrl-C.

    Args:
        cfg: the composed config of `conf/demo/demo.yaml`.

    Raises:
        AudioMnistError: no such model, the port is taken, or gradio is not installed.
    """
    cfg = validate_demo(cfg)
    devices.require_packages("demo", "gradio")
    devices.set_up_cpu(cfg.threads)
    predictor = load_predictor(Tracker(cfg.tracking.uri, cfg.tracking.experiment), cfg.model)
    with tempfile.TemporaryDirectory(prefix="audio-mnist-demo-") as uploads:
        # read when gradio is imported: uploads go with the page, and nothing is reported to anyone
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        page = build(predictor, Limits(0.0, cfg.max_clip_s, ""))
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
                # fonts of the system: nothing is fetched from elsewhere
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
    """The page of a predictor, a `gradio.Blocks`.

    Args:
        predictor: that answers.
        limits: durations that it takes.
    """
    import gradio

    def answer(path: str | None) -> tuple[dict[str, float] | None, pd.DataFrame | None, Figure | None, str]:
        if path is None:
            return None, None, None, ""
        samples, rate_hz, reason = decode(path, limits)
        if samples is None:
            raise gradio.Error(f"This recording cannot be used: {reason}", duration=None, print_exception=False)
        return heard(predictor, samples, rate_hz)

    title = f"audio-mnist: {predictor.name}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as page:
        gradio.Markdown(f"# {title}\nRecord a clip or drop a file: one of {', '.join(predictor.class_names)}.")
        with gradio.Row():
            with gradio.Column():
                clip = gradio.Audio(
                    sources=["upload", "microphone"], type="filepath", label="clip", elem_id="clip", buttons=[]
                )
                label = gradio.Label(label="probabilities", num_top_classes=5, elem_id="answer")
                said = gradio.Dataframe(label="what each member said", interactive=False, elem_id="members")
            with gradio.Column():
                picture = gradio.Plot(show_label=False, elem_id="picture")
                note = gradio.Markdown(elem_id="note")
        clip.change(answer, clip, [label, said, picture, note], api_name="predict", show_progress="minimal")
    return page


def heard(
    predictor: Predictor, samples: np.ndarray, rate_hz: int
) -> tuple[dict[str, float], pd.DataFrame, Figure, str]:
    """What the page shows of one clip.

    Args:
        predictor: that answers.
        samples: (T,) float32.
        rate_hz: of the samples.

    Returns:
        Probability of each class, a table of the members' answers, the clip's
        waveform and features, and a note where only a part of it was heard.
    """
    members = predictor.members([(samples, rate_hz)])  # (M, 1, C)
    p = predictor.mixture(members)[0]
    rows: list[tuple[str, str, float]] = []
    for classifier, own in zip(predictor.classifiers, members[:, 0], strict=True):
        settings = classifier.hparams
        name = f"{settings['feature']['name']} {settings['model']['name']}"
        number = sum(row[0].startswith(name) for row in rows) + 1
        rows.append((f"{name} {number}", predictor.class_names[int(own.argmax())], round(float(own.max()), 4)))
    fronts: dict[str, FrontEnd] = {}
    for classifier in predictor.classifiers:  # drawn at the rate of the first
        if classifier.sample_rate_hz == predictor.classifiers[0].sample_rate_hz:
            fronts.setdefault(classifier.hparams["feature"]["name"], classifier.front_end())
    drawn = predictor.resampled(samples, rate_hz, predictor.classifiers[0].sample_rate_hz)
    title = f"{len(samples) / rate_hz:.2f} s at {rate_hz} Hz"
    picture = pictures.anatomy(drawn, predictor.classifiers[0].sample_rate_hz, fronts, title)
    note = ""
    if len(samples) > predictor.window_s * rate_hz:
        note = f"The model hears {predictor.window_s:.2f} s: of this clip of {len(samples) / rate_hz:.2f} s the middle."
    answer = dict(zip(predictor.class_names, p.tolist(), strict=True))
    return answer, pd.DataFrame(rows, columns=["member", "label", "probability"]), picture, note
