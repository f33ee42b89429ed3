"""Where a photo's output goes, and which photos have no such place.

A key in a bucket may be any text; what is made of it may be a path on a disk. So every key is
judged before anything is read: a photo whose output would leave DESTINATION, could not be named, or
would replace another photo's output has failed before it begins, and the reason says so.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from hashlib import blake2b

OWN = "_deblur"
"""The folder below SOURCE or DESTINATION that is never taken for photos."""

_PART_BYTES = 255  # of ext4, XFS, APFS, NTFS: the longest name of a file or folder
_KEY_BYTES = 1024  # of S3: the longest key
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NOT_UTF8 = "its name is not UTF-8"
_NO_UTF8 = re.compile(r"[\ud800-\udfff]")


def output_key(key: str, extension: str | None = None, suffix: str = "") -> str:
    """Return the key of a photo's output: `trip/a.png` -> `trip/a-sharp.jpg`.

    Args:
        key: the photo's.
        extension: such as `.jpg`, in place of the photo's. Defaults to its own.
        suffix: what comes between the name and the extension.
    """
    stem, own = os.path.splitext(key)
    return f"{stem}{suffix}{own if extension is None else extension}"


def own(key: str) -> bool:
    """Say whether a key is of deblur's own folder."""
    return key.startswith(f"{OWN}/")


def shown(key: str) -> str:
    r"""Return a key that can be written down: `\udcff`, which no encoding has, becomes `\\udcff`."""
    return key.encode("utf-8", "backslashreplace").decode()


def nameless(key: str) -> bool:
    """Say whether a key cannot be written down as it is: on its disk, its name is not UTF-8."""
    return _NO_UTF8.search(key) is not None


def printable(key: str) -> str:
    """Return a key that does nothing to a terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], shown(key))


def objection(key: str, prefix: str = "") -> str | None:
    """Return why nothing can be put at a key, or None.

    The rules are the same for disks and buckets, so that a restored bucket can be copied to a disk.

    Args:
        key: of the output.
        prefix: of the bucket that the output goes to, if any: it counts as a part of the key.
    """
    parts = key.split("/")
    if nameless(key):
        return NOT_UTF8
    if key.startswith("/"):
        return "its name is an absolute path"
    if "" in parts:
        return "its name has an empty part"
    if {".", ".."} & set(parts):
        return f"its name has a part {'..' if '..' in parts else '.'!r}, which leads elsewhere"
    if _CONTROL.search(key):
        return "its name has a control character"
    if parts[0].casefold() == OWN:
        return f"its name is in {OWN}/, deblur's own folder"
    if (length := max(len(part.encode()) for part in parts)) > _PART_BYTES:
        return f"a part of its name has {length} bytes, more than the {_PART_BYTES} of a disk"
    if (length := len(f"{prefix}{key}".encode())) > _KEY_BYTES:
        return f"its name has {length} bytes, more than the {_KEY_BYTES} of a bucket"
    return None


def collisions(
    outputs: Collection[tuple[str, str]], *, folded: bool = False, disk: bool = False
) -> dict[str, str]:
    """Return key -> reason for the photos whose place another of them has: the first by key.

    So neither the order of the listing nor the time of the run decides. What DESTINATION has from
    before is another question: see `Holders`.

    Args:
        outputs: (key, output key) of all photos, also of those that are done. It is gone through
            twice, or three times if there are collisions; all that is kept of a key is a digest.
        folded: whether the destination takes `A.jpg` and `a.jpg` for one, as macOS and Windows do.
        disk: whether the destination has folders: where `a.jpg` is a photo, `a.jpg/b.jpg` cannot be.
    """
    taken: set[bytes] = set()
    contested: set[bytes] = set()
    for _, output in outputs:
        digest = _digest(output, folded)
        (contested if digest in taken else taken).add(digest)
    if disk:
        contested |= {
            digest for folder in _folders(outputs) if (digest := _digest(folder, folded)) in taken
        }
    if not contested:
        return {}
    return _lost(outputs, contested, taken, folded, disk)


def that_of(winner: str) -> str:
    """Return the reason of a photo whose place another one has."""
    return f"its output would be that of {shown(winner)}"


def _lost(
    outputs: Iterable[tuple[str, str]],
    contested: Collection[bytes],
    taken: Collection[bytes],
    folded: bool,
    disk: bool,
) -> dict[str, str]:
    lost: dict[str, str] = {}
    winners: dict[bytes, str] = {}
    for key, output in outputs:
        if (digest := _digest(output, folded)) in contested:
            winners[digest] = min(winners.get(digest, key), key)
    for key, output in outputs:
        digest = _digest(output, folded)
        if digest in contested and (winner := winners[digest]) != key:
            lost[key] = that_of(winner)
        elif disk:
            above = (output[:at] for at, character in enumerate(output) if character == "/")
            photo = next((folder for folder in above if _digest(folder, folded) in taken), None)
            if photo is not None:
                lost[key] = f"its folder would be {shown(photo)}, which is a photo's output"
    return lost


def _folders(outputs: Iterable[tuple[str, str]]) -> set[str]:
    """Return all folders of the outputs, which are far fewer than the photos."""
    found: set[str] = set()
    for _, output in outputs:
        folder = output.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def folded(key: str) -> str:
    """Return what macOS and Windows compare: neither case nor the way that an accent is written counts."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", key).casefold())


def _digest(output: str, fold: bool) -> bytes:
    output = folded(output) if fold else output
    return blake2b(output.encode("utf-8", "surrogatepass"), digest_size=15).digest()
