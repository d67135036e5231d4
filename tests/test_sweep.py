"""A sweep before its first run and after its last: what its jobs are, what it says of them."""

import pytest
from hydra import compose, initialize_config_dir

from audio_mnist.errors import AudioMnistError, ConfigError
from audio_mnist.schema import validate_train
from audio_mnist.sweep import callback as sweep
from audio_mnist.sweep.plan import compose_all
from tests.conftest import PROJECT


def test_compose_all_gives_what_hydra_composes() -> None:
    """Job by job, wherever the fold stands, though folds of one kind are composed once."""
    jobs = [
        [f"feature={feature}", f"fold={fold}", f"variant={variant}", "data=fsdd400", *fixed]
        for variant, fixed in (("default", []), ("deltas", ["experiment=original", "folds.count=2"]))
        for feature in ("mel", "mfcc")
        for fold in range(2)
    ]
    jobs += [["fold=1", "seed=3"], ["seed=3"]]
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        ours = list(compose_all("train", jobs))
        assert ours == [compose("train", overrides) for overrides in jobs]
        assert [cfg.fold for cfg in ours] == [0, 1, 0, 1, 0, 1, 0, 1, 1, 0]
        (wrong,) = compose_all("train", [["fold=first"]])
        with pytest.raises(ConfigError, match="fold: Value 'first'"):
            validate_train(wrong)
        with pytest.raises(AudioMnistError, match="nonsense"):
            list(compose_all("train", [["nonsense=1", "fold=0"]]))


def test_listed_has_every_reason_and_not_hundreds_of_lines() -> None:
    """Runs that failed come before those that were never begun, of which the rest is a number."""
    begun = ["  fold=3: FAILED, run 1: ValueError: NaN", "  fold=9: not run: no such device"]
    idle = [f"  seed={seed}: not run" for seed in range(203)]
    lines = idle[:3] + begun + idle[3:]
    shown = sweep._listed(lines)
    assert shown[:2] == begun and shown[2] == lines[0]
    assert len(shown) == 21 and shown[-1] == "  and 185 more"
    assert sweep._listed(begun) == begun
