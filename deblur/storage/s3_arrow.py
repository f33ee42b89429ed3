"""pyarrow's way to a bucket: what boto3 has found out, and its keys where pyarrow finds none itself."""

from __future__ import annotations

import re
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any

from pyarrow import fs

if TYPE_CHECKING:
    from deblur.storage.s3 import S3Store

# ruff: noqa: D102 (what the methods do is said in pyarrow's FileSystem)

# Where botocore finds credentials that pyarrow finds in the same place, and renews as well. It
# knows nothing of a profile with a `role_arn` (and its `source_profile` or `credential_source`)
# nor of `aws login`, and of SSO, web identities and processes not all that botocore does.
_FOUND_BY_ARROW = {"env", "shared-credentials-file", "container-role", "iam-role"}
# Which pyarrow forms by itself, from a region.
_AWS_HOST = re.compile(r"s3(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


def filesystem(store: S3Store) -> Any:
    """Return pyarrow's filesystem for the store's bucket. It pickles without secrets."""
    url, region = store.address()
    endpoint = urllib.parse.urlsplit(url)
    options = {"region": region}  # pyarrow follows no bucket into another
    if not _AWS_HOST.fullmatch(endpoint.hostname or ""):
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    credentials = store.credentials()
    if credentials is None or credentials.method in _FOUND_BY_ARROW:
        return fs.S3FileSystem(**options)
    return fs.PyFileSystem(Renewing(store, options))


class Renewing(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow ships no types
    """An S3FileSystem that has boto3's keys of the moment, as a training outlives a session's.

    It pickles as the store, so that a job's arguments hold no keys: each process finds its own.
    """

    def __init__(self, store: S3Store, options: dict[str, Any]) -> None:
        self._store, self._options = store, options
        self._lock = threading.Lock()
        self._keys: dict[str, str | None] = {}
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Renewing, (self._store, self._options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Renewing) and self._place() == other._place()

    def __hash__(self) -> int:
        return hash(self._place())

    def _place(self) -> tuple[str | None, str]:
        return self._store.endpoint, self._store.bucket

    def _now(self) -> Any:
        with self._lock:
            keys = self._store.keys()
            if self._made is None or keys != self._keys:
                self._made, self._keys = fs.S3FileSystem(**self._options, **keys), keys
            return self._made

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path  # as pyarrow's own does, and asks nobody

    def get_file_info(self, paths: list[str]) -> Any:
        return self._now().get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._now().get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._now().create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._now().delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._now().delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._now().delete_dir_contents("", accept_root_dir=True)  # which S3 refuses

    def delete_file(self, path: str) -> None:
        self._now().delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._now().move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._now().copy_file(src, dest)

    # Compression is PyFileSystem's affair.

    def open_input_stream(self, path: str) -> Any:
        return self._now().open_input_stream(path, compression=None)

    def open_input_file(self, path: str) -> Any:
        return self._now().open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._now().open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self._now().open_append_stream(path, compression=None, metadata=metadata)
