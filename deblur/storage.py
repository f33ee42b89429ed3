"""URI -> store: list, read, put whole. The only door to S3.

A store is a folder or a bucket's prefix. A key is a `/`-separated path below it. `put` is whole or
absent: one PUT, or a temporary file and a rename. S3 goes through boto3, because its listing has
the ETag that the ledger records, its chain of credentials is the one that people know, and it obeys
`AWS_ENDPOINT_URL_S3` (pyarrow 26 does not).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from deblur.errors import UsageError

# ruff: noqa: D102, D105, D107 (what the methods of stores do is said once, in Store)

# Stores older than these checksums answer 411 or 501 to pyarrow's and boto3's default. Set before
# either is imported.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

_TEMPORARY_SUFFIX = ".deblur-tmp"


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

        Names that begin with a dot are left out. A prefix that is not there yields nothing.

        Raises:
            UsageError: if the store does not exist (with no prefix), or may not be read.
        """

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the object's bytes. Raises OSError (FileNotFoundError, PermissionError, ...)."""

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the object whole or not at all. Raises OSError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is absent is no error."""

    @abstractmethod
    def arrow(self) -> tuple[Any, str]:
        """Return (pyarrow filesystem, path in it), for the readers and writers that want one."""

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

    def __truediv__(self, prefix: str) -> Store:
        """Return the store of a prefix below this one."""
        if "://" in self.uri:
            return open_store(f"{self.uri.rstrip('/')}/{urllib.parse.quote(prefix)}")
        return open_store(os.path.join(self.uri, prefix))


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open a path, `file://`, `s3://bucket/prefix`, or what else `pyarrow.fs` opens (`gs://`, ...).

    Nothing is contacted yet. Raises UsageError for a URI of no known kind.
    """
    text = os.fspath(uri)
    if not text:
        raise UsageError("a path or URI is expected, received an empty one")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(text)
    if scheme == "file":
        return LocalStore(urllib.parse.unquote(rest))
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return S3Store(text, endpoint)
    return ArrowStore(text)


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class LocalStore(Store):
    """A folder."""

    def __init__(self, path: str) -> None:
        self.root = Path(path).expanduser().absolute()
        self.uri = str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (str(self.root),)

    def _path(self, key: str) -> Path:
        # Keys come from buckets too, where "../../etc/passwd" is a name like any other.
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise OSError(errno.EINVAL, "a key that leads out of the folder", key)
        return self.root / key

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._path(prefix) if prefix else self.root
        if top.is_dir():
            yield from self._walk(top, frozenset())
        elif self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file, not a folder")
        elif not prefix:
            raise UsageError(f"there is no folder {self.root}")

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Yield the entries of a folder, links followed, but not those to a folder `above`."""
        try:
            status = folder.stat()
            above = above | {(status.st_dev, status.st_ino)}
            with os.scandir(folder) as children:
                found = [(child, child.is_dir()) for child in children if child.name[0] != "."]
        except OSError as error:
            raise UsageError(f"cannot list {folder}: {reason(error)}") from error
        # As if a folder's name ended in "/": the order of the whole keys, as S3 has it.
        for child, is_folder in sorted(found, key=lambda pair: pair[0].name + "/" * pair[1]):
            path = Path(child.path)
            try:
                status = path.stat()
            except OSError:
                continue  # a link to nothing, or gone since
            if is_folder:
                if (status.st_dev, status.st_ino) not in above:
                    yield from self._walk(path, above)
            elif stat.S_ISREG(status.st_mode):
                key = path.relative_to(self.root).as_posix()
                try:
                    key.encode()
                except UnicodeEncodeError as error:  # Parquet and S3 could not hold it
                    raise UsageError(f"{key!r} in {self.root}: its name is not UTF-8") from error
                yield Entry(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")

    def read(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                # Else a power cut may leave the name with no content behind it.
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def arrow(self) -> tuple[Any, str]:
        from pyarrow import fs

        return fs.LocalFileSystem(), str(self.root)


_client_lock = threading.Lock()


@lru_cache(maxsize=8)
def _client(endpoint: str | None, attempts: int) -> Any:
    """One client a process and endpoint: they are thread-safe and slow to make."""
    import boto3
    from botocore.config import Config

    # boto3's only layer of retries, with exponential backoff and jitter, 20 s at most.
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


# An object's requests are made up to this often: 7 s of backoff on average, as a store needs that
# is asked too much at once. The first request of a listing shows a wrong endpoint within 2 s.
_ATTEMPTS, _FIRST_ATTEMPTS = 5, 3


_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}


class S3Store(Store):
    """A prefix of a bucket. Credentials come from boto3's default chain in each process."""

    def __init__(self, uri: str, endpoint: str | None) -> None:
        self.uri = uri.rstrip("/")
        self.endpoint = endpoint
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if "@" in self.bucket:  # pyarrow's way; the URI goes into logs and ledgers
            raise UsageError("an S3 URI must not hold credentials; expected s3://bucket/prefix")
        if not self.bucket:
            raise UsageError(f"{uri!r} names no bucket; expected s3://bucket/prefix")
        self.prefix = prefix.strip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri, self.endpoint)

    def __truediv__(self, prefix: str) -> S3Store:
        return S3Store(f"{self.uri}/{prefix}", self.endpoint)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, operation: str, attempts: int = _ATTEMPTS, **arguments: Any) -> Any:
        """Call S3, its errors turned: the place's into UsageError, an object's into OSError."""
        from botocore import exceptions

        try:
            with _client_lock:
                client = _client(self.endpoint, attempts)
            return getattr(client, operation)(Bucket=self.bucket, **arguments)
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise UsageError(
                f"{self.uri}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
            ) from error
        except exceptions.ClientError as error:
            raise self._translated(error, operation, arguments.get("Key", "")) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            text = f"S3 could not be reached: {reason(error)}"
            raise OSError(errno.EIO, text, self.uri) from error
        except (exceptions.BotoCoreError, ValueError) as error:
            # Before any request: no such profile, no such name for a bucket, no URL of an endpoint.
            raise UsageError(f"{self.uri}: {reason(error)}") from error

    def _translated(self, error: Any, operation: str, key: str) -> Exception:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return UsageError(f"{self.uri}: there is no bucket {self.bucket!r}")
        if code in _REFUSED:
            return UsageError(f"{self.uri}: the store refuses these S3 credentials ({code})")
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "no such object", f"s3://{self.bucket}/{key}")
        if status in {401, 403}:
            return PermissionError(errno.EACCES, f"access denied ({code})", self.uri)
        return OSError(errno.EIO, f"S3 answered {code} to {operation}", self.uri)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._name(prefix).rstrip("/")
        base = len(self.prefix) + 1 if self.prefix else 0
        arguments: dict[str, Any] = {
            "Prefix": f"{top}/" if top else "",
            "attempts": _FIRST_ATTEMPTS,
        }
        while True:
            try:
                page = self._call("list_objects_v2", **arguments)
            except OSError as error:
                raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
            for item in page.get("Contents", ()):
                key = item["Key"][base:]
                # A name that ends in "/" is no object, but a folder as the console makes it.
                hidden = any(part.startswith(".") for part in key.split("/"))
                if not hidden and not item["Key"].endswith("/"):
                    yield Entry(key, item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            arguments |= {"ContinuationToken": page["NextContinuationToken"], "attempts": _ATTEMPTS}

    def read(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        for attempt in range(1, _FIRST_ATTEMPTS + 1):
            try:
                data: bytes = self._call("get_object", Key=self._name(key))["Body"].read()
                break
            except BotoCoreError as error:
                # The connection broke, or the body was shorter than announced: boto3 does not
                # try again what it has begun to hand out.
                if attempt == _FIRST_ATTEMPTS:
                    text = f"the download broke off: {reason(error)}"
                    raise OSError(errno.EIO, text, key) from error
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._call("put_object", Key=self._name(key), Body=bytes(data))

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self._name(key))

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", Key=self._name(key))
        except FileNotFoundError:
            return False
        return True

    def arrow(self) -> tuple[Any, str]:
        from pyarrow import fs

        # What boto3 found in the environment or in ~/.aws/config holds for pyarrow as well.
        client = _client(self.endpoint, _ATTEMPTS)
        endpoint = urllib.parse.urlsplit(client.meta.endpoint_url)
        options = {"region": client.meta.region_name or "us-east-1"}
        if not (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        elif client.meta.region_name in {None, "aws-global"}:
            options["region"] = fs.resolve_s3_region(self.bucket)
        return fs.S3FileSystem(**options), f"{self.bucket}/{self.prefix}".rstrip("/")


class ArrowStore(Store):
    """Whatever else pyarrow opens. It has no ETags, so time and size stand in for them."""

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowException, fs

        self.uri = uri.rstrip("/")
        try:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.uri)
        except (ArrowException, OSError, ValueError) as error:
            raise UsageError(
                f"{uri!r} cannot be opened: {reason(error)}; "
                "expected a path, file://, s3://bucket/prefix or gs://bucket/prefix"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.uri,)

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
            hidden = any(part.startswith(".") for part in key.split("/"))
            if info.type == fs.FileType.File and not hidden:
                yield Entry(key, info.size, f"{info.mtime_ns:x}-{info.size:x}")

    def read(self, key: str) -> bytes:
        with self._filesystem.open_input_file(f"{self._root}/{key}") as file:
            data: bytes = file.read()
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = f"{self._root}/{key}"
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}"
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
