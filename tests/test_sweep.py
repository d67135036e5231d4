"""What a sweep says at its end."""

from audio_mnist import sweep


def test_listed_has_every_reason_and_not_hundreds_of_lines() -> None:
    """Runs that failed come before those that were never begun, of which the rest is a number."""
    begun = ["  fold=3: FAILED, run 1: ValueError: NaN", "  fold=9: not run: no such device"]
    idle = [f"  seed={seed}: not run" for seed in range(203)]
    lines = idle[:3] + begun + idle[3:]
    shown = sweep._listed(lines)
    assert shown[:2] == begun and shown[2] == lines[0]
    assert len(shown) == 21 and shown[-1] == "  and 185 more"
    assert sweep._listed(begun) == begun
