"""Where an ensemble errs: the tables, and the page, opened in a browser."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report

from audio_mnist.config import to_plain
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.report import errors_page
from audio_mnist.report.errors_page import Answers
from tests.conftest import Browser, composed

LISTED = ["label_errors.csv"]


@pytest.fixture
def corpus(tones: Path) -> PreparedCorpus:
    pattern = "data.settings.speaker_pattern='(?P<speaker>s.)_'"
    return prepare(to_plain(composed("data=folder", f"data.root={tones}", pattern))["data"])


def answers(corpus: PreparedCorpus, wrong: list[int]) -> Answers:
    """All clips right with 0.8 but those `wrong`, whose next class has it."""
    truth = corpus.targets()
    said = truth.copy()
    said[wrong] = (said[wrong] + 1) % 3
    p = np.full((len(truth), 3), 0.1)
    p[np.arange(len(truth)), said] = 0.8
    return Answers("Out of fold", np.arange(len(truth)), p, {"Mel": p, "MFCC": np.roll(p, 1, axis=1)})


def test_per_class_equals_sklearns_report(corpus: PreparedCorpus) -> None:
    """Precision, recall and F1, of a class without any clip too."""
    given = answers(corpus, [0, 1, 9])
    truth, predicted = corpus.targets(), given.joint.argmax(axis=1)
    table = errors_page.per_class(truth, predicted, corpus.class_names).set_index("class")
    expected = classification_report(truth, predicted, target_names=corpus.class_names, output_dict=True)
    for name in corpus.class_names:
        for ours, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1-score"),
            ("clips", "support"),
        ):
            assert table.loc[name, ours] == pytest.approx(expected[name][theirs])
    assert table.loc["macro mean", "f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    lone = errors_page.per_class(np.zeros(3, int), np.zeros(3, int), ("a", "b"))
    assert lone["recall"].tolist() == [1.0, 0.0, 0.5]


def test_tables_by_speaker_and_duration(corpus: PreparedCorpus) -> None:
    """Every clip once, the errors where they were made."""
    given = answers(corpus, [0, 4])
    found = errors_page.tables(corpus, given)
    assert list(found) == ["by class", "by speaker", "by duration (s)"]
    by_speaker = found["by speaker"].set_index("speaker")
    of_wrong = corpus.manifest["speaker"].iloc[[0, 4]].value_counts()
    for speaker, row in by_speaker.iterrows():
        assert row["accuracy"] == pytest.approx(1 - of_wrong.get(speaker, 0) / row["clips"])
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert by_speaker["clips"].sum() == found["by duration (s)"]["clips"].sum() == 24
    assert 2 <= len(found["by duration (s)"]) <= 5
    corpus.manifest["source"] = ["garden", "street"] * 12
    grouped = errors_page.tables(corpus, given, ["speaker", "source", "room"])
    assert list(grouped) == ["by class", "by speaker", "by source", "by duration (s)"]
    assert grouped["by source"]["source"].tolist() == ["garden", "street"]
    for odd in ("class", "site/<b>"):
        corpus.manifest[odd] = ["garden", "street"] * 12
    assert list(errors_page.tables(corpus, given, ["class"])) == ["by class", "by column class", "by duration (s)"]


def test_page_lists_each_wrong_clip_with_its_sound_and_features(corpus: PreparedCorpus, tmp_path: Path) -> None:
    """One player and one picture a feature for each error; names are escaped; the csv files are there."""
    configs = {name: to_plain(composed("data=folder", "data.root=x", f"feature={name}")) for name in ("mel", "mfcc")}
    configs["mel again"] = configs["mel"]
    corpus.manifest["a/<i>"] = "garden"
    configs["mel"]["folds"]["group"] = "a/<i>"
    paths = errors_page.write(tmp_path, corpus, [answers(corpus, [2, 7, 20])], configs, "tones <b>& more</b>")
    assert [path.name for path in paths] == [
        "errors.html",
        "by_class.csv",
        "by_speaker.csv",
        "by_a_i_.csv",
        "by_duration.csv",
        *LISTED,
    ]
    text = paths[0].read_text()
    assert text.count("<section>") == 3 and text.count("<img ") == 6
    listed = pd.read_csv(paths[-1])
    assert sorted(listed["clip_id"]) == sorted(corpus.manifest["clip_id"].iloc[[2, 7, 20]])
    assert listed["rank"].tolist() == [1, 2, 3] and (listed["label"] != listed["suggested"]).all()
    assert text.count("<audio ") == 3 + (listed["suspect"] == "yes").sum()
    assert "tones &lt;b&gt;&amp; more" in text and "<b>& more" not in text and "<i>" not in text
    assert "3 of 24 clips wrong" in text
    for row in (2, 7, 20):
        assert html.escape(corpus.manifest["clip_id"][row]) in text
    assert not re.findall(r"""(?:src|href)=['"](?!data:)""", text)  # nothing is fetched


def test_page_shows_the_worst_first_and_not_too_many(corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordered by the true class' probability."""
    monkeypatch.setattr(errors_page, "MOST_CLIPS", 2)
    given = answers(corpus, [2, 7, 20])
    truth = corpus.targets()
    given.joint[7, truth[7]], given.joint[20, truth[20]] = 0.01, 0.05
    text = errors_page.page(corpus, [given], {}, "tones", ["speaker"])
    sections = text[text.index("<section>") :]
    shown = [sections.find(html.escape(corpus.manifest["clip_id"][row])) for row in (7, 20, 2)]
    assert 0 < shown[0] < shown[1] and shown[2] == -1
    assert "3 of 24 clips wrong" in text and text.count("<section>") == 2


def test_page_opens_in_a_browser(corpus: PreparedCorpus, tmp_path: Path, browser: Browser) -> None:
    """The sound decodes to the clip's length and the pictures to their pixels, in headless Chromium."""
    configs = {"Mel": to_plain(composed("data=folder", "data.root=x", "feature=mel"))}
    (path, *_) = errors_page.write(tmp_path, corpus, [answers(corpus, [3])], configs, "tones")
    probe = """async () => {
        const player = document.querySelector('audio'), image = document.querySelector('img');
        await image.decode();
        const bytes = await (await fetch(player.src)).arrayBuffer();
        const sound = await new OfflineAudioContext(1, 1, 8000).decodeAudioData(bytes);
        return [sound.length, image.naturalWidth, image.naturalHeight];
    }"""
    with browser.open(path.as_uri()) as tab:
        heard, width, height = tab.evaluate(probe)
    samples = len(corpus.store.clip(3))
    assert (heard, width, height) == (samples, 1 + samples // round(0.0256 * 8000), 40)
