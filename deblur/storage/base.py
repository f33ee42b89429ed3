"""What a store is, whatever it is made of."""

from __future__ import annotations

import errno
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deblur.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as the listing shows it. `etag` changes whenever the content does."""

    key: str
    size_bytes: int
    etag: str


class Store(ABC):
    """A folder or a bucket's prefix. Stores pickle as their URI, never with a secret."""

    uri: str

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what lies below the folder `prefix`, recursively, in the order of the keys.

        A bucket's order is its store's own: SeaweedFS, for one, has `a/b` before `a-b`. Names that
        begin with a dot are left out. A prefix that is not there yields nothing. A disk's name that
        is not UTF-8 has its odd bytes as surrogates, as `os.listdir` has them: neither Parquet nor
        S3 can hold such a key, so whoever lists photos refuses it.

        Raises:
            UsageError: if the store does not exist (with no prefix), or may not be read.
        """

    @abstractmethod
    def read(self, key: str, etag: str | None = None) -> bytes:
        """Return the object's bytes; given an `etag`, only if it is still the one that was listed.

        Raises OSError (FileNotFoundError, PermissionError, ...).
        """

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object whole or not at all. Raises OSError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is absent is no error."""

    @abstractmethod
    def arrow(self) -> tuple[Any, str]:
        """Return (pyarrow filesystem, path in it), for the readers and writers that want one."""

    @abstractmethod
    def __truediv__(self, prefix: str) -> Store:
        """Return the store of a prefix below this one."""

    def exists(self, key: str) -> bool:
        """Say whether the object is there."""
        try:
            self.read(key)
        except FileNotFoundError:
            return False
        return True

    def make_ready(self) -> None:
        """Make sure that objects can be put here, before hours are spent. Raises UsageError."""
        probe = f".deblur-probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UsageError(f"cannot write to {self.uri}: {reason(error)}") from error


def hidden(key: str) -> bool:
    """Say whether listings leave a key out. What leads elsewhere is shown, to be refused."""
    return any(part.startswith(".") and part not in {".", ".."} for part in key.split("/"))


def temporary_name() -> str:
    """Return a name, hidden from listings, for what is not whole yet."""
    return f".{uuid.uuid4().hex}.deblur-tmp"


def changed(key: str) -> OSError:
    """Return the error of an object that has another ETag by now."""
    return OSError(errno.ESTALE, "changed since it was listed", key)


def vanished(key: str) -> FileNotFoundError:
    """Return the error of an object that was listed and is not there."""
    return FileNotFoundError(errno.ENOENT, "vanished since it was listed", key)


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
