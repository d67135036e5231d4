"""Paths that come from outside, in a table or an archive. None may leave its root unless that is allowed."""

import functools
import os
import shutil
import stat
import zipfile
from pathlib import Path

from audio_mnist.errors import DataError

_NETWORK = (
    *("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.ceph", "fuse.sshfs", "afs", "glusterfs"),
    *("fuse.gluster", "panfs", "pvfs", "orangefs", "wekafs", "9p", "fuse.juicefs", "fuse.s3fs"),
)


def inside(root: Path, name: str, *, allowed: bool, source: str, key: str) -> str:
    """Make a path from a table absolute.

    Args:
        root: folder that relative paths start at.
        name: the path as the table has it.
        allowed: whether it may lie outside `root`.
        source: file and line, for the message.
        key: config key that allows paths outside.

    Raises:
        DataError: the path lies outside (links followed) and may not, or is not a path.
    """
    if "\0" in name:
        raise DataError(f"{source}: the path has a NUL character")
    try:
        path = root / (Path(name).expanduser() if allowed else Path(name))
        real, top = ("", "") if allowed else (_real(path), _real_folder(str(root)))
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"{source}: {name!r} is not a path ({error})") from None
    if not allowed and os.path.commonpath([real, top]) != top:
        raise DataError(f"{source}: {name} lies outside {root}; {key}=true allows that")
    return str(path)


@functools.lru_cache(4096)
def _real_folder(folder: str) -> str:
    """Follow links; once per folder, since a table of 100,000 files has few."""
    return os.path.realpath(folder)


def _real(path: Path) -> str:
    if path.name in ("", "..") or path.is_symlink():
        return os.path.realpath(path)
    return os.path.join(_real_folder(os.path.dirname(path)), path.name)


def network_file_system(path: Path) -> str:
    """Return the kind of the network file system that a path lies on, "" for a local one or where Linux is not."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = os.path.realpath(path)
    # of two mounts on one point the later one counts
    above = [
        (point, kind) for point, kind in mounts if os.path.commonpath([real, _unescaped(point)]) == _unescaped(point)
    ]
    kind = max(reversed(above), key=lambda one: len(one[0]), default=("", ""))[1]
    return kind if kind.startswith(_NETWORK) else ""


def _unescaped(point: str) -> str:
    return point.replace("\\040", " ")


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Unpack a zip archive, whole or not at all.

    Args:
        archive: the file.
        folder: target; replaced where it exists.
        max_bytes: largest total size of its files.
        max_files: largest number of files.

    Raises:
        DataError: the file is not a zip archive; it holds paths that leave the folder, links, or too much.
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
                inside(partial, entry.filename, allowed=False, source=str(archive), key="nothing")
                file.extract(entry, partial)  # reads no more than the size that was summed above
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: not a zip archive that can be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
