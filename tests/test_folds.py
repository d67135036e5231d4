"""Folds: disjoint, stratified, grouped, and a function of the manifest alone."""

import numpy as np
import pandas as pd
import pytest

from audio_mnist.data.folds import EXCLUDED, TEST, assign_folds
from audio_mnist.data.split import split_clips
from audio_mnist.errors import ConfigError, DataError


def manifest(clips: int = 60, classes: int = 3, speakers: int = 6, test: int = 0) -> pd.DataFrame:
    rows = [
        {
            "clip_id": f"{i:03d}",
            "path": f"/{i}",
            "label": f"c{i % classes}",
            "speaker": f"s{(i // classes) % speakers}" if speakers else "",
            "split": "test" if i < test else "train",
            "recording": f"clip{i}",
        }
        for i in range(clips)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("group", ["none", "speaker"])
@pytest.mark.parametrize("selection", ["last", "inner", "fold"])
def test_split_clips_sets_are_disjoint_and_complete(group: str, selection: str) -> None:
    """Every clip is in exactly one set of a run, and in exactly one scored fold of all runs."""
    table = manifest()
    folds = assign_folds(table, count=3, group=group, seed=0)
    scored = []
    for fold in range(3):
        split = split_clips(table, folds, fold=fold, selection=selection)
        sets = [split.train, split.selection, split.fold, split.test]
        assert sorted(np.concatenate(sets)) == list(range(60))
        assert (len(split.selection) > 0) == (selection == "inner")
        scored.append(split.fold)
    assert sorted(np.concatenate(scored)) == list(range(60))


def test_assign_folds_is_stratified() -> None:
    """Each fold has as many clips of one class as of another."""
    table = manifest()
    folds = assign_folds(table, count=5, group="none", seed=0)
    counts = pd.crosstab(folds.fold_of, table["label"])
    assert (counts.to_numpy() == 4).all()


@pytest.mark.parametrize("count", [2, 3, 6])
def test_assign_folds_by_speaker_keeps_speakers_whole(count: int) -> None:
    """No speaker is in two folds; as many folds as speakers leaves one speaker out in each."""
    table = manifest()
    folds = assign_folds(table, count=count, group="speaker", seed=3)
    per_speaker = pd.Series(folds.fold_of).groupby(table["speaker"]).nunique()
    assert (per_speaker == 1).all()
    assert set(folds.fold_of) == set(range(count))


def test_split_clips_inner_selection_has_other_speakers() -> None:
    """The selection set is by speaker where the folds are."""
    table = manifest()
    folds = assign_folds(table, count=3, group="speaker", seed=0)
    split = split_clips(table, folds, fold=0, selection="inner")
    speakers = [set(table["speaker"].iloc[rows]) for rows in (split.train, split.selection, split.fold)]
    assert speakers[0].isdisjoint(speakers[1]) and (speakers[0] | speakers[1]).isdisjoint(speakers[2])


def test_assign_folds_ignores_the_order_of_rows() -> None:
    """A shuffled manifest gives every clip the fold that it had."""
    table = manifest()
    shuffled = table.sample(frac=1, random_state=1).reset_index(drop=True)
    folds, again = (assign_folds(t, count=5, group="none", seed=7) for t in (table, shuffled))
    assert folds.fingerprint == again.fingerprint
    assert dict(zip(table["clip_id"], folds.fold_of, strict=True)) == dict(
        zip(shuffled["clip_id"], again.fold_of, strict=True)
    )


def test_assign_folds_says_for_whom_scores_hold() -> None:
    """Whether speakers are shared, or are not known at all."""
    known = manifest()
    assert any("folds share speakers" in note for note in assign_folds(known, count=3, group="none", seed=0).notes)
    assert assign_folds(known, count=3, group="speaker", seed=0).notes == ()
    for group in ("none", "auto"):
        (note,) = assign_folds(known.assign(speaker=""), count=3, group=group, seed=0).notes
        assert note.startswith("the speakers are not known")


def test_assign_folds_other_seed_other_folds() -> None:
    """The seed decides, and the fingerprint shows it."""
    table = manifest()
    assert assign_folds(table, count=5, group="none", seed=0).fingerprint != (
        assign_folds(table, count=5, group="none", seed=1).fingerprint
    )


@pytest.mark.parametrize("group", ["none", "speaker"])
def test_assign_folds_keeps_identical_clips_together(group: str) -> None:
    """Copies share a fold, also across speakers, and one of them is scored."""
    table = manifest()
    table.loc[[3, 6, 9, 12], "recording"] = "same"
    folds = assign_folds(table, count=3, group=group, seed=0)
    assert len(set(folds.fold_of[[3, 6, 9, 12]])) == 1
    assert folds.scored.sum() == 57 and folds.scored[3]
    if group == "speaker":
        assert (pd.Series(folds.fold_of).groupby(table["speaker"]).nunique() == 1).all()


def test_assign_folds_leaves_out_training_copies_of_test_clips() -> None:
    """A training copy of a test clip is in no set, and a note names both."""
    table = manifest(test=9)
    table.loc[20, "recording"] = table.loc[2, "recording"]
    folds = assign_folds(table, count=3, group="none", seed=0)
    assert folds.fold_of[20] == EXCLUDED and folds.fold_of[2] == TEST
    assert any("copies of test clips and were left out: 020 (of 002)" in note for note in folds.notes)
    split = split_clips(table, folds, fold=0, selection="last")
    assert 20 not in np.concatenate([split.train, split.fold, split.test])


def test_copies_of_a_clip_are_predicted_in_the_test_split_and_trained_on_but_scored_once() -> None:
    """A fold's scored clips have one of several copies; the test split and the training clips have them all."""
    table = manifest(test=9)
    table.loc[[0, 3], "recording"], table.loc[[12, 15, 18], "recording"] = "clip0", "clip12"
    folds = assign_folds(table, count=3, group="none", seed=0)
    home = folds.fold_of[12]
    split = split_clips(table, folds, fold=home, selection="last")
    assert set(split.fold) & {12, 15, 18} == {12} and {0, 3} <= set(split.test)
    assert folds.scored[[0, 3]].tolist() == [True, False]
    other = split_clips(table, folds, fold=(home + 1) % 3, selection="last")
    assert {12, 15, 18} <= set(other.train)


def test_of_a_test_recording_the_labelled_copy_is_scored() -> None:
    """An unlabelled copy that sorts before it does not take its place."""
    table = manifest(test=9)
    table.loc[[0, 3], "recording"], table.loc[0, "label"] = "clip0", ""
    assert assign_folds(table, count=3, group="none", seed=0).scored[[0, 3]].tolist() == [False, True]


def test_very_unequal_folds_get_a_note_with_their_sizes() -> None:
    """One speaker with most clips fills one fold; equal speakers get no note."""
    table = manifest(clips=300, speakers=6)
    assert not any("unequal" in note for note in assign_folds(table, count=3, group="speaker", seed=0).notes)
    table["speaker"] = ["s0" if i < 280 else f"s{i % 4 + 1}" for i in range(300)]
    notes = assign_folds(table, count=3, group="speaker", seed=0).notes
    assert any("very unequal numbers of clips (" in note and "280" in note for note in notes)


def test_assign_folds_auto_groups_where_speakers_are_known() -> None:
    """auto is speaker where each clip has one, else none."""
    assert assign_folds(manifest(), count=2, group="auto", seed=0).groups is not None
    assert assign_folds(manifest(speakers=0), count=2, group="auto", seed=0).groups is None


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (manifest(), {"count": 1, "group": "none"}, "folds.count=1"),
        (manifest(), {"count": 5, "group": "take"}, "folds.group=take"),
        (manifest(), {"count": 21, "group": "none"}, "more than class"),
        (manifest(), {"count": 7, "group": "speaker"}, "folds.count=6 for leave-one-speaker-out"),
        (manifest(speakers=0), {"count": 2, "group": "speaker"}, "no speaker for 000"),
    ],
)
def test_assign_folds_refuses_what_does_not_fit(table: pd.DataFrame, settings: dict, message: str) -> None:
    """The message names the key and what would fit."""
    with pytest.raises(ConfigError, match=message):
        assign_folds(table, **settings, seed=0)


def test_assign_folds_auto_refuses_speakers_of_some_clips() -> None:
    """One clip without a speaker does not silently undo the grouping."""
    table = manifest()
    table.loc[4, "speaker"] = ""
    with pytest.raises(ConfigError, match="speakers are named for 59 of 60 clips"):
        assign_folds(table, count=2, group="auto", seed=0)


def test_assign_folds_refuses_a_class_of_test_copies() -> None:
    """A class whose every training clip is in the test split too cannot be learnt."""
    table = manifest(clips=60, test=9)
    table.loc[table["label"].eq("c1") & table["split"].eq("train"), "recording"] = table.loc[1, "recording"]
    with pytest.raises(DataError, match="every training clip of class 'c1' is a copy of a test clip"):
        assign_folds(table, count=2, group="none", seed=0)


def test_split_clips_inner_needs_two_training_speakers() -> None:
    """Of two speakers one is scored; the other cannot be cut."""
    table = manifest(speakers=2)
    folds = assign_folds(table, count=2, group="speaker", seed=0)
    with pytest.raises(ConfigError, match="selection=inner needs two training speakers"):
        split_clips(table, folds, fold=0, selection="inner")


def test_assign_folds_refuses_a_class_of_one_fold() -> None:
    """A class that one speaker alone says cannot be learnt when that speaker is scored."""
    table = manifest()
    table.loc[table["speaker"] == "s1", "label"] = "rare"
    with pytest.raises(DataError, match="every clip of class 'rare' falls in fold"):
        assign_folds(table, count=6, group="speaker", seed=0)


@pytest.mark.parametrize("fold", [-1, 5, 7])
def test_split_clips_refuses_a_fold_that_is_not(fold: int) -> None:
    """fold=7 of 5 is named with its range."""
    folds = assign_folds(manifest(), count=5, group="none", seed=0)
    with pytest.raises(ConfigError, match=f"fold={fold} does not exist: folds.count=5, so fold is 0 to 4"):
        split_clips(manifest(), folds, fold=fold, selection="last")
