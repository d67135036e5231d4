"""Paths that come from outside: of a table, of an archive. None leaves its root unless that is allowed."""

import functools
import os
import shutil
import stat
import zipfile
from pathlib import Path

from audio_mnist.errors import DataError


def inside(root: Path, name: str, *, allowed: bool, said: str, key: str) -> str:
    """A path that a table names, made absolute.

    Args:
        root: that relative ones start at.
        name: as the table has it.
        allowed: whether it may lie outside `root`.
        said: where it is said, for the message.
        key: of the config, that allows it.

    Raises:
        DataError: it lies outside, links followed, and may not; or it is no path at all.
    """
    if "\0" in name:
        raise DataError(f"{said}: the path has a NUL character")
    try:
        path = root / (Path(name).expanduser() if allowed else Path(name))
        real, top = ("", "") if allowed else (_real(path), _real_folder(str(root)))
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"{said}: {name!r} is no path ({error})") from None
    if not allowed and os.path.commonpath([real, top]) != top:
        raise DataError(f"{said}: {name} lies outside {root}; {key}=true allows that")
    return str(path)


@functools.lru_cache(4096)
def _real_folder(folder: str) -> str:
    """Links followed; asked once for all files of a folder, which a table of 100,000 has few of."""
    return os.path.realpath(folder)


def _real(path: Path) -> str:
    if path.name in ("", "..") or path.is_symlink():
        return os.path.realpath(path)
    return os.path.join(_real_folder(os.path.dirname(path)), path.name)


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Unpacks a zip archive, whole or not at all.

    Args:
        archive: the file.
        folder: made, and replaced where it is there.
        max_bytes: of all its files together.
        max_files: that it may have.

    Raises:
        DataError: it is no zip archive, or has paths that leave the folder, links, or more than is allowed.
        OSError: the folder cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > max_files or total > max_bytes:
                raise DataError(
                    f"{archive}: {len(entries)} files of {total} bytes, expected at most {max_files} of {max_bytes}"
                )
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for entry in entries:
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise DataError(f"{archive}: {entry.filename} is a link")
                inside(partial, entry.filename, allowed=False, said=str(archive), key="nothing")
                file.extract(entry, partial)  # which reads no more than the size that was summed above
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: not a zip archive that can be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
