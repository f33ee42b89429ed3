import threading
import time
from pathlib import Path

import pytest

from deblur import copies
from deblur.places365 import Pool
from deblur.storage import LocalStore


def test_only_photos_of_one_size_are_read(tmp_path: Path) -> None:
    for name, data in {"a": b"xx", "b": b"xx", "c": b"yy", "d": b"zzz"}.items():
        (tmp_path / name).write_bytes(data)
    sizes = {"a": 2, "b": 2, "c": 2, "d": 3, "gone": 2}
    suspects = copies.suspects(sizes)
    assert suspects == {"a": 2, "b": 2, "c": 2, "gone": 2}
    found = dict(copies.contents(LocalStore(str(tmp_path)), suspects))
    assert found["a"] == found["b"] != found["c"]
    assert (found["gone"], bool(found["c"])) == ("", True)


def test_all_are_read_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_AHEAD", 2)
    for name in "abcde":
        (tmp_path / name).write_bytes(name.encode())
    suspects = dict.fromkeys("abcde", 1)
    assert [key for key, _ in copies.contents(LocalStore(str(tmp_path)), suspects)] == [*suspects]


def test_large_photos_are_not_all_in_memory_at_once() -> None:
    """Two of 400 MB are read at a time, and one that does not fit is left to who makes its pair."""
    here, most = 0, 0
    lock = threading.Lock()

    class Large(LocalStore):
        def read(self, key: str, etag: str | None = None) -> bytes:
            nonlocal here, most
            with lock:
                here += 1
                most = max(most, here)
            time.sleep(0.01)
            with lock:
                here -= 1
            if key == "3":
                raise MemoryError
            return b""

    suspects = {str(number): 400_000_000 for number in range(12)}
    found = dict(copies.contents(Large("/"), suspects))
    assert most == 2
    assert [key for key, digest in found.items() if not digest] == ["3"]


def test_the_test_photo_stays() -> None:
    pools = [
        Pool("castle", "train", ("a", "b", "c"), 2),
        Pool("castle", "test", ("d", "e"), 2),
        Pool("forest", "train", ("f",), 1),
    ]
    contents = {"a": "1", "d": "1", "b": "2", "e": "3", "f": "2"}
    kept, left_out = copies.without_copies(pools, contents)
    assert [(pool.keys, pool.wanted) for pool in kept] == [(("b", "c"), 2), (("d", "e"), 2)]
    assert left_out == {
        "a": ("train", "same content as d"),
        "f": ("train", "same content as b"),
    }
