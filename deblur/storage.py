"""URI -> store: list, read, put whole. The only door to S3.

A store is a folder or a bucket's prefix. A key is a `/`-separated path below it. `put` is whole or absent: one PUT,
or a temporary file and a rename. S3 goes through boto3, because its listing has the ETag that the ledger records, its
chain of credentials is the one that people know, and it obeys `AWS_ENDPOINT_URL_S3` (pyarrow 26 does not).
"""

from __future__ import annotations

import os
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

# Stores older than these checksums answer 411 or 501 to pyarrow's and boto3's default. Set before either is imported.
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
        """Yield what lies below `prefix`, recursively, without names that begin with a dot.

        Raises:
            UsageError: if the place does not exist or may not be read.
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
        """Return (pyarrow filesystem, path in it), for the readers and writers that want one (Ray's, Parquet's)."""

    def exists(self, key: str) -> bool:
        """Say whether the object is there."""
        try:
            self.read(key)
        except FileNotFoundError:
            return False
        return True

    def make_ready(self) -> None:
        """Make sure that objects can be put here, before hours of work are spent. Raises UsageError."""
        probe = f".deblur-probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UsageError(f"cannot write to {self.uri}: {reason(error)}") from error

    def __truediv__(self, prefix: str) -> Store:
        """Return the store of a prefix below this one."""
        return open_store(self.uri.rstrip("/") + "/" + urllib.parse.quote(prefix) if "://" in self.uri else
                          os.path.join(self.uri, prefix))


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open a path, `file://`, `s3://bucket/prefix`, or what else `pyarrow.fs` opens (`gs://`, `hdfs://`, ...).

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
        return S3Store(text, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
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
        return self.root / key

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self.root / prefix
        if not self.root.is_dir():
            what = "is a file, not a folder" if self.root.exists() else "no such folder"
            raise UsageError(f"{self.root}: {what}")
        if top.is_dir():
            yield from self._walk(top)

    def _walk(self, folder: Path) -> Iterator[Entry]:
        try:
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        except PermissionError as error:
            raise UsageError(f"{folder}: {reason(error)}") from error
        for child in children:
            if child.name.startswith("."):
                continue
            if child.is_dir(follow_symlinks=False):
                yield from self._walk(Path(child.path))
            elif child.is_file():
                status = child.stat()
                key = Path(child.path).relative_to(self.root).as_posix()
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
                os.fsync(file.fileno())  # else a power cut may leave the name with no content behind it
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
def _client(endpoint: str | None) -> Any:
    """One client a process and endpoint: they are thread-safe and slow to make."""
    import boto3
    from botocore.config import Config

    # boto3's only layer of retries: 5 attempts, exponential backoff with jitter, 20 s at most.
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


class S3Store(Store):
    """A prefix of a bucket. Credentials come from boto3's default chain in each process."""

    def __init__(self, uri: str, endpoint: str | None) -> None:
        self.uri = uri.rstrip("/")
        self.endpoint = endpoint
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise UsageError(f"{uri!r} names no bucket; expected s3://bucket/prefix")
        self.prefix = prefix.strip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri, self.endpoint)

    def __truediv__(self, prefix: str) -> S3Store:
        return S3Store(f"{self.uri}/{prefix}", self.endpoint)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, operation: str, **arguments: Any) -> Any:
        """Call S3 and turn its errors into the standard library's: the place's into UsageError, an object's into OSError."""
        from botocore import exceptions

        try:
            with _client_lock:
                client = _client(self.endpoint)
            return getattr(client, operation)(Bucket=self.bucket, **arguments)
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise UsageError(
                f"{self.uri}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or give this machine a role"
            ) from error
        except exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "NoSuchBucket" or (operation == "head_bucket" and status == 404):
                raise UsageError(f"{self.uri}: there is no bucket {self.bucket!r}") from error
            if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}:
                raise UsageError(f"{self.uri}: the store refuses these S3 credentials ({code})") from error
            if code in {"NoSuchKey", "404"} or status == 404:
                raise FileNotFoundError(2, "no such object", f"s3://{self.bucket}/{arguments.get('Key', '')}") from error
            if status in {401, 403}:
                raise PermissionError(13, f"access denied ({code})", self.uri) from error
            raise OSError(5, f"S3 answered {code} to {operation}", self.uri) from error
        except exceptions.BotoCoreError as error:
            raise OSError(5, f"S3 could not be reached: {reason(error)}", self.uri) from error

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._name(prefix)
        token: dict[str, str] = {}
        base = len(self.prefix) + 1 if self.prefix else 0
        while True:
            try:
                page = self._call("list_objects_v2", Prefix=f"{top.rstrip('/')}/" if top else "", **token)
            except OSError as error:
                raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
            for item in page.get("Contents", ()):
                key = item["Key"][base:]
                if not key.endswith("/") and not any(part.startswith(".") for part in key.split("/")):
                    yield Entry(key, item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            data: bytes = self._call("get_object", Key=self._name(key))["Body"].read()
        except BotoCoreError as error:  # the connection broke, or the body was shorter than announced
            raise OSError(5, f"the download broke off: {reason(error)}", key) from error
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

        options: dict[str, Any] = {}
        if self.endpoint:
            endpoint = urllib.parse.urlsplit(self.endpoint)
            options = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
            options["region"] = _client(self.endpoint).meta.region_name or "us-east-1"
        else:
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
                f"{uri!r} cannot be opened: {reason(error)}; expected a path, file://, s3://bucket/prefix or gs://bucket/prefix"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.uri,)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        from pyarrow import fs

        root = self._root.rstrip("/")
        selector = fs.FileSelector(f"{root}/{prefix}".rstrip("/"), recursive=True, allow_not_found=bool(prefix))
        try:
            infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
        for info in infos:
            key = info.path[len(root) + 1 :]
            if info.type == fs.FileType.File and not any(part.startswith(".") for part in key.split("/")):
                yield Entry(key, info.size, f"{info.mtime_ns:x}-{info.size:x}")

    def read(self, key: str) -> bytes:
        with self._filesystem.open_input_file(f"{self._root}/{key}") as file:
            data: bytes = file.read()
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = f"{self._root}/{key}"
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(path) as file:
            file.write(data)

    def delete(self, key: str) -> None:
        if self.exists(key):
            self._filesystem.delete_file(f"{self._root}/{key}")

    def exists(self, key: str) -> bool:
        from pyarrow import fs

        return bool(self._filesystem.get_file_info(f"{self._root}/{key}").type == fs.FileType.File)

    def arrow(self) -> tuple[Any, str]:
        return self._filesystem, self._root
