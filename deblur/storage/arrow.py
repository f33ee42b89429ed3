"""Whatever else pyarrow opens: `gs://`, `abfs://`, `hdfs://`."""

from __future__ import annotations

import contextlib
import errno
import urllib.parse
from collections.abc import Iterator
from typing import Any

from deblur.errors import UsageError
from deblur.storage.base import (
    Entry,
    Store,
    changed,
    hidden,
    reason,
    refuse_secrets,
    temporary_name,
    vanished,
)

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)

# By pyarrow's `type_name`: these show an object when its stream is closed, whole or not at all.
# What `FileSystem.move` does there is a copy at best, and Azure without a hierarchical namespace
# has none.
_WHOLE = {"abfs", "gcs", "s3"}
# Else Google's library tries for a quarter of an hour, without a word, what has no network or no
# credentials.
_GCS_PATIENCE_S = 30


class ArrowStore(Store):
    """Whatever else pyarrow opens. It has no ETags, so time and size stand in for them.

    What a URI has after `?` (an endpoint, say) goes along, but is no part of `uri`, to which keys
    are appended.
    """

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowException, fs

        refuse_secrets(uri)
        address, mark, options = uri.partition("?")
        self.uri, self._options = address.rstrip("/"), mark + options
        try:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.uri + self._opened_with())
        except (ArrowException, OSError, ValueError) as error:
            raise UsageError(
                f"{uri!r} cannot be opened: {reason(error)}; "
                "expected a path, file://, s3://bucket/prefix or gs://bucket/prefix"
            ) from error

    def _opened_with(self) -> str:
        patience = "retry_limit_seconds="
        if not self.uri.startswith(("gs://", "gcs://")) or patience in self._options:
            return self._options
        return f"{self._options}{'&' if self._options else '?'}{patience}{_GCS_PATIENCE_S}"

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.uri + self._options,)

    def __truediv__(self, prefix: str) -> ArrowStore:
        return ArrowStore(f"{self.uri}/{urllib.parse.quote(prefix)}{self._options}")

    def address(self) -> str:
        """Return the same for each way to write this place, and with keys as they are: not quoted."""
        kind = self._filesystem.type_name
        if kind == "gcs":  # gs:// or gcs://, as whoever
            return f"gs://{self._root}"
        return f"{kind}:{urllib.parse.unquote(self.uri.partition(':')[2])}"

    def list(self, prefix: str = "") -> Iterator[Entry]:
        from pyarrow import fs

        root = self._root.rstrip("/")
        selector = fs.FileSelector(
            f"{root}/{prefix}".rstrip("/"), recursive=True, allow_not_found=bool(prefix)
        )
        try:
            with _os_errors(root):
                infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
        for info in sorted(infos, key=lambda info: info.path):
            key = info.path[len(root) + 1 :]
            if info.type == fs.FileType.File and not hidden(key):
                yield Entry(key, info.size, _etag(info))

    def read(self, key: str, etag: str | None = None) -> bytes:
        path = f"{self._root}/{key}"
        try:
            with _os_errors(path), self._filesystem.open_input_file(path) as file:
                data: bytes = file.read()
        except FileNotFoundError as error:
            raise error if etag is None else vanished(key) from error
        if etag is not None:
            # Afterwards alone: if it is still the one that was listed, it was so all the while.
            with _os_errors(path):
                info = self._filesystem.get_file_info(path)
            if not _is_file(info):
                raise vanished(key)
            if _etag(info) != etag:
                raise changed(key)
        return data

    def peek(self, key: str, count: int) -> bytes:
        path = f"{self._root}/{key}"
        with _os_errors(path), self._filesystem.open_input_file(path) as file:
            if count < 0:
                file.seek(max(file.size() + count, 0))
            data: bytes = file.read(abs(count))
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = f"{self._root}/{key}"
        with _os_errors(path):
            if self._filesystem.type_name in _WHOLE:
                self._write(path, data)
            else:
                self._write_and_move(path, data)

    def _write(self, path: str, data: bytes | memoryview) -> None:
        with self._filesystem.open_output_stream(path) as file:
            file.write(data)

    def _write_and_move(self, path: str, data: bytes | memoryview) -> None:
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/{temporary_name()}"
        self._filesystem.create_dir(folder, recursive=True)
        try:
            self._write(temporary, data)
            self._filesystem.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError), _os_errors(temporary):
                self._filesystem.delete_file(temporary)
            raise

    def delete(self, key: str) -> None:
        if self.exists(key):
            path = f"{self._root}/{key}"
            with _os_errors(path):
                self._filesystem.delete_file(path)

    def entry(self, key: str) -> Entry | None:
        path = f"{self._root}/{key}"
        with _os_errors(path):
            info = self._filesystem.get_file_info(path)
        return Entry(key, info.size, _etag(info)) if _is_file(info) else None

    def arrow(self) -> tuple[Any, str]:
        return self._filesystem, self._root


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Raise OSError for errors of Arrow's own kind, such as of what a filesystem cannot do."""
    from pyarrow import ArrowException

    try:
        yield
    except ArrowException as error:
        raise OSError(errno.EIO, reason(error), path) from error


def _is_file(info: Any) -> bool:
    from pyarrow import fs

    return bool(info.type == fs.FileType.File)


def _etag(info: Any) -> str:
    return f"{info.mtime_ns:x}-{info.size:x}"
