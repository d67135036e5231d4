"""What a person sees while a sweep trains."""

import logging
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from audio_mnist.sweeps.view import View, Watched
from audio_mnist.training import progress
from audio_mnist.training.callbacks import Progress
from tests.conftest import PROJECT, run_command, write_tones


def watched(tmp_path: Path, runs: int = 4, **more: object) -> Watched:
    folders = [tmp_path / str(number) for number in range(runs)]
    for folder in folders:
        folder.mkdir()
    return Watched([f"fold={number}" for number in range(runs)], folders, **more)


def test_watched_reads_what_runs_write(tmp_path: Path) -> None:
    """Running, finished, failed and waiting runs are told apart."""
    runs = watched(tmp_path)
    progress.write(runs.folders[0], state="finished", score=0.9)
    progress.write(runs.folders[1], epoch=5, epochs=10, score=0.5)
    progress.write(runs.folders[2], state="failed", reason="ValueError: NaN")
    runs.look()
    assert runs.over == {0, 2} and list(runs.running) == [1] and runs.failures == {2: "ValueError: NaN"}
    assert re.fullmatch(r"1 of 4 runs finished, 1 running, 1 failed, about \d+ s left", runs.line())


def test_time_left_counts_shares_of_epochs_and_not_what_was_finished_before(tmp_path: Path) -> None:
    """Two of four were finished before; half a run took 10 s: one and a half runs take 30 s."""
    runs = watched(tmp_path, over={0, 1}, before=2)
    progress.write(runs.folders[2], epoch=5, epochs=10, score=None)
    runs.look()
    runs.began = time.monotonic() - 10
    assert runs.left_s == pytest.approx(30, abs=1)
    runs.expected = 6  # a search adds runs
    assert runs.left_s == pytest.approx(70, abs=2) and runs.line().startswith("2 of 6 runs")


def test_time_left_does_not_count_what_a_resumed_run_had_already(tmp_path: Path) -> None:
    """Six of ten epochs were trained before: two more took 10 s, so two more and a whole run take 60 s."""
    runs = watched(tmp_path, runs=2)
    progress.write(runs.folders[0], epoch=8, epochs=10, begun=6, score=None)
    runs.look()
    runs.began = time.monotonic() - 10
    assert runs.left_s == pytest.approx(60, abs=1)
    progress.write(runs.folders[0], epoch=9, epochs=10, begun=8, score=None)  # queued again: 0.3 of a run took 10 s
    runs.look()
    assert runs.left_s == pytest.approx(10 / 0.3 * 1.1, abs=1)
    progress.write(runs.folders[0], state="finished", score=0.9)  # 0.4 of a run took 10 s
    runs.look()
    assert runs.left_s == pytest.approx(25, abs=1)


def test_a_run_tells_where_it_resumed(tmp_path: Path) -> None:
    trainer = SimpleNamespace(current_epoch=6, max_epochs=10, callback_metrics={})
    callback = Progress(tmp_path, "accuracy")
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    trainer.current_epoch = 7
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert progress.read(tmp_path) == {"epoch": 8, "epochs": 10, "begun": 6, "score": None}


def test_a_pruned_trial_is_not_counted_as_finished(tmp_path: Path) -> None:
    runs = watched(tmp_path, runs=2)
    progress.write(runs.folders[0], state="pruned", reason="worse than others")
    progress.write(runs.folders[1], state="finished", score=0.9)
    runs.look()
    assert runs.line() == "1 of 2 runs finished, 0 running, 1 pruned"


def test_a_failed_job_that_is_queued_again_runs_again(tmp_path: Path) -> None:
    """As a job of a cluster that was pre-empted."""
    runs = watched(tmp_path, runs=1)
    progress.write(runs.folders[0], state="failed", reason="SystemExit")
    runs.look()
    assert runs.line().startswith("0 of 1 runs finished, 0 running, 1 failed")
    progress.write(runs.folders[0], epoch=2, epochs=4, score=None)
    runs.look()
    assert runs.line().startswith("0 of 1 runs finished, 1 running, about")
    progress.write(runs.folders[0], state="finished", score=1.0)
    runs.look()
    assert runs.line() == "1 of 1 runs finished, 0 running"


def test_a_torn_file_is_no_news(tmp_path: Path) -> None:
    """A file that cannot be read leaves the run as it was."""
    runs = watched(tmp_path, runs=1)
    (runs.folders[0] / progress.FILE).write_text("{")
    runs.look()
    assert not runs.running and not runs.over and runs.line() == "0 of 1 runs finished, 0 running"


def test_without_a_terminal_there_is_a_line_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the running jobs with epoch and score."""
    monkeypatch.setattr("audio_mnist.sweeps.view._LOOK_S", 0.01)
    monkeypatch.setattr("audio_mnist.sweeps.view._LINE_S", 0.05)
    runs = watched(tmp_path, runs=2)
    progress.write(runs.folders[1], epoch=3, epochs=10, score=0.25)
    with caplog.at_level(logging.INFO):
        view = View(runs, "accuracy", live=False)
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.02)
        view.stop()
    assert "0 of 2 runs finished, 1 running" in caplog.messages[0]
    assert "fold=1: epoch 3/10, 0.2500" in caplog.messages[0]


def in_terminal(folder: Path, *arguments: str) -> str:
    """What a command writes to a terminal of 150 columns."""
    written = bytearray()

    def read(descriptor: int) -> bytes:
        part = os.read(descriptor, 4096)
        written.extend(part)
        return part

    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        environment |= {"TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
        script, *rest = arguments
        os.execve(sys.executable, [sys.executable, str(PROJECT / script), *rest], environment)
    try:
        while True:
            try:
                if not read(descriptor):
                    break
            except OSError:  # the terminal is closed
                break
    finally:
        os.waitpid(child, 0)
    return written.decode()


@pytest.mark.slow
def test_in_a_terminal_a_live_table_shows_runs_and_then_goes(tmp_path: Path) -> None:
    """Epochs and scores of running jobs; no line of a worker between; a failure as it happens; then the table."""
    write_tones(tmp_path / "tones", clips=10)
    shown = in_terminal(
        tmp_path,
        *("train.py", "data=folder", "data.root=tones", "feature=mel", "fold=0,1", "trainer.max_epochs=25"),
        *("trainer.batch_size=4", "optimizer.lr=0.003,1e30", "-m"),
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\d of 4 runs finished, [2-4] running", plain), plain
    assert re.search(r"fold=0 optimizer.lr=0.003 +\d+/25 +[01]\.\d{4}", plain), plain
    assert plain.count("decoded") == 1
    assert "mel fold 0: accuracy" not in plain  # the workers' own lines would tear the table
    assert re.search(r"┃ +mean ± sd ┃", plain)


@pytest.mark.slow
def test_folds_that_train_together_leave_the_live_table_whole(tmp_path: Path) -> None:
    write_tones(tmp_path / "tones", clips=10)
    shown = in_terminal(
        tmp_path,
        *("train.py", "data=folder", "data.root=tones", "feature=mel,mfcc", "fold=0,1", "trainer.max_epochs=25"),
        *("trainer.batch_size=4", "hydra/launcher=together", "-m"),
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\d of 4 runs finished, [2-4] running", plain), plain
    assert "epochs together in" not in plain and "4 of 4 runs finished in" in plain


def test_help_begins_with_what_the_command_does(tmp_path: Path) -> None:
    """Each command: one sentence, five examples, the keys that people change; `| head` is no error."""
    for script in ("train.py", "ensemble.py", "predict.py", "demo.py", "explore.py"):
        lines = run_command(tmp_path, script, "--help").stdout.splitlines()
        assert lines[0].endswith(".") and lines[2] == "Examples:", lines[:3]
        examples = [line for line in lines if line.startswith(f"  python {script}")]
        assert len(examples) == 5 and "Keys that people change:" in lines
    python, script = shlex.quote(sys.executable), shlex.quote(str(PROJECT / "train.py"))
    piped = subprocess.run(f"{python} {script} --help | head -1", shell=True, capture_output=True, text=True)
    assert piped.stdout.endswith(".\n") and piped.stderr == ""
