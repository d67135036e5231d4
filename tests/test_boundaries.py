"""Nothing from outside does harm: checkpoints, tables, archives, configs, recordings."""

import ast
import contextlib
import io
import multiprocessing
import os
import pickle
import resource
import string
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from audio_mnist.config import to_plain
from audio_mnist.data import corpora
from audio_mnist.data.decode import Limits, decode
from audio_mnist.ensembles.members import find
from audio_mnist.errors import AudioMnistError, ConfigError, DataError, RunError
from audio_mnist.features import build
from audio_mnist.inference import recordings
from audio_mnist.inference.load import load_classifier
from audio_mnist.schema import validate_ensemble, validate_predict, validate_train
from audio_mnist.system.paths import inside, unpack
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, Tracker
from audio_mnist.training import resume
from audio_mnist.training.run import train
from tests.conftest import PROJECT, composed

LIMITS = Limits(0.01, 60.0)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- nothing is unpickled


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def test_checkpoint_with_code_is_refused_and_not_run(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ensemble's member and as a state to resume from."""
    mark = tmp_path / "was here"
    cfg = tone_config()
    train(cfg)
    tracker = Tracker(cfg.tracking.uri, "audio-mnist")
    (run,) = tracker.search()
    (path,) = (tmp_path / "mlruns").rglob(BEST_CHECKPOINT)
    genuine = torch.load(path, weights_only=True)
    torch.save(genuine | {"extra": Payload(mark)}, path)
    (member,) = find(tracker, [run.id])
    with pytest.raises(RunError, match="is damaged; train it again"):
        load_classifier(tracker, member.run.id)
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(RunError, match="is damaged; train it again"):
        load_classifier(tracker, member.run.id)
    torch.save(genuine | {"extra": Payload(mark)}, tmp_path / resume.LAST)
    monkeypatch.setattr(resume.log, "warning", lambda *_: None)
    assert resume.Workplace(tmp_path, lasting=True).last() == (None, 0)
    assert not mark.exists()


def test_source_unpickles_nothing() -> None:
    """No pickle, joblib or numpy loader that could, and every torch.load says weights_only."""
    for path in sorted((PROJECT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert not name.startswith(("pickle.load", "joblib.load", "cloudpickle.", "dill.")), path
            own_files = path.name == "config.py" and name == "exec"  # of a file that a person names in `modules`
            assert name not in ("eval", "exec") or own_files, path
            assert "read_pickle" not in name and given.get("allow_pickle") != "True", path
            if name == "torch.load":
                assert given.get("weights_only") == "True", f"{path}: {ast.unparse(node)}"


# --- paths stay in their root


@pytest.mark.parametrize("name", ["../x.wav", "/etc/passwd", "a/../../x.wav", "link/x.wav", "sub/../../root2/x.wav"])
def test_paths_out_of_the_root_are_refused(tmp_path: Path, name: str) -> None:
    """Upwards, absolute, through a link, into a sibling whose name begins alike; allowed where the key says so."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    (root / "link").symlink_to(tmp_path / "root2")
    with pytest.raises(DataError, match=r"here: .* lies outside .*; allow=true allows that"):
        inside(root, name, allowed=False, source="here", key="allow")
    assert inside(root, name, allowed=True, source="here", key="allow") == str(root / name)


@pytest.mark.parametrize("name", ["a.wav", "sub/a.wav", "sub/../a.wav", "./a.wav", "..a.wav", "~/a.wav"])
def test_paths_in_the_root_are_taken(tmp_path: Path, name: str) -> None:
    """A home folder's sign is a folder's name where paths may not leave the root."""
    assert inside(tmp_path, name, allowed=False, source="here", key="allow") == str(tmp_path / name)


@given(name=st.text(max_size=40))
@quick
def test_no_path_leaves_its_root(tmp_path: Path, name: str) -> None:
    """Whatever the text: an error, or a path that is really inside."""
    try:
        path = inside(tmp_path, name, allowed=False, source="here", key="allow")
    except DataError:
        return
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(tmp_path))


def test_tables_name_the_line_whose_path_leaves(tmp_path: Path) -> None:
    """The training csv, the csv of predict.py, the competition's tables."""
    (tmp_path / "clips.csv").write_text("path,label\na.wav,x\n../b.wav,y\n")
    data = to_plain(composed("data=csv", f"data.manifest={tmp_path}/clips.csv"))["data"]
    message = r"clips.csv, line 3: \.\./b.wav lies outside .*; data.settings.allow_outside=true allows that"
    with pytest.raises(DataError, match=message):
        corpora.load(data)
    allowed = corpora.load(data | {"settings": {"allow_outside": True}})
    assert set(allowed.manifest["path"]) == {f"{tmp_path}/a.wav", f"{tmp_path}/../b.wav"}
    with pytest.raises(DataError, match=r"line 3: .* lies outside .*; allow_outside=true allows that"):
        recordings.find_audio(f"{tmp_path}/clips.csv")
    assert len(recordings.find_audio(f"{tmp_path}/clips.csv", allow_outside=True)) == 2
    (tmp_path / "train.csv").write_text("file_name,label\n../../b.wav,y\n")
    (tmp_path / "test.csv").write_text("file_name\nc.wav\n")
    with pytest.raises(DataError, match=r"train.csv: .*lies outside"):
        corpora.load(to_plain(composed("data=dacon", f"data.root={tmp_path}"))["data"])


def zipped(path: Path, *entries: tuple[str, bytes], link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            if link:
                entry.external_attr = 0o120777 << 16
            file.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    ("entries", "link", "message"),
    [
        ([("../evil.txt", b"x")], False, "lies outside"),
        ([("/tmp/evil.txt", b"x")], False, "lies outside"),
        ([("a/../../evil.txt", b"x")], False, "lies outside"),
        ([("a", b"/etc/passwd")], True, "is a link"),
        ([("bomb", bytes(2_000_000))], False, "expected at most"),
        ([(f"{n}", b"") for n in range(20)], False, "expected at most 10 of"),
    ],
    ids=["up", "absolute", "up within", "link", "large", "many"],
)
def test_archives_that_would_do_harm_are_refused_whole(
    tmp_path: Path, entries: list[tuple[str, bytes]], link: bool, message: str
) -> None:
    """Nothing is left of them, in the folder or anywhere else; what was there before stays."""
    archive = zipped(tmp_path / "a.zip", ("fine.txt", b"fine"), *entries, link=link)
    (tmp_path / "in" / "out").mkdir(parents=True)
    (tmp_path / "in" / "out" / "old.txt").touch()
    with pytest.raises(DataError, match=message):
        unpack(archive, tmp_path / "in" / "out", max_bytes=1_000_000, max_files=10)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.zip",
        "in",
        "in/out",
        "in/out/old.txt",
    ]
    assert not Path("/tmp/evil.txt").exists()


def test_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    """Its table says one byte, its content is a million."""
    archive = zipped(tmp_path / "a.zip", ("a", bytes(1_000_000)))
    content = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), (1).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(DataError, match="not a zip archive that can be unpacked"):
        unpack(archive, tmp_path / "out", max_bytes=1000, max_files=10)
    assert not (tmp_path / "out").exists()


def test_archive_is_unpacked(tmp_path: Path) -> None:
    """Folders and files, in place of what was there."""
    archive = zipped(tmp_path / "a.zip", ("x/", b""), ("x/a.txt", b"1"), ("b.txt", b"2"))
    unpack(archive, tmp_path / "out", max_bytes=1000, max_files=10)
    unpack(archive, tmp_path / "out", max_bytes=1000, max_files=10)
    assert (tmp_path / "out" / "x" / "a.txt").read_text() == "1" and (tmp_path / "out" / "b.txt").read_text() == "2"


# --- tables and configs that nobody thought of


@given(
    content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
)
@quick
def test_any_bytes_as_a_table_are_a_corpus_or_one_clear_error(tmp_path: Path, content: bytes) -> None:
    """Never another exception."""
    check_table(tmp_path, b"path,label\n" + content)
    check_table(tmp_path, content)


@given(rows=st.lists(st.tuples(*[st.text(string.printable, max_size=12)] * 4), max_size=8))
@quick
def test_any_rows_are_a_corpus_or_one_clear_error(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    """Well-formed csv with strange cells."""
    import csv

    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "speaker", "split"), *rows])
    check_table(tmp_path, text.getvalue().encode())


def check_table(folder: Path, content: bytes) -> None:
    path = folder / "any.csv"
    path.write_bytes(content)
    data = {"name": "csv", "root": None, "manifest": str(path), "settings": {"allow_outside": False}}
    data["similar_speakers"] = False
    try:
        corpus = corpora.load(data)
    except AudioMnistError:
        return
    assert len(corpus.class_names) >= 2 and corpus.manifest["clip_id"].is_unique


def keys_of(value: object, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix.rstrip(".")]
    return [key for name, part in value.items() for key in keys_of(part, f"{prefix}{name}.")]


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=12)),
    *(st.lists(st.integers(), max_size=3), st.dictionaries(st.text(string.ascii_letters, max_size=4), st.integers())),
)


@pytest.mark.parametrize(
    ("name", "validate"),
    [("train", validate_train), ("ensemble", validate_ensemble), ("predict", validate_predict)],
)
def test_any_value_of_any_key_is_valid_or_one_clear_error(name: str, validate: Callable) -> None:
    """Also a key that there is not."""
    given_ = {"train": [], "ensemble": ["run_ids=latest"], "predict": ["audio=x"]}[name]
    cfg = composed(*given_, name=name)
    keys = [*keys_of(OmegaConf.to_container(cfg)), "no_such_key", "tracking.no_such_key"]

    @given(key=st.sampled_from(keys), value=VALUES)
    @settings(max_examples=150, deadline=None)
    def check(key: str, value: object) -> None:
        changed = cfg.copy()
        OmegaConf.set_struct(changed, False)
        OmegaConf.update(changed, key, value, merge=False)
        with contextlib.suppress(ConfigError):  # and nothing else
            validate(changed)

    check()


@given(settings_=st.dictionaries(st.sampled_from(["window_ms", "hop_ms", "n_mels", "top_db", "f_min_hz", "x"]), VALUES))
@settings(quick, max_examples=25)
def test_any_setting_of_a_feature_is_a_feature_or_one_clear_error(settings_: dict) -> None:
    """Never another exception, and no allocation without bound."""
    base = to_plain(composed())["feature"]
    with contextlib.suppress(ConfigError):  # and nothing else
        build(base | settings_, 8000)


# --- recordings


@given(
    samples=st.integers(1, 4000),
    channels=st.integers(1, 4),
    rate_hz=st.sampled_from([1000, 8000, 11025, 44100, 192_000]),
    kind=st.sampled_from([("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "ULAW")]),
    seed=st.integers(0, 2**32 - 1),
)
@quick
def test_any_recording_decodes_to_the_mean_of_its_channels(
    tmp_path: Path, samples: int, channels: int, rate_hz: int, kind: tuple[str, str], seed: int
) -> None:
    """Or is refused because it is too short."""
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
    path = tmp_path / f"a.{kind[0].lower()}"
    soundfile.write(path, sound, rate_hz, format=kind[0], subtype=kind[1])
    got, got_hz, reason = decode(str(path), LIMITS)
    if samples / rate_hz < 0.01:
        assert got is None and "less than data.min_clip_s" in reason
        return
    assert got is not None and got_hz == rate_hz and got.dtype == np.float32
    np.testing.assert_allclose(got, sound.mean(axis=1), atol=0.05 if kind[1] == "ULAW" else 1e-4)


def seeds() -> list[bytes]:
    """Small recordings of every format that is read."""
    sound = 0.3 * np.sin(np.arange(1600) / 5)
    found = []
    for kind, subtype in (
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")),
        *(("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW")),
    ):
        buffer = io.BytesIO()
        soundfile.write(buffer, sound, 16000 if subtype == "OPUS" else 8000, format=kind, subtype=subtype)
        found.append(buffer.getvalue())
    return found


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut, repeated, inserted; most often in the header."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, min(len(changed), 80) if rng.random() < 0.7 else len(changed)))
        what = rng.integers(0, 6)
        if what == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif what == 1:
            changed[at : at + 4] = rng.bytes(4)
        elif what == 2:
            changed[at : at + 4] = bytes(
                rng.choice([[255] * 4, [0] * 4, [255, 255, 255, 127], [0, 0, 0, 128]]).tolist()
            )
        elif what == 3:
            del changed[at : at + int(rng.integers(1, 64))]
        elif what == 4:
            changed[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            changed = changed[: max(1, at)]
        if not changed:
            changed = bytearray(b"\0")
    return bytes(changed)


def fuzz(first: int, count: int, folder: Path, results: "multiprocessing.Queue") -> None:
    """Decodes mutated recordings; puts (decoded, refused, slowest s, memory grown in MiB)."""
    originals, path = seeds(), folder / "x"
    decoded = refused = 0
    slowest, settled = 0.0, 0
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        path.write_bytes(mutate(originals[number % len(originals)], rng))
        began = time.monotonic()
        samples, rate_hz, reason = decode(str(path), LIMITS)
        slowest = max(slowest, time.monotonic() - began)
        if samples is None:
            assert reason
            refused += 1
        else:
            assert rate_hz > 0 and samples.ndim == 1 and 0 < len(samples) <= LIMITS.max_s * rate_hz
            assert np.isfinite(samples).all()
            decoded += 1
        if number == first + count // 2:
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled) / 1024
    results.put((decoded, refused, slowest, grown))


@pytest.mark.slow
def test_ten_thousand_mutated_recordings(tmp_path: Path) -> None:
    """Samples or a reason for each; no crash, no hang, no growing memory."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=fuzz, args=(0, 12_000, tmp_path, results))
    process.start()
    process.join(400)
    assert process.exitcode == 0, f"exit code {process.exitcode}: negative is a crash, None a hang"
    decoded, refused, slowest, grown = results.get(timeout=10)
    assert decoded + refused == 12_000 and min(decoded, refused) > 1000
    assert slowest < 20  # a hang, not a speed
    assert grown < 64


def test_mutated_recordings(tmp_path: Path) -> None:
    """The same for a few hundred others, in every run of the tests."""
    results: multiprocessing.Queue = multiprocessing.Queue()
    fuzz(1_000_000, 600, tmp_path, results)
    decoded, refused, *_ = results.get(timeout=10)
    assert decoded + refused == 600 and min(decoded, refused) > 20


@pytest.mark.parametrize(("channels", "rate_hz"), [(1000, 8000), (1, 1), (1, 2**31 - 1)])
def test_headers_that_ask_for_too_much_are_refused(tmp_path: Path, channels: int, rate_hz: int) -> None:
    """A thousand channels, one sample a second, two thousand million: no memory is taken for them."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full((2000, 1), 0.1), 8000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[22:24] = channels.to_bytes(2, "little")
    content[24:28] = rate_hz.to_bytes(4, "little")
    content[32:34] = (2 * channels).to_bytes(2, "little")
    path.write_bytes(content)
    samples, _, reason = decode(str(path), LIMITS)
    assert samples is None and reason
