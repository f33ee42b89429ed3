"""Whatever else pyarrow opens: `gs://`, `abfs://`, `hdfs://`."""

from __future__ import annotations

import contextlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from deblur.errors import UsageError
from deblur.storage.base import Entry, Store, changed, hidden, reason, temporary_name, vanished

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)


_SECRET = re.compile(r"(key|secret|token|password|sig|signature)=", re.IGNORECASE)


class ArrowStore(Store):
    """Whatever else pyarrow opens. It has no ETags, so time and size stand in for them."""

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowException, fs

        self.uri = uri.rstrip("/")
        parts = urllib.parse.urlsplit(uri)
        if parts.password or _SECRET.search(parts.query):  # the URI goes into logs and ledgers
            raise UsageError(
                f"a URI must not hold credentials; expected {parts.scheme}://bucket/prefix, and "
                "credentials in the environment"
            )
        try:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.uri)
        except (ArrowException, OSError, ValueError) as error:
            raise UsageError(
                f"{uri!r} cannot be opened: {reason(error)}; "
                "expected a path, file://, s3://bucket/prefix or gs://bucket/prefix"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.uri,)

    def __truediv__(self, prefix: str) -> ArrowStore:
        return ArrowStore(f"{self.uri}/{urllib.parse.quote(prefix)}")

    def list(self, prefix: str = "") -> Iterator[Entry]:
        from pyarrow import fs

        root = self._root.rstrip("/")
        selector = fs.FileSelector(
            f"{root}/{prefix}".rstrip("/"), recursive=True, allow_not_found=bool(prefix)
        )
        try:
            infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
        for info in sorted(infos, key=lambda info: info.path):
            key = info.path[len(root) + 1 :]
            if info.type == fs.FileType.File and not hidden(key):
                yield Entry(key, info.size, _etag(info))

    def read(self, key: str, etag: str | None = None) -> bytes:
        self._check(key, etag)
        with self._filesystem.open_input_file(f"{self._root}/{key}") as file:
            data: bytes = file.read()
        self._check(key, etag)
        return data

    def _check(self, key: str, etag: str | None) -> None:
        """Raise OSError unless the object is the one with that ETag, if any is given."""
        if etag is not None:
            if not self.exists(key):
                raise vanished(key)
            if _etag(self._filesystem.get_file_info(f"{self._root}/{key}")) != etag:
                raise changed(key)

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = f"{self._root}/{key}"
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/{temporary_name()}"
        self._filesystem.create_dir(folder, recursive=True)
        try:
            with self._filesystem.open_output_stream(temporary) as file:
                file.write(data)
            self._filesystem.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(temporary)
            raise

    def delete(self, key: str) -> None:
        if self.exists(key):
            self._filesystem.delete_file(f"{self._root}/{key}")

    def exists(self, key: str) -> bool:
        from pyarrow import fs

        return bool(self._filesystem.get_file_info(f"{self._root}/{key}").type == fs.FileType.File)

    def arrow(self) -> tuple[Any, str]:
        return self._filesystem, self._root


def _etag(info: Any) -> str:
    return f"{info.mtime_ns:x}-{info.size:x}"
