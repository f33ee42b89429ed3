"""What S3's answers mean: for the user, and for whether to ask again."""

from __future__ import annotations

import errno
from typing import Any

from deblur.errors import DeblurError, UsageError

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
# Besides what has a status of 500 to 504. Who says so is there, only busy.
BUSY = {
    "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests",
    "RequestTimeout",
}  # fmt: skip


def code(error: Any) -> str:
    """Return the code of a botocore ClientError, such as `NoSuchKey`; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_passing(error: Any) -> bool:
    """Say whether a ClientError is one that may be another the next time."""
    return _status(error) in {429, 500, 502, 503, 504} or code(error) in BUSY


def is_refusal(error: Any) -> bool:
    """Say whether a ClientError may be about the credentials alone: to HEAD there is no code."""
    return _status(error) in {401, 403} or code(error) in {*_REFUSED, "400"}


def translated(
    error: Any, operation: str, *, uri: str, key: str, endpoint: str | None, answered: bool
) -> Exception:
    """Return the error to raise for a ClientError.

    Args:
        error: of botocore.
        operation: of S3, as boto3 names it.
        uri: of the store.
        key: whole name of the object, if it is about one.
        endpoint: that the store has been given.
        answered: whether it has done before what it was asked for: then credentials are not wrong, but over.
    """
    status = _status(error)
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if code(error) == "NoSuchBucket" or (status == 404 and operation == "head_bucket"):
        return UsageError(f"{uri}: there is no bucket {bucket!r}")
    if code(error) in _REFUSED:
        text = f"{uri}: the store refuses these S3 credentials ({code(error)})"
        if answered:
            return DeblurError(
                f"{text}, and took some before; the same command, with fresh ones, goes on where it was"
            )
        return UsageError(text)
    if status == 404 and operation in {"get_object", "head_object"}:
        return FileNotFoundError(errno.ENOENT, "no such object", f"s3://{bucket}/{key}")
    if status == 404:  # of a web server, say
        where = endpoint or "AWS"
        return UsageError(
            f"{uri}: {where} is no S3 endpoint: it answered {code(error)} to {operation}"
        )
    if status in {401, 403}:
        return PermissionError(errno.EACCES, f"access denied ({code(error)})", uri)
    number = errno.ERANGE if status == 416 else errno.EIO
    return OSError(number, f"S3 answered {code(error)} to {operation}", uri)


def _status(error: Any) -> Any:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
