"""Buckets of S3, and of what speaks its language."""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from deblur.errors import DeblurError, UsageError
from deblur.storage import s3_errors
from deblur.storage.base import Entry, Store, changed, hidden, reason, refuse_secrets, vanished

# ruff: noqa: D102 (what the methods of stores do is said once, in Store)

# Stores older than these checksums answer 411 or 501 to pyarrow's and boto3's default. Set before
# either is imported.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
# A machine's role is asked for once and for 1 s otherwise; many workers that start at the same
# moment find the metadata service slower than that. Not more: without a role, all of it is waited
# for.
os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "2")
os.environ.setdefault("AWS_METADATA_SERVICE_TIMEOUT", "2")

# A request is made again for so long: a store that has answered before is waited for, through
# throttling or a restart; one that never has, because its endpoint is wrong, shows it soon.
_PATIENCE_S, _FIRST_PATIENCE_S = 90.0, 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_client_lock = threading.Lock()
_answered: set[str | None] = set()  # endpoints; a store that is pickled takes the news along
_signed = threading.local()  # `region`: for which this thread's last request was signed


class _Connection(NamedTuple):
    client: Any
    session: Any


@lru_cache(maxsize=8)
def _client(endpoint: str | None) -> _Connection:
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
    session = boto3.session.Session()
    client = session.client("s3", endpoint_url=endpoint, config=config)
    client.meta.events.register("before-sign.s3", _note_region)
    return _Connection(client, session)


def _connect(endpoint: str | None, stale: _Connection | None = None) -> _Connection:
    """Return a connection other than the one that is `stale`: a new one looks for credentials anew."""
    with _client_lock:
        if stale is not None and _client(endpoint) is stale:  # no other thread has seen to it
            _client.cache_clear()
        return _client(endpoint)


def _note_region(request: Any, region_name: str, **_: Any) -> None:
    _signed.region = request.context.get("signing", {}).get("region") or region_name


class S3Store(Store):
    """A prefix of a bucket. Credentials come from boto3's default chain in each process."""

    def __init__(self, uri: str, endpoint: str | None, answered: bool = False) -> None:
        refuse_secrets(uri)
        self.endpoint = endpoint
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise UsageError(f"{uri!r} names no bucket; expected s3://bucket/prefix")
        self.prefix = prefix.strip("/")
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")  # one place, one URI
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
            DeblurError: if a store that has answered before is not to be reached any more, or its
                credentials are over.
        """
        from botocore import exceptions
        from urllib3.exceptions import HTTPError

        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        connection = stale = None
        failure: Exception
        last: Exception
        while True:
            try:
                connection = _connect(self.endpoint, stale)
                call = getattr(connection.client, operation)
                result = take(call(Bucket=self.bucket, **arguments))
                _answered.add(self.endpoint)
                return result
            except (
                exceptions.NoCredentialsError,
                exceptions.PartialCredentialsError,
                exceptions.CredentialRetrievalError,
                exceptions.MetadataRetrievalError,
            ) as error:
                failure = UsageError(
                    f"{self.uri}: no S3 credentials were found ({reason(error)}); set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
                )
                if not self._may_come(error):
                    raise failure from error
                stale, last = connection, error
            except exceptions.ClientError as error:
                failure = s3_errors.translated(
                    error, operation, uri=self.uri, key=arguments.get("Key", ""), endpoint=self.endpoint,
                    answered=self.endpoint in _answered,
                )  # fmt: skip
                if not s3_errors.is_passing(error):
                    if not s3_errors.is_refusal(error):
                        _answered.add(self.endpoint)
                    raise failure from error
                if s3_errors.code(error) in s3_errors.BUSY:
                    _answered.add(self.endpoint)
                last = error
            except exceptions.ConnectionError as error:
                failure, last = self._unreachable(error), error
            # urllib3's is what boto3 makes of an error of TLS in the midst of a body: nothing.
            except (exceptions.HTTPClientError, exceptions.IncompleteReadError, HTTPError) as error:
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

    def _may_come(self, error: Exception) -> bool:
        """Say whether credentials that were not found may be found the next time.

        The service that tells of them may have been slow; files and variables stay as they are.
        """
        from botocore import exceptions

        asked = not isinstance(error, exceptions.PartialCredentialsError)
        if isinstance(error, exceptions.NoCredentialsError):
            asked = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
        return asked and self.endpoint in _answered

    def _unreachable(self, error: Exception) -> DeblurError:
        if self.endpoint not in _answered:
            return UsageError(f"{self.uri}: S3 could not be reached: {reason(error)}")
        return DeblurError(
            f"{self.uri}: S3 answered before, and could not be reached for {_PATIENCE_S:.0f} s: "
            f"{reason(error)}; the same command goes on where it was"
        )

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
            return _body(answer)

        try:
            data: bytes = self._call("get_object", take, Key=self._name(key))
        except FileNotFoundError as error:
            raise error if etag is None else vanished(key) from error
        return data

    def peek(self, key: str, count: int) -> bytes:
        span = f"bytes=0-{count - 1}" if count > 0 else f"bytes={count}"
        try:
            data: bytes = self._call("get_object", _body, Key=self._name(key), Range=span)
        except OSError as error:
            if error.errno == errno.ERANGE:
                return b""  # of an empty object no range can be had
            raise
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._call(
            "put_object", Key=self._name(key), Body=bytes(data), ContentType=_content_type(key)
        )

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self._name(key))

    def entry(self, key: str) -> Entry | None:
        try:
            answer = self._call("head_object", Key=self._name(key))
        except FileNotFoundError:
            return None
        return Entry(key, answer["ContentLength"], answer["ETag"].strip('"'))

    def arrow(self) -> tuple[Any, str]:
        from deblur.storage import s3_arrow

        return s3_arrow.filesystem(self), f"{self.bucket}/{self.prefix}".rstrip("/")

    def address(self) -> tuple[str, str]:
        """Return the URL and the region that boto3 goes to for this bucket, once it has been there."""
        # Signed for the region to which it was sent, even if the answer is that we may not ask.
        with contextlib.suppress(OSError):
            self._call("head_bucket")
        return _connect(self.endpoint).client.meta.endpoint_url, _signed.region

    def credentials(self) -> Any:
        """Return boto3's credentials, if it has any: they renew themselves, and are not to be sent."""
        return _connect(self.endpoint).session.get_credentials()

    def keys(self) -> dict[str, str | None]:
        """Return the keys of the moment, as pyarrow names them. Raises OSError."""
        from botocore import exceptions

        try:
            credentials = self.credentials()
            if credentials is None:
                return {}
            keys = credentials.get_frozen_credentials()
        except (exceptions.BotoCoreError, exceptions.ClientError) as error:
            raise PermissionError(errno.EACCES, f"no S3 credentials: {reason(error)}") from error
        return {
            "access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.token,
        }  # fmt: skip


def _content_type(key: str) -> str:
    # By the extension alone: whole names are taken for URLs, and keys may be anything.
    guess = mimetypes.guess_type("_" + os.path.splitext(key)[1], strict=False)[0]
    return guess or "application/octet-stream"


def _body(answer: Any) -> bytes:
    with contextlib.closing(answer["Body"]) as body:  # else one that breaks off stays open
        data: bytes = body.read()
    return data
