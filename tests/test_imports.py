"""Heavy imports without Python's collector."""

import gc
import sys
from types import ModuleType

import pytest

from audio_mnist.system.imports import quick_imports


@pytest.fixture(autouse=True)
def thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("first", "modules", "kept"), [(True, 200, True), (True, 1, False), (False, 200, False)])
def test_what_a_process_imports_first_is_left_out_of_later_passes(
    monkeypatch: pytest.MonkeyPatch, first: bool, modules: int, kept: bool
) -> None:
    """But nothing later, as by a worker's second run: what runs leave behind is still collected."""
    with quick_imports(first=first):
        assert not gc.isenabled()
        for number in range(modules):
            monkeypatch.setitem(sys.modules, f"heavy_{number}", ModuleType(f"heavy_{number}"))
    assert gc.isenabled()
    assert (gc.get_freeze_count() > 0) is kept


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import not_there  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
