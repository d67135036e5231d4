"""The shape of the code: imports point down, functions are short, examples run, every public thing is described."""

import ast
import doctest
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from audio_mnist.augment import Augmentation
from audio_mnist.data.corpora import CorpusReader
from audio_mnist.features import FrontEnd
from audio_mnist.models import Model
from audio_mnist.scoring import calibration, intervals, mixture
from tests.conftest import PROJECT

SOURCE = PROJECT / "src" / "audio_mnist"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 60  # lines of a function


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": ""}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("", "", ""),
        ("scoring/intervals.py", "from audio_mnist.training import run", "Imports point down"),
        ("sweeps/outcome.py", "from audio_mnist.sweeps import summary", "No import circles"),
        ("explore/run.py", "import mlflow", "Only tracking and the served script import mlflow"),
    ],
    ids=["as it is", "arrow turned", "circle", "mlflow"],
)
def test_import_contracts_hold_and_would_fail(tmp_path: Path, file: str, line: str, contract: str) -> None:
    """`make lint` is green, and red for an arrow that points up, a circle, and MLflow in another room."""
    shutil.copytree(PROJECT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    if file:
        path = tmp_path / "src" / "audio_mnist" / file
        path.write_text(f"{path.read_text()}\n\ndef _turned() -> None:\n    {line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == int(bool(file)), done.stdout + done.stderr
    broken = [row.partition(" BROKEN")[0] for row in done.stdout.splitlines() if " BROKEN" in row]
    assert contract in broken if file else broken == []


def test_no_function_is_long() -> None:
    """One screen each, docstring included."""
    lengths = {f"{module_name(p)}.{f.name}": (f.end_lineno or 0) - f.lineno + 1 for p in FILES for f in functions(p)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_no_module_lies_beside_the_rooms() -> None:
    """A new module has a room; these files are above or below all of them."""
    assert {path.stem for path in SOURCE.glob("*.py")} == {"__init__", "api", "cli", "config", "errors", "schema"}


@pytest.mark.parametrize("name", [module_name(path) for path in FILES if ">>>" in path.read_text()])
def test_examples_run(name: str) -> None:
    """The examples in docstrings are right."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("base", [FrontEnd, Augmentation, Model], ids=lambda base: base.__name__)
def test_every_feature_augmentation_and_net_has_an_example(base: type) -> None:
    """In the docstring of the class, where a person looks first."""
    ours = [kind for kind in base.registry.values() if kind.__module__.startswith("audio_mnist.")]  # not other tests'
    assert ours and [kind.__name__ for kind in ours if ">>>" not in (kind.__doc__ or "")] == []


@pytest.mark.parametrize("module", [intervals, calibration, mixture], ids=lambda module: module.__name__)
def test_every_statistic_has_an_example(module: ModuleType) -> None:
    """Every public function of the scoring room."""
    public = [f for name, f in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")]
    own = [f for f in public if f.__module__ == module.__name__]
    assert own and [f.__name__ for f in own if ">>>" not in (f.__doc__ or "")] == []


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """Not with of, that, whose, as or where, which have nothing to stand on."""
    loose = ("of ", "that ", "whose ", "as ", "where ", "what ")
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = (ast.get_docstring(node) or "").lower()
                if text.startswith(loose) and not isinstance(node, ast.Module):
                    found.append(f"{module_name(path)}: {text.splitlines()[0]}")
    assert found == []


def test_corpora_register_themselves() -> None:
    """One file per corpus; conf/data/ has a choice for each."""
    choices = {path.stem for path in (PROJECT / "conf" / "data").glob("*.yaml")} - {"_base"}
    assert set(CorpusReader.registry) <= choices and choices - set(CorpusReader.registry) == {"fsdd400"}


def test_readme_is_two_screens() -> None:
    """At most 150 lines and 1,300 words; everything else has a page in docs/."""
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1300


@pytest.mark.parametrize("path", [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    """Every page and picture that it names is there."""
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []
