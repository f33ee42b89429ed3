"""URI -> store: list, read, put whole. The only door to S3.

A store is a folder or a bucket's prefix. A key is a `/`-separated path below it. `put` is whole or
absent: one PUT, or a temporary file and a rename. S3 goes through boto3, because its listing has
the ETag that the ledger records, its chain of credentials is the one that people know, and it obeys
`AWS_ENDPOINT_URL_S3` (pyarrow 26 does not).
"""

from __future__ import annotations

import os
import re
import urllib.parse
from contextlib import suppress
from pathlib import Path

from deblur.errors import UsageError
from deblur.storage.arrow import ArrowStore
from deblur.storage.base import Entry, Store, reason, refuse_secrets
from deblur.storage.local import LocalStore
from deblur.storage.s3 import S3Store

__all__ = [
    "ArrowStore", "Entry", "LocalStore", "S3Store", "Store", "address", "below", "open_object", "open_parent",
    "open_store", "reason", "refuse_secrets",
]  # fmt: skip

_MISSPELT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a letter alone is a drive's


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open a path, `file://`, `s3://bucket/prefix`, or what else `pyarrow.fs` opens (`gs://`, ...).

    Nothing is contacted yet. Raises UsageError for a URI of no known kind.
    """
    text = os.fspath(uri)
    if not text:
        raise UsageError("a path or URI is expected, received an empty one")
    scheme, separator, rest = text.partition("://")
    if not separator:
        if found := _MISSPELT.match(text):
            rest = text[found.end() :]
            raise UsageError(
                f"{text!r} would be a folder called {found[0][:-1]!r}; did you mean "
                f"{found[1]}://{'/' if found[1] == 'file' else ''}{rest}? If not, write ./{text}"
            )
        return LocalStore(text)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host.lower() not in {"", "localhost"} or not slash:
            raise UsageError(f"{text!r} is no folder of this machine; expected file:///folder")
        return LocalStore(f"/{urllib.parse.unquote(path)}")
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return S3Store(text, endpoint)
    return ArrowStore(text)


def open_object(uri: str) -> tuple[Store, Entry] | None:
    """Open the folder or prefix of the one object that a URI names, or return None if none is to be seen there.

    Raises UsageError for a URI of no known kind, or where it leads nowhere.
    """
    head, _, name = uri.rpartition("/")
    if not name or head.endswith("/"):  # a folder's name, or a bucket's
        return None
    store, name = open_parent(uri)
    try:
        found = store.entry(name)
    except OSError:
        return None  # who lists it as a folder learns why: S3 gives no reasons when asked for one object
    return (store, found) if found else None


def open_parent(uri: str) -> tuple[Store, str]:
    """Open the folder or prefix of the object that a URI names, and return the object's key there."""
    head, slash, name = uri.rpartition("/")
    if "://" in uri and not uri.startswith("s3://"):  # whose URIs have keys as they are
        name = urllib.parse.unquote(name)
    return open_store(head + slash or os.curdir), name


def below(inner: Store, outer: Store) -> str | None:
    """Return what the keys of `inner` begin with in `outer`: "" if both are one, None if apart."""
    inside, outside = address(inner) + "/", address(outer) + "/"
    if inside.startswith(outside):
        return inside.removeprefix(outside)
    if isinstance(inner, LocalStore) and isinstance(outer, LocalStore):
        # A disk may take `Photos` and `photos` for one name, and a folder may be mounted twice.
        folder = Path(os.path.realpath(inner.root))
        for above in (folder, *folder.parents):
            with suppress(OSError):  # it is not there yet
                if os.path.samefile(above, outer.root):
                    rest = folder.relative_to(above).as_posix()
                    return "" if rest == "." else f"{rest}/"
    return None


def address(place: Store) -> str:
    """Return a place's URI or path, without links and ".." in it: two names of one place are one."""
    if isinstance(place, LocalStore):
        found = os.path.realpath(place.root)
    else:
        found = place.address() if isinstance(place, ArrowStore) else place.uri
    return found.rstrip("/")
