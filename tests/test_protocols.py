"""Published protocols: fold, val and group columns; the layouts of public corpora; and what each run says of them."""

import csv
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mnist.config import to_plain
from audio_mnist.data import corpora
from audio_mnist.data.corpora import audiomnist, speech_commands
from audio_mnist.data.folds import EXCLUDED, TEST, VALIDATION, assign_folds
from audio_mnist.data.split import split_clips
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.schema import validate_train
from audio_mnist.training.job import plan
from tests.conftest import composed, run_command


def table(**columns: list[str]) -> pd.DataFrame:
    """12 clips of two classes, and further columns."""
    rows = {
        "clip_id": [f"{i:02d}" for i in range(12)],
        "path": [f"/{i}" for i in range(12)],
        "label": ["a", "b"] * 6,
        "speaker": [""] * 12,
        "split": ["train"] * 12,
        "recording": [f"{i:02d}" for i in range(12)],
    }
    return pd.DataFrame(rows | columns)


FOLDS = ["x", "x", "y", "y", "z", "z"] * 2
GIVEN = {"count": 5, "group": "none", "seed": 0}


def test_a_fold_column_is_used_where_it_exists_with_any_values() -> None:
    folds = assign_folds(table(fold=FOLDS), **GIVEN)
    assert folds.count == 3 and folds.fold_of.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert "folds 0 to 2 are the corpus's own: x, y, z of the column fold" in folds.notes
    numbers = assign_folds(table(fold=["10", "10", "9", "9"] * 3), **GIVEN)
    assert numbers.fold_of[:3].tolist() == [1, 1, 0]  # counted, not spelled


def test_folds_from_deal_ignores_the_column_and_from_column_demands_it() -> None:
    dealt = assign_folds(table(fold=FOLDS), **GIVEN, source="deal")
    assert dealt.count == 5 and not any("corpus's own" in note for note in dealt.notes)
    with pytest.raises(ConfigError, match="the column fold names no fold for 00; name one for every training clip"):
        assign_folds(table(), **GIVEN, source="column")
    with pytest.raises(ConfigError, match="the column fold names no fold for 03"):
        assign_folds(table(fold=[*FOLDS[:3], "", *FOLDS[4:]]), **GIVEN)
    with pytest.raises(ConfigError, match="the column fold has one value, 'x'"):
        assign_folds(table(fold=["x"] * 12), **GIVEN)


def test_copies_in_two_published_folds_are_used_once() -> None:
    recordings = [f"{i:02d}" for i in range(12)]
    recordings[2] = "00"  # fold y, a copy of a clip of fold x
    folds = assign_folds(table(fold=FOLDS, recording=recordings), **GIVEN)
    assert folds.fold_of[2] == EXCLUDED and folds.fold_of[0] == 0
    assert any("1 clips are copies of clips in another fold and were left out: 02 (of 00)" in n for n in folds.notes)


def test_groups_have_the_name_of_any_column() -> None:
    sources = ["s", "s", "t", "t", "u", "u", "s", "s", "t", "t", "v", "v"]
    folds = assign_folds(table(source=sources), count=3, group="source", seed=0)
    assert folds.unit == "source" and folds.groups is not None and folds.groups.tolist() == sources
    assert pd.Series(folds.fold_of).groupby(sources).nunique().max() == 1
    with pytest.raises(ConfigError, match=r"folds.group=sorce: choose none, auto or a column; the corpus has source"):
        assign_folds(table(source=sources), count=3, group="sorce", seed=0)
    with pytest.raises(ConfigError, match=r"folds.count=5 is more than the corpus has training sources \(4\)"):
        assign_folds(table(source=sources), count=5, group="source", seed=0)
    published = assign_folds(table(source=sources, fold=FOLDS), count=3, group="source", seed=0)
    assert "1 sources are in several of these folds: scores do not hold for new sources" not in published.notes
    straddling = assign_folds(table(source=["s"] * 12, fold=FOLDS), count=3, group="source", seed=0)
    assert "1 sources are in several of these folds: scores do not hold for new sources" in straddling.notes


def test_a_named_test_split_is_held_back_even_where_its_speakers_train() -> None:
    split = ["test"] * 4 + ["train"] * 8
    speakers = ["a", "b", "c", "d"] * 3
    folds = assign_folds(table(split=split, speaker=speakers), count=2, group="speaker", seed=0)
    assert (folds.fold_of[:4] == TEST).all() and (folds.fold_of[4:] >= 0).all()
    note = "4 speakers of the test split are training speakers too, so its score does not hold for new speakers"
    assert note in folds.notes


def test_a_named_validation_split_chooses_the_epoch_or_trains_and_is_never_scored() -> None:
    split = ["val"] * 4 + ["train"] * 8
    clips = table(split=split)
    folds = assign_folds(clips, count=2, group="none", seed=0)
    assert (folds.fold_of[:4] == VALIDATION).all()
    inner = split_clips(clips, folds, fold=0, selection="inner")
    assert inner.selection.tolist() == [0, 1, 2, 3] and not set(inner.train) & {0, 1, 2, 3}
    last = split_clips(clips, folds, fold=0, selection="last")
    assert set(last.train) >= {0, 1, 2, 3} and not set(last.fold) & {0, 1, 2, 3} and len(last.selection) == 0


def test_validation_clips_of_a_scored_speaker_neither_train_nor_choose() -> None:
    speakers, labels = ["a", "e", "e", "e"] + ["a", "b", "c", "d"] * 2, ["a", "b"] * 2 + ["a"] * 4 + ["b"] * 4
    clips = table(split=["val"] * 4 + ["train"] * 8, speaker=speakers, label=labels)
    folds = assign_folds(clips, count=2, group="speaker", seed=0)
    for fold, selection in itertools.product((0, 1), ("last", "inner")):
        split = split_clips(clips, folds, fold=fold, selection=selection)
        scored = set(clips["speaker"].iloc[split.fold])
        assert not scored & set(clips["speaker"].iloc[[*split.train, *split.selection]])


def test_validation_copies_of_training_clips_are_left_out_and_hide_nothing() -> None:
    recordings = [f"{i:02d}" for i in range(12)]
    recordings[8] = "00"  # the copy sorts before the clip that trains
    clips = table(split=["val"] * 4 + ["train"] * 8, recording=recordings)
    folds = assign_folds(clips, count=2, group="none", seed=0)
    assert folds.fold_of[0] == EXCLUDED and folds.fold_of[8] >= 0 and folds.scored[8]
    assert any("1 validation clips are copies of training clips" in note for note in folds.notes)


def test_inner_selection_on_a_named_validation_split_shares_no_group_with_training() -> None:
    sources = ["p", "p", "q", "q", "p", "p", "q", "q", "r", "r", "s", "s"]
    clips = table(split=["val"] * 4 + ["train"] * 8, source=sources)
    folds = assign_folds(clips, count=2, group="source", seed=0)
    for fold in (0, 1):
        split = split_clips(clips, folds, fold=fold, selection="inner")
        of = [set(clips["source"].iloc[rows]) for rows in (split.train, split.selection, split.fold)]
        assert of[0].isdisjoint(of[1]) and of[0].isdisjoint(of[2]) and of[1].isdisjoint(of[2])
    one = table(split=["val"] * 4 + ["train"] * 8, source=["p"] * 6 + ["q", "q", "r", "r", "s", "s"])
    folds = assign_folds(one, count=2, group="source", seed=0)
    fold = int(folds.fold_of[4])
    with pytest.raises(ConfigError, match=f"fold={fold} holds every source of the validation split"):
        split_clips(one, folds, fold=fold, selection="inner")


def test_inner_selection_needs_training_clips_beside_the_validation_split() -> None:
    """Every speaker in both: no clip of a class would be left to train."""
    clips = table(split=["val"] * 4 + ["train"] * 8, speaker=["p", "q", "r", "s"] * 3)
    folds = assign_folds(clips, count=2, group="speaker", seed=0)
    expected = (
        r"every training clip of class '[ab]' has a speaker that the validation split has too\. Set selection=last"
    )
    with pytest.raises(ConfigError, match=expected):
        split_clips(clips, folds, fold=0, selection="inner")
    assert len(split_clips(clips, folds, fold=0, selection="last").train) == 6


def test_messages_name_the_unit_that_groups_clips() -> None:
    alone = table(label=["a"] * 6 + ["b"] * 6, source=["p"] * 6 + ["q"] * 6)
    with pytest.raises(DataError, match=r"add clips of other sources, or set folds\.group=none"):
        assign_folds(alone, count=2, group="source", seed=0)
    with pytest.raises(DataError, match=r"scored; add clips of it to other folds, or set folds\.from=deal"):
        assign_folds(table(label=["a"] * 6 + ["b"] * 6, fold=["x"] * 6 + ["y"] * 6), **GIVEN)
    with pytest.raises(ConfigError, match=r"has none \(recording is a name that the framework uses; rename"):
        assign_folds(table(), count=2, group="recording", seed=0)


def test_a_published_fold_of_copies_alone_is_no_fold() -> None:
    recordings = [f"{i:02d}" for i in range(12)]
    for copy, original in ((2, 0), (3, 1), (8, 6), (9, 7)):  # all of fold y
        recordings[copy] = recordings[original]
    folds = assign_folds(table(fold=FOLDS, recording=recordings), **GIVEN)
    assert folds.count == 2 and set(folds.fold_of) == {0, 1, EXCLUDED}


def test_unused_columns_are_named_with_what_may_have_been_meant() -> None:
    names = assign_folds(table(speakers=["a"] * 12), **GIVEN).notes
    assert "unused column speakers; did you mean speaker?" in names
    both = assign_folds(table(speakers=["a"] * 12, take=["a"] * 12), **GIVEN).notes
    assert [note.partition(";")[0] for note in both if "unused" in note] == [
        "unused column speakers",
        "unused columns: take",
    ]
    others = assign_folds(table(take=["a"] * 12, target=["b"] * 12), **GIVEN).notes
    assert "unused columns: take, target; folds.group=COLUMN keeps the clips of one value together" in others
    assert not any("unused" in note for note in assign_folds(table(fold=FOLDS), **GIVEN).notes)


def write_csv(folder: Path, header: str, rows: list[str]) -> Path:
    for number in range(len(rows)):
        tone(folder / f"{number}.wav", seed=number)
    path = folder / "clips.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def tone(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.random.default_rng(seed).standard_normal(1600), 8000)


def test_csv_columns_reach_the_folds(tmp_path: Path) -> None:
    rows = [f"{i}.wav,{'ab'[i % 2]},{'pqrs'[i // 2 % 4]},{'kl'[i // 4 % 2]}" for i in range(16)]
    manifest = write_csv(tmp_path, "path,label,source,fold", rows)
    given = ("data=csv", f"data.manifest={manifest}", "folds.group=source", "fold=1")
    job = plan(composed(*given))
    assert job.folds.count == 2 and job.folds.unit == "source"
    assert job.corpus.manifest["source"].tolist()[:3] == ["p", "p", "q"]  # sorted by path: 0, 1, 10
    with pytest.raises(ConfigError, match=r"fold=2 does not exist: folds.count=2"):
        plan(composed(*given[:-1], "fold=2"))


def test_csv_refuses_another_split(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path, "path,label,split", ["0.wav,a,valid", "1.wav,b,train"])
    with pytest.raises(DataError, match="split is 'valid'; expected train, val or test"):
        corpora.load(read("data=csv", f"data.manifest={manifest}"))


def read(*overrides: str) -> dict:
    return to_plain(validate_train(composed(*overrides)))["data"]


def test_esc50_layout_has_its_folds_and_sources(tmp_path: Path) -> None:
    rows = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for number in range(20):
        name = f"{number % 5 + 1}-{100 + number // 2}-{'AB'[number % 2]}-{number % 4}.wav"
        tone(tmp_path / "audio" / name, seed=number)
        rows.append((name, number % 5 + 1, number % 4, "abcd"[number % 4], number % 4 < 2, 100 + number // 2, "A"))
    (tmp_path / "meta").mkdir()
    with open(tmp_path / "meta" / "esc50.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    whole = corpora.load(read("data=esc50", f"data.root={tmp_path}"))
    assert whole.class_names == ("a", "b", "c", "d") and len(whole.manifest) == 20
    assert set(whole.manifest["fold"]) == set("12345") and whole.manifest["source"].nunique() == 10
    ten = corpora.load(read("data=esc10", f"data.root={tmp_path}"))
    assert ten.class_names == ("a", "b") and len(ten.manifest) == 10


def test_esc10_layout_of_its_own_archive(real_data: Path) -> None:
    """Equal to the csv beside it: labels, published folds, sources."""
    corpus = corpora.load(read("data=esc10", f"data.root={real_data / 'esc10'}"))
    listed = pd.read_csv(real_data / "esc10" / "clips.csv", dtype=str).sort_values("path")
    manifest = corpus.manifest.sort_values("clip_id")
    assert manifest["clip_id"].tolist() == listed["path"].tolist()
    for column in ("label", "fold", "source"):
        assert manifest[column].tolist() == listed[column].tolist(), column


def test_urbansound8k_layout_has_its_ten_folds(tmp_path: Path) -> None:
    rows = [("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")]
    for number in range(40):
        fold, label = number // 2 % 10 + 1, ("siren", "drilling")[number % 2]
        name = f"{500 + number}-{number % 2}-0-{number}.wav"
        tone(tmp_path / "audio" / f"fold{fold}" / name, seed=number)
        rows.append((name, 500 + number, 0, 4, 1, fold, number % 2, label))
    (tmp_path / "metadata").mkdir()
    with open(tmp_path / "metadata" / "UrbanSound8K.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    job = plan(composed("data=urbansound8k", f"data.root={tmp_path}", "fold=9"))
    assert job.folds.count == 10 and len(job.split.fold) == 4 and job.folds.unit == "source"


def test_audiomnist_layout_has_beckers_folds(tmp_path: Path) -> None:
    assert sorted(speaker for fold in audiomnist.FOLDS for speaker in fold) == list(range(1, 61))
    for speaker in (26, 28, 36, 43, 12):
        for digit in (0, 1):
            tone(tmp_path / "data" / f"{speaker}" / f"{digit}_{speaker}_0.wav", seed=10 * speaker + digit)
    corpus = corpora.load(read("data=audiomnist", f"data.root={tmp_path}"))
    folds = dict(zip(corpus.manifest["speaker"], corpus.manifest["fold"], strict=True))
    assert folds == {"26": "0", "28": "1", "36": "2", "43": "3", "12": "4"}
    (tmp_path / "data" / "12" / "other.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"other.wav: not a name of this corpus"):
        corpora.load(read("data=audiomnist", f"data.root={tmp_path}"))


def write_speech_commands(root: Path) -> Path:
    for word in ("yes", "no", "up"):
        for speaker in range(8):
            tone(root / word / f"{speaker:08x}_nohash_0.wav", seed=hash((word, speaker)) % 2**32)
    tone(root / "_background_noise_" / "noise.wav", seed=0)
    for split, speakers in (("testing", (6, 7)), ("validation", (4, 5))):
        lines = [f"{word}/{speaker:08x}_nohash_0.wav" for word in ("yes", "no", "up") for speaker in speakers]
        (root / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    return root


def test_speech_commands_layout_has_its_lists(tmp_path: Path) -> None:
    root = write_speech_commands(tmp_path)
    corpus = corpora.load(read("data=speech_commands", f"data.root={root}"))
    assert corpus.class_names == ("no", "up", "yes")
    assert corpus.manifest["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}
    two = corpora.load(read("data=speech_commands", f"data.root={root}", "data.settings.words=[yes,no]"))
    assert two.class_names == ("no", "yes")
    with pytest.raises(ConfigError, match=r"data.settings.words: maybe is none of no, up, yes"):
        corpora.load(read("data=speech_commands", f"data.root={root}", "data.settings.words=[maybe,no]"))
    (root / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"testing_list.txt: cannot be read"):
        corpora.load(read("data=speech_commands", f"data.root={root}"))


def test_speech_commands_download_is_checked_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    root = write_speech_commands(tmp_path / "made")
    asked = []

    def retrieve(url: str, known_hash: str, *, fname: str, path: Path, **_: object) -> str:
        asked.append((url, known_hash))
        with tarfile.open(path / fname, "w:gz") as file:
            file.add(root, ".")
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    for _ in range(2):
        assert (speech_commands.download(tmp_path / "cache") / "testing_list.txt").exists()
    assert asked == [(speech_commands.URL, f"sha256:{speech_commands.SHA256}")]

    def refuse(*_: object, **__: object) -> str:
        raise ValueError("SHA256 hash of downloaded file does not match")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match=r"could not be downloaded .*does not match.*data.root=FOLDER"):
        speech_commands.download(tmp_path / "other")


@pytest.mark.slow
def test_published_folds_and_groups_have_their_names_in_every_table(tmp_path: Path) -> None:
    rows = [f"{i}.wav,{'ab'[i % 2]},{'pqrstuvw'[i // 2 % 8]},{'kl'[i // 4 % 2]}" for i in range(32)]
    manifest = write_csv(tmp_path, "path,label,source,fold", rows)
    given = ("data=csv", f"data.manifest={manifest}", "folds.group=source", "trainer.max_epochs=1")
    swept = run_command(tmp_path, "train.py", *given, "feature=mel,mfcc", "fold=0,1", "score=macro_f1", "-m")
    assert swept.returncode == 0, swept.stderr
    assert "Macro F1 on each scored fold" in swept.stdout and "corpus's own: k, l" in swept.stdout
    joined = run_command(tmp_path, "ensemble.py", "run_ids=latest", "score=macro_f1")
    assert joined.returncode == 0, joined.stderr
    assert "over 8 sources" in joined.stdout and "Only 8 sources are scored" in joined.stdout
    assert "points of macro F1" in joined.stdout and "speakers" not in joined.stdout


def test_sweep_of_a_csv_with_a_misspelled_column_says_so(tmp_path: Path) -> None:
    rows = [f"{i}.wav,{'ab'[i % 2]},s{i}" for i in range(12)]
    manifest = write_csv(tmp_path, "path,label,speakers", rows)
    notes = plan(composed("data=csv", f"data.manifest={manifest}")).notes
    assert "unused column speakers; did you mean speaker?" in notes
