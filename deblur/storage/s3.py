"""Buckets of S3, and of what speaks its language."""

from __future__ import annotations

import errno
import os
import threading
import urllib.parse
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from deblur.errors import UsageError
from deblur.storage.base import Entry, Store, reason

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)

# Stores older than these checksums answer 411 or 501 to pyarrow's and boto3's default. Set before
# either is imported.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

# An object's requests are made up to this often: 7 s of backoff on average, as a store needs that
# is asked too much at once. The first request of a listing shows a wrong endpoint within 2 s.
_ATTEMPTS, _FIRST_ATTEMPTS = 5, 3
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}

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
