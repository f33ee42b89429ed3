"""Buckets of S3, and of what speaks its language."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from deblur.errors import DeblurError, UsageError
from deblur.storage.base import Entry, Store, changed, hidden, reason, vanished

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)

# Stores older than these checksums answer 411 or 501 to pyarrow's and boto3's default. Set before
# either is imported.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

# A request is made again for so long: a store that has answered before is waited for, through
# throttling or a restart; one that never has, because its endpoint is wrong, shows it soon.
_PATIENCE_S, _FIRST_PATIENCE_S = 90.0, 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
# Besides what has a status of 500 to 504.
_PASSING = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout"}

_client_lock = threading.Lock()
_answered: set[str | None] = set()  # endpoints; a store that is pickled takes the news along


@lru_cache(maxsize=8)
def _client(endpoint: str | None) -> Any:
    """One client a process and endpoint: they are thread-safe and slow to make."""
    import boto3
    from botocore.config import Config

    # It does not try again itself: it could not where a body breaks off, and one layer is enough.
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


class S3Store(Store):
    """A prefix of a bucket. Credentials come from boto3's default chain in each process."""

    def __init__(self, uri: str, endpoint: str | None, answered: bool = False) -> None:
        self.uri = uri.rstrip("/")
        self.endpoint = endpoint
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if "@" in self.bucket:  # pyarrow's way; the URI goes into logs and ledgers
            raise UsageError("an S3 URI must not hold credentials; expected s3://bucket/prefix")
        if not self.bucket:
            raise UsageError(f"{uri!r} names no bucket; expected s3://bucket/prefix")
        self.prefix = prefix.strip("/")
        if answered:
            _answered.add(endpoint)

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri, self.endpoint, self.endpoint in _answered)

    def __truediv__(self, prefix: str) -> S3Store:
        return S3Store(f"{self.uri}/{prefix}", self.endpoint)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(
        self, operation: str, take: Callable[[Any], Any] = lambda answer: answer, **arguments: Any
    ) -> Any:
        """Call S3 and return what `take` makes of the answer. The only place that tries again.

        Raises:
            UsageError: if the place or the credentials are wrong.
            OSError: if it is about this object.
            DeblurError: if a store that has answered before is not to be reached any more.
        """
        from botocore import exceptions

        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                with _client_lock:
                    client = _client(self.endpoint)
                result = take(getattr(client, operation)(Bucket=self.bucket, **arguments))
                _answered.add(self.endpoint)
                return result
            except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
                raise UsageError(
                    f"{self.uri}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
                ) from error
            except exceptions.ClientError as error:
                failure = self._translated(error, operation, arguments.get("Key", ""))
                if not _passing(error):
                    _answered.add(self.endpoint)
                    raise failure from error
                last: Exception = error
            except exceptions.ConnectionError as error:
                failure, last = self._unreachable(error), error
            except (exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
                text = f"the connection broke off: {reason(error)}"
                failure, last = OSError(errno.EIO, text, self.uri), error
            except (exceptions.BotoCoreError, ValueError) as error:
                # Before any request: no such profile, no such name for a bucket, no URL of an
                # endpoint.
                raise UsageError(f"{self.uri}: {reason(error)}") from error
            patience_s = _PATIENCE_S if self.endpoint in _answered else _FIRST_PATIENCE_S
            if time.monotonic() - started + pause_s > patience_s:
                raise failure from last
            time.sleep(pause_s * random.uniform(0.5, 1))  # not all workers at the same moment
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _unreachable(self, error: Exception) -> DeblurError:
        if self.endpoint not in _answered:
            return UsageError(f"{self.uri}: S3 could not be reached: {reason(error)}")
        return DeblurError(
            f"{self.uri}: S3 answered before, and could not be reached for {_PATIENCE_S:.0f} s: "
            f"{reason(error)}; the same command goes on where it was"
        )

    def _translated(self, error: Any, operation: str, key: str) -> Exception:
        code = _code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return UsageError(f"{self.uri}: there is no bucket {self.bucket!r}")
        if code in _REFUSED:
            return UsageError(f"{self.uri}: the store refuses these S3 credentials ({code})")
        if status == 404 and operation in {"get_object", "head_object"}:
            return FileNotFoundError(errno.ENOENT, "no such object", f"s3://{self.bucket}/{key}")
        if status == 404:  # of a web server, say
            where = self.endpoint or "AWS"
            return UsageError(
                f"{self.uri}: {where} is no S3 endpoint: it answered {code} to {operation}"
            )
        if status in {401, 403}:
            return PermissionError(errno.EACCES, f"access denied ({code})", self.uri)
        return OSError(errno.EIO, f"S3 answered {code} to {operation}", self.uri)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._name(prefix).rstrip("/")
        base = len(self.prefix) + 1 if self.prefix else 0
        arguments: dict[str, Any] = {"Prefix": f"{top}/" if top else ""}
        while True:
            try:
                page = self._call("list_objects_v2", **arguments)
            except OSError as error:
                raise UsageError(f"cannot list {self.uri}: {reason(error)}") from error
            for item in page.get("Contents", ()):
                key = item["Key"][base:]
                # A name that ends in "/" is no object, but a folder as the console makes it.
                if not hidden(key) and not item["Key"].endswith("/"):
                    yield Entry(key, item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            arguments |= {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, key: str, etag: str | None = None) -> bytes:
        def take(answer: Any) -> bytes:
            # Here and not by If-Match, which not every store obeys.
            if etag is not None and answer.get("ETag", "").removeprefix("W/").strip('"') != etag:
                answer["Body"].close()
                raise changed(key)
            data: bytes = answer["Body"].read()
            return data

        try:
            data: bytes = self._call("get_object", take, Key=self._name(key))
        except FileNotFoundError as error:
            raise error if etag is None else vanished(key) from error
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
        client = _client(self.endpoint)
        endpoint = urllib.parse.urlsplit(client.meta.endpoint_url)
        options = {"region": client.meta.region_name or "us-east-1"}
        if not (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        elif client.meta.region_name in {None, "aws-global"}:
            options["region"] = fs.resolve_s3_region(self.bucket)
        return fs.S3FileSystem(**options), f"{self.bucket}/{self.prefix}".rstrip("/")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _passing(error: Any) -> bool:
    """Say whether an answer of S3 is one that may be another the next time."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in {429, 500, 502, 503, 504} or _code(error) in _PASSING
