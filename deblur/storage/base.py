"""What a store is, whatever it is made of."""

from __future__ import annotations

import contextlib
import errno
import re
import urllib.parse
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
            UsageError: if the store does not exist (with no prefix, caused by FileNotFoundError), or
                may not be read.
        """

    @abstractmethod
    def read(self, key: str, etag: str | None = None) -> bytes:
        """Return the object's bytes; given an `etag`, only if it is still the one that was listed.

        Raises OSError (FileNotFoundError, PermissionError, ...).
        """

    @abstractmethod
    def peek(self, key: str, count: int) -> bytes:
        """Return the object's first `count` bytes, or, if it is negative, its last; fewer if there are fewer.

        Raises OSError.
        """

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object whole or not at all; on a disk it has the mode of what it replaces. Raises OSError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is absent is no error."""

    @abstractmethod
    def arrow(self) -> tuple[Any, str]:
        """Return (pyarrow filesystem, path in it), for the readers and writers that want one."""

    @abstractmethod
    def __truediv__(self, prefix: str) -> Store:
        """Return the store of a prefix below this one."""

    @abstractmethod
    def entry(self, key: str) -> Entry | None:
        """Return the object as a listing shows it, or None if it is not there. Raises OSError."""

    def exists(self, key: str) -> bool:
        """Say whether the object is there. Raises OSError."""
        return self.entry(key) is not None

    def make_ready(self) -> None:
        """Make sure that objects can be put here, before hours are spent. Raises UsageError.

        Where nothing may be deleted, an empty object stays, whose name listings leave out.
        """
        with self.probed():
            pass

    @contextlib.contextmanager
    def probed(self) -> Iterator[str]:
        """Have an empty object here for a while, and yield its key. Raises UsageError if none can be put."""
        probe = f".deblur-probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
        except OSError as error:
            raise UsageError(f"cannot write to {self.uri}: {reason(error)}") from error
        try:
            yield probe
        finally:
            # A bucket to write to once has no right to delete, and takes results all the same.
            with contextlib.suppress(OSError):
                self.delete(probe)


_SECRET = re.compile(r"(key|secret|token|password|sig|signature)=", re.IGNORECASE)


def refuse_secrets(uri: str) -> None:
    """Raise UsageError if a URI holds credentials, as it goes into logs, ledgers and jobs' arguments."""
    try:
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme == "s3":
            # pyarrow's way. What follows the secret's first "/" is taken for a key, and "?" is a
            # character of keys; an access point is arn:aws:s3:...
            host = parts.netloc
            found = "@" in host or (":" in host and not host.startswith("arn:"))
        else:
            found = bool(parts.password or _SECRET.search(parts.query))
    except ValueError:  # whose text may have the secret
        raise UsageError("a URI is malformed; expected s3://bucket/prefix or the like") from None
    if found:
        raise UsageError(
            f"a URI must not hold credentials; expected {parts.scheme}://bucket/prefix, and "
            "credentials in the environment"
        )


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
