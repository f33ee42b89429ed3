"""Folders."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deblur.errors import UsageError
from deblur.storage.base import Entry, Store, changed, reason, temporary_name, vanished

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)


class LocalStore(Store):
    """A folder."""

    def __init__(self, path: str) -> None:
        try:
            self.root = Path(path).expanduser().absolute()
        except RuntimeError as error:  # whose text does not say what it is about
            raise UsageError(
                f"{path}: no user's home is known by this name; a folder that is called so is ./{path}"
            ) from error
        self.uri = str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (str(self.root),)

    def __truediv__(self, prefix: str) -> LocalStore:
        return LocalStore(os.path.join(self.uri, prefix))

    def _path(self, key: str) -> Path:
        # Keys come from buckets too, where "../../etc/passwd" is a name like any other.
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise OSError(errno.EINVAL, "a key that leads out of the folder", key)
        return self.root / key

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._path(prefix) if prefix else self.root
        try:
            found, root = (_status(path) for path in (top, self.root))
        except OSError as error:
            raise UsageError(f"cannot list {top}: {reason(error)}") from error
        if found and stat.S_ISDIR(found.st_mode):
            yield from self._walk(top, frozenset())
        elif root and not stat.S_ISDIR(root.st_mode):
            raise UsageError(f"{self.root} is a file, not a folder")
        elif not prefix:
            raise UsageError(f"there is no folder {self.root}") from FileNotFoundError()

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Yield the entries of a folder, links followed, but not those to a folder `above`.

        What is there and may not be looked at has no ETag: who reads it learns why.
        """
        try:
            status = folder.stat()
            above = above | {(status.st_dev, status.st_ino)}
            with os.scandir(folder) as children:
                # As if a folder's name ended in "/": the order of the whole keys, as S3 has it.
                # Names alone, as there may be a million.
                names = sorted(
                    child.name + "/" * _is_folder(child)
                    for child in children
                    if child.name[0] != "."
                )
        except OSError as error:
            # At the top of each ext4 volume, and root's alone: a volume would not be of use otherwise.
            if folder.name == "lost+found" and isinstance(error, PermissionError):
                return
            raise UsageError(f"cannot list {folder}: {reason(error)}") from error
        for name in names:
            path = folder / name
            key = path.relative_to(self.root).as_posix()
            try:
                found = _status(path)
            except OSError as error:
                if name.endswith("/"):
                    raise UsageError(f"cannot list {path}: {reason(error)}") from error
                yield Entry(key, 0, "")
                continue
            if found is None:
                continue
            if name.endswith("/"):
                if (found.st_dev, found.st_ino) not in above:
                    yield from self._walk(path, above)
            elif stat.S_ISREG(found.st_mode):
                yield Entry(key, found.st_size, _etag(found))

    def read(self, key: str, etag: str | None = None) -> bytes:
        try:
            with self._path(key).open("rb") as file:
                before = os.fstat(file.fileno())
                data = file.read()
                after = os.fstat(file.fileno())
        except FileNotFoundError as error:
            raise error if etag is None else vanished(key) from error
        if etag is not None and {_etag(before), _etag(after)} != {etag}:
            raise changed(key)
        return data

    def peek(self, key: str, count: int) -> bytes:
        with self._path(key).open("rb") as file:
            if count < 0:
                file.seek(max(os.fstat(file.fileno()).st_size + count, 0))
            return file.read(abs(count))

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(temporary_name())
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):  # there is no old file, or the disk has no modes
                    os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
                file.write(data)
                file.flush()
                # Else a power cut may leave the name with no content behind it.
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                text = "the disk is full: No space left on device"
                raise OSError(errno.ENOSPC, text, str(path)) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def entry(self, key: str) -> Entry | None:
        path = self._path(key)
        if not path.is_file():
            return None
        status = path.stat()
        return Entry(key, status.st_size, _etag(status))

    def arrow(self) -> tuple[Any, str]:
        from pyarrow import fs

        return fs.LocalFileSystem(), str(self.root)


# Of a link to nothing, through a file, or to itself; or of what is gone since.
_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def _status(path: Path) -> os.stat_result | None:
    """Return what is there, links followed, or None if nothing is. Raises OSError if that is not to be known."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:
        return False  # a link whose target cannot be seen


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"
