from __future__ import annotations

import errno
import http.server
import itertools
import os
import pickle
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deblur import storage
from deblur.errors import DeblurError, UsageError
from deblur.storage import ArrowStore, LocalStore, S3Store, Store, open_store
from tests.stores import AT_ONCE_S

NAMES = [
    "a.jpg",
    "a-b/c.jpg",
    "a/b.jpg",
    "a/b/c.png",
    "été/ü ö.jpg",
    "日本/写真 1.jpg",
    "x+y&z=%41.jpg",
]


_numbers = itertools.count()


@pytest.fixture(params=["folder", "s3", "s3 prefix", "seaweed", "arrow"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One empty place of each kind, held to the same laws."""
    if request.param == "folder":
        return open_store(tmp_path)
    if request.param == "arrow":
        return ArrowStore(tmp_path.as_uri())
    if request.param == "seaweed":  # one bucket, as each takes disk
        server = request.getfixturevalue("seaweed")
        return S3Store(f"s3://tests/laws/{next(_numbers)}", server.endpoint)
    uri = request.getfixturevalue("bucket")()
    return open_store(uri if request.param == "s3" else f"{uri}/some/where/")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


# === The laws of all stores ===


@pytest.mark.parametrize("key", NAMES)
def test_what_is_put_is_there_until_it_is_deleted(store: Store, key: str) -> None:
    assert not store.exists(key)
    store.put(key, b"one")
    store.put(key, memoryview(b"twice"))
    assert store.exists(key)
    assert store.read(key) == b"twice"
    assert [(entry.key, entry.size_bytes) for entry in store.list()] == [(key, 5)]
    assert [store.entry(key)] == list(store.list())
    store.delete(key)
    store.delete(key)
    assert not store.exists(key)
    assert keys(store) == []


def test_keys_are_listed_in_order_whatever_folders_they_are_in(store: Store) -> None:
    for key in NAMES:
        store.put(key, b"")
    found = keys(store)
    if isinstance(store, S3Store) and store.bucket == "tests":
        found.sort()  # SeaweedFS has an order of its own, folder by folder
    assert found == sorted(NAMES)
    assert sorted(keys(store, "a")) == ["a/b.jpg", "a/b/c.png"]
    assert keys(store, "a/") == keys(store, "a")
    assert keys(store, "nothing/here") == []


def test_a_uri_may_name_one_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(store, S3Store):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(store.endpoint))
    store.put("trip/a b.jpg", b"one")
    uri = store.uri.replace("%20", " ")
    found = storage.open_object(f"{uri}/trip/a b.jpg")
    assert found is not None
    folder, entry = found
    assert [entry] == list(folder.list())
    assert folder.read(entry.key, entry.etag) == b"one"
    for none in (f"{uri}/trip", f"{uri}/trip/", f"{uri}/trip/b.jpg", f"{uri}/none/a b.jpg"):
        assert storage.open_object(none) is None


@pytest.mark.parametrize("uri", ["a.jpg", "./a.jpg", "~/a.jpg", "file://{}/a.jpg"])
def test_one_file_by_any_name(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = storage.open_object(uri.format(tmp_path))
    assert found is not None
    assert (found[0].uri, found[1].key) == (str(tmp_path), "a.jpg")


@pytest.mark.parametrize("uri", ["s3://photos.jpg", "file:///", "a/", "s3:///a.jpg"])
def test_a_bucket_or_a_folder_is_no_object(uri: str) -> None:
    assert storage.open_object(uri) is None


def test_hidden_names_are_not_listed(store: Store) -> None:
    for key in [".hidden", "a/.hidden/b.jpg", "a/.DS_Store", "a/b.jpg"]:
        store.put(key, b"x")
    assert keys(store) == ["a/b.jpg"]
    assert store.read(".hidden") == b"x"


def test_the_etag_changes_with_the_content_alone(store: Store) -> None:
    store.put("a", b"1")
    (first,) = store.list()
    assert list(store.list()) == [first]
    store.put("a", b"22")
    (second,) = store.list()
    assert first.etag != second.etag


def test_an_object_that_is_not_there_is_a_file_not_found(store: Store) -> None:
    store.put("a", b"")
    with pytest.raises(FileNotFoundError):
        store.read("b")
    assert not store.exists("a/b")


def test_the_beginning_and_the_end_can_be_had_alone(store: Store) -> None:
    store.put("a/b.jpg", b"0123456789")
    store.put("empty", b"")
    assert store.peek("a/b.jpg", 4) == b"0123"
    assert store.peek("a/b.jpg", -3) == b"789"
    for count in (10, -10, 1000, -1000):
        assert store.peek("a/b.jpg", count) == b"0123456789"
        assert store.peek("empty", count) == b""
    with pytest.raises(FileNotFoundError):
        store.peek("nothing", -3)


def test_what_was_listed_is_read_or_said_to_be_another(store: Store) -> None:
    store.put("a", b"1")
    (entry,) = store.list()
    assert store.read("a", entry.etag) == b"1"
    store.put("a", b"22")
    with pytest.raises(OSError, match="changed since it was listed") as caught:
        store.read("a", entry.etag)
    assert storage.reason(caught.value) == "changed since it was listed"
    store.delete("a")
    with pytest.raises(FileNotFoundError, match="vanished since it was listed"):
        store.read("a", entry.etag)


def test_a_store_below_a_store(store: Store) -> None:
    below = store / "été 1"
    below.put("a/b", b"x")
    assert store.read("été 1/a/b") == b"x"
    assert keys(below) == ["a/b"]


def test_pickling_keeps_the_place_and_no_secret(
    store: Store, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    store.put("a", b"x")
    pickled = pickle.dumps(store)
    assert b"testing" not in pickled
    assert pickle.loads(pickled).read("a") == b"x"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert pickle.loads(pickled).read("a") == b"x", "a worker need not have the endpoint"


def test_make_ready_leaves_nothing(store: Store) -> None:
    store.make_ready()
    assert keys(store) == []


def test_arrow_sees_the_same_objects(store: Store) -> None:
    store.put("a/b.bin", b"from here")
    filesystem, path = store.arrow()
    with filesystem.open_input_file(f"{path}/a/b.bin") as file:
        assert file.read() == b"from here"
    with filesystem.open_output_stream(f"{path}/a/c.bin") as file:
        file.write(b"from there")
    assert store.read("a/c.bin") == b"from there"


# === Folders ===


def test_uris_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in [tmp_path / "a b", "a b", "./a b", "~/a b", f"file://{tmp_path}/a%20b"]:
        assert open_store(uri).uri == str(tmp_path / "a b")
    assert (open_store("a") / "b").uri == str(tmp_path / "a/b")


def test_a_file_uri_may_name_this_machine_and_no_other(tmp_path: Path) -> None:
    for host in ["localhost", "LOCALHOST"]:
        assert open_store(f"file://{host}{tmp_path}/a%20b").uri == str(tmp_path / "a b")
    for uri in ["file://server/share/a", "file://photos", "file://localhost", "file://"]:
        with pytest.raises(UsageError, match="is no folder of this machine; expected file:///"):
            open_store(uri)


def test_no_such_user() -> None:
    with pytest.raises(UsageError, match=r"~nosuch/photos: no user's home .* is \./~nosuch/photos"):
        open_store("~nosuch/photos")


@pytest.mark.parametrize(
    ("uri", "meant"),
    [("s3:/out/a b", "s3://out/a b"), ("gs:/out", "gs://out"), ("file:/out", "file:///out")],
)
def test_a_uri_that_lacks_a_slash_is_no_folder(uri: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean {meant}\? If not, write \./{uri}"):
        open_store(uri)


def test_folders_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("./s3:/out", "c:/out", "12:30/out", "a/s3:/out", "trip:1"):
        assert open_store(path).uri == str(tmp_path / path)


def test_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name, text in [("none", "there is no folder"), ("file", "is a file, not a folder")]:
        with pytest.raises(UsageError, match=text):
            keys(open_store(tmp_path / name))
    assert keys(open_store(tmp_path / "none"), "_deblur") == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    # Root may write anywhere, but not below a file.
    (tmp_path / "file").write_bytes(b"")
    for name in ["file", "file/below"]:
        with pytest.raises(
            UsageError, match=r"^cannot write to .*file.*: (File exists|Not a directory)"
        ):
            open_store(tmp_path / name).make_ready()


def test_a_place_where_nothing_may_be_deleted_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "access denied (AccessDenied)")

    store = open_store(tmp_path)
    monkeypatch.setattr(LocalStore, "delete", refuse)
    store.make_ready()
    assert keys(store) == []


def test_what_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    """A photo that its owner alone may read stays one when it is restored in place."""
    store = open_store(tmp_path)
    store.put("new", b"1")
    store.put("a", b"1")
    (tmp_path / "a").chmod(0o600)
    store.put("a", b"2")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {"a": 0o600, "new": 0o666 & ~umask}
    assert store.read("a") == b"2"


def test_a_put_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.put("a/b", b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for key in ["a/b", "a/new"]:
        with pytest.raises(OSError, match="No space left"):
            store.put(key, b"after")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    assert store.read("a/b") == b"before"


def test_a_file_that_grows_while_it_is_read_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.put("a", b"1")
    (entry,) = store.list()
    fstat = os.fstat

    def and_grow(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        with (tmp_path / "a").open("ab") as file:
            file.write(b"2")
        return status

    monkeypatch.setattr(os, "fstat", and_grow)
    with pytest.raises(OSError, match="changed since it was listed"):
        store.read("a", entry.etag)


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path / "small"], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        store = open_store(tmp_path / "small")
        store.put("a", b"x" * 20_000)
        with pytest.raises(OSError, match="the disk is full") as caught:
            store.put("b/c", b"x" * 90_000)
        assert caught.value.errno == errno.ENOSPC
        assert sorted(path.name for path in (tmp_path / "small").rglob("*")) == ["a", "b"]
        store.put("b/c", b"x")
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


@pytest.mark.parametrize(
    "uri", ["abfss://:KEY@account.dfs.core.windows.net/box", "gs://box/a?access_token=KEY"]
)
def test_a_uri_with_a_secret_is_refused_without_it(uri: str) -> None:
    with pytest.raises(UsageError, match="must not hold credentials") as refusal:
        open_store(uri)
    assert "KEY" not in str(refusal.value)


def test_a_put_through_arrow_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ArrowStore(tmp_path.as_uri())

    class Breaks:
        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

        def move(self, *_: str) -> None:
            raise OSError(5, "Input/output error")

    filesystem, store._filesystem = store._filesystem, Breaks()
    with pytest.raises(OSError, match="Input/output"):
        store.put("a", b"x")
    assert list(tmp_path.iterdir()) == []


class _Filesystem:
    """One of pyarrow's, that counts its calls, is of another kind, or cannot do something."""

    def __init__(self, store: ArrowStore, **own: Any) -> None:
        self._inner, self._own = store._filesystem, own
        self.calls: list[str] = []
        store._filesystem = self

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return self._own[name] if name in self._own else getattr(self._inner, name)


def _cannot(*_: Any, **__: Any) -> None:
    raise pa.ArrowNotImplementedError("not implemented for such accounts")


@pytest.mark.parametrize("kind", ["abfs", "gcs"])
def test_object_stores_are_written_to_directly(tmp_path: Path, kind: str) -> None:
    store = ArrowStore(tmp_path.as_uri())
    # Azure without a hierarchical namespace cannot move, and neither has folders.
    _Filesystem(store, type_name=kind, move=_cannot, create_dir=_cannot)
    store.make_ready()
    store.put("a", b"1")
    store.put("a", b"22")
    assert store.read("a") == b"22"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_may_not_be_read_is_told_unless_it_is_the_filesystem_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    for key in ("a.jpg", "lost+found/#1", "z/b.jpg"):
        store.put(key, b"")
    assert keys(store) == ["a.jpg", "lost+found/#1", "z/b.jpg"]
    closed = {"lost+found"}
    scandir = os.scandir

    def guarded(folder: Path) -> Any:  # tests may run as root, who may read anything
        if folder.name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert keys(store) == ["a.jpg", "z/b.jpg"]
    closed.add("z")
    with pytest.raises(UsageError, match=r"cannot list .*/z: Permission denied"):
        keys(store)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_may_not_be_looked_at_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As in a folder after `chmod -R 644`, which shows its names and nothing else."""
    store = LocalStore(str(tmp_path))
    for key in ("a.jpg", "b.jpg", "trip/c.jpg"):
        store.put(key, b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    closed = {"b.jpg"}
    stat = Path.stat

    def guarded(path: Path, **options: Any) -> os.stat_result:
        if path.name in closed:
            raise OSError(code, os.strerror(code), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", guarded)
    assert [(entry.key, entry.etag != "") for entry in store.list()] == [
        ("a.jpg", True), ("b.jpg", False), ("trip/c.jpg", True),
    ]  # fmt: skip
    for name in ("trip", tmp_path.name):
        closed.add(name)
        with pytest.raises(UsageError, match=rf"cannot list .*{name}: {os.strerror(code)}"):
            keys(store)


def test_one_folder_under_two_names_is_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk to which `Photos` and `photos` are one name, or where a folder is mounted twice."""
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    photos, other = LocalStore(str(tmp_path / "photos")), LocalStore(str(tmp_path / "PHOTOS"))
    assert storage.below(other, photos) is None
    same = os.path.samefile

    def folded(one: Any, another: Any) -> bool:
        return same(str(one).replace("PHOTOS", "photos"), str(another).replace("PHOTOS", "photos"))

    monkeypatch.setattr(os.path, "samefile", folded)
    assert storage.below(other, photos) == storage.below(photos, other) == ""
    assert storage.below(other / "trip", photos) == "trip/"
    assert storage.below(other / "new/one", photos) == "new/one/"
    assert storage.below(photos, other / "trip") is None


def test_what_a_filesystem_cannot_do_is_an_os_error(tmp_path: Path) -> None:
    store = ArrowStore(tmp_path.as_uri())
    store.put("a", b"x")
    names = ["move", "open_input_file", "delete_file", "get_file_info"]
    _Filesystem(store, **dict.fromkeys(names, _cannot))
    with pytest.raises(UsageError, match=r"cannot write to .*: not implemented"):
        store.make_ready()
    with pytest.raises(UsageError, match=r"cannot list .*: not implemented"):
        keys(store)
    for call in (store.read, store.delete, store.exists, lambda key: store.put(key, b"y")):
        with pytest.raises(OSError, match="not implemented"):
            call("a")


def test_a_read_asks_once_whether_it_is_the_one_that_was_listed(tmp_path: Path) -> None:
    store = ArrowStore(tmp_path.as_uri())
    store.put("a", b"x")
    (entry,) = store.list()
    filesystem = _Filesystem(store)
    assert store.read("a", entry.etag) == b"x"
    assert filesystem.calls == ["open_input_file", "get_file_info"]


def test_an_object_that_changes_while_it_is_read_through_arrow(tmp_path: Path) -> None:
    store = ArrowStore(tmp_path.as_uri())
    store.put("a", b"1")
    (entry,) = store.list()

    def and_change(path: str) -> Any:
        file = filesystem._inner.open_input_file(path)
        (tmp_path / "a").write_bytes(b"22")
        return file

    filesystem = _Filesystem(store, open_input_file=and_change)
    with pytest.raises(OSError, match="changed since it was listed"):
        store.read("a", entry.etag)


def test_the_options_of_a_uri_stay_at_its_end() -> None:
    options = "?scheme=http&endpoint_override=localhost:1"
    store = open_store(f"gs://anonymous@bucket/a/{options}")
    below = store / "b c"
    assert below.uri == "gs://anonymous@bucket/a/b%20c"
    assert [place.arrow()[1] for place in (store, below)] == ["bucket/a", "bucket/a/b c"]
    again = pickle.loads(pickle.dumps(below))
    assert again.arrow()[1] == "bucket/a/b c"
    assert again.arrow()[0] == store.arrow()[0], "it has the same options"
    assert storage.below(below, store) == "b c/"


@pytest.mark.parametrize(
    ("inner", "outer", "between"),
    [
        ("gcs://b/in", "gs://b/in", ""),
        ("gs://anonymous@b/a%20b/c", "gcs://b/a%20b/", "c/"),
        ("abfss://c@account/a%20b/c%25", "abfs://c@account/a%20b", "c%/"),
        ("abfs://c@one/a", "abfs://c@another/a", None),
        ("gs://b/in", "gs://b/i", None),
    ],
)
def test_one_place_has_one_address_however_it_is_written(
    inner: str, outer: str, between: str | None
) -> None:
    assert storage.below(open_store(inner), open_store(outer)) == between


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/tmp/out", ""])
def test_a_key_does_not_lead_out_of_the_folder(tmp_path: Path, key: str) -> None:
    # A bucket may well hold such a key.
    store = LocalStore(str(tmp_path / "in"))
    for call in (lambda: store.put(key, b"x"), lambda: store.read(key), lambda: store.delete(key)):
        with pytest.raises(OSError, match="out of the folder"):
            call()
    assert not (tmp_path / "out").exists()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real/a").mkdir(parents=True)
    (tmp_path / "real/a/b.jpg").write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    (root / "photos").symlink_to(tmp_path / "real")
    (root / "b.jpg").symlink_to(tmp_path / "real/a/b.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "real/a/up").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "loop").symlink_to("loop")
    (root / "crooked").symlink_to("b.jpg/x")
    os.mkfifo(root / "pipe")
    assert keys(open_store(root)) == ["b.jpg", "photos/a/b.jpg"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert keys(open_store(tmp_path)) == ["caf\udce9.jpg"]
    assert open_store(tmp_path).read("caf\udce9.jpg") == b"x"


# === S3 ===


def test_a_listing_of_many_pages(
    bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # 1000 a page takes 6 s to fill
    store = open_store(f"{bucket()}/many")
    names = [f"{number:02}" for number in range(35)]
    for name in names:
        store.put(name, b"")
    assert isinstance(store, S3Store)
    page = store._call("list_objects_v2")
    assert page["IsTruncated"]
    assert len(page["Contents"]) == 10
    assert keys(store) == names


def test_a_listing_holds_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(dict[str, Any]):
        """A dict that can be referred to weakly."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    held: weakref.WeakSet[Page] = weakref.WeakSet()

    def pages(_: str, ContinuationToken: str = "0", **__: str) -> Page:
        page = int(ContinuationToken)
        names = (f"{page:03}/{number:03}" for number in range(100))
        contents = [{"Key": name, "Size": 1, "ETag": f'"{name}"'} for name in names]
        more = {"IsTruncated": page < 19, "NextContinuationToken": str(page + 1)}
        answer = Page(Contents=contents, **more)
        held.add(answer)
        return answer

    store = S3Store("s3://bucket", None)
    monkeypatch.setattr(store, "_call", pages)
    counts = [len(held) for _ in store.list()]
    assert len(counts) == 2000
    assert max(counts) == 1


def test_a_bucket_that_is_not_there(s3: str) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    for call in (lambda: keys(store), store.make_ready, lambda: store.read("a")):
        with pytest.raises(UsageError, match="there is no bucket 'no-such-bucket'"):
            call()
    assert not store.exists("a")


def test_markers_of_folders_are_no_objects(bucket: Callable[[], str]) -> None:
    store = open_store(bucket())
    for key in ["", "a/"]:
        store.put(f"p/{key}", b"")
    store.put("p/a/b", b"")
    store.put("pq", b"")
    assert keys(store / "p") == ["a/b"]


@pytest.mark.parametrize("uri", ["s3://b/photos/", "s3://b//photos", "s3://b///photos//"])
def test_one_place_has_one_uri(uri: str) -> None:
    place, inner = open_store(uri), open_store("s3://b//photos/out/")
    assert place.uri == "s3://b/photos"
    assert open_store("s3://b/").uri == "s3://b"
    assert storage.below(place, open_store("s3://b/photos")) == ""
    assert storage.below(inner, place) == "out/"
    assert storage.below(place, inner) is None


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("", "a path or URI is expected"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://Not_A Bucket!/key", "Invalid bucket name"),
        ("ftp://host/a", "cannot be opened.*expected a path"),
    ],
)
def test_uris_that_name_no_place(s3: str, uri: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        keys(open_store(uri))


@pytest.mark.parametrize("secret", ["secret", "sec/ret", "sec[ret"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(f"s3://AKIA123:{secret}@bucket/prefix")
    assert "sec" not in str(caught.value)


def test_no_credentials(
    bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    store = open_store(bucket())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in (lambda: keys(store), store.make_ready, lambda: store.read("a")):
        with pytest.raises(
            UsageError, match=r"no S3 credentials were found \(.*\); set AWS_ACCESS_KEY_ID"
        ):
            call()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("AWS_PROFILE", "nobody", "profile .*nobody.* could not be found"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", "Invalid endpoint"),
    ],
)
def test_a_wrong_environment(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=text):
        keys(open_store("s3://bucket"))


def test_an_endpoint_where_nobody_listens(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(UsageError, match="s3://bucket: S3 could not be reached") as caught:
        keys(open_store("s3://bucket"))
    assert time.monotonic() - start < AT_ONCE_S
    assert "\n" not in str(caught.value)
    assert str(port) in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (403, "SignatureDoesNotMatch")]
)
def test_a_store_that_refuses(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None, status: int, code: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    with _server([(status, body, len(body))] * 3) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        with pytest.raises(UsageError, match=code):
            keys(store)
        with pytest.raises(UsageError, match=code):
            store.make_ready()
        error = PermissionError if code == "AccessDenied" else UsageError
        with pytest.raises(error, match=code):
            store.read("a")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_credentials_that_are_over_are_no_wrong_usage(
    s3: str, fresh_clients: None, code: str
) -> None:
    over = f"<Error><Code>{code}</Code></Error>".encode()
    head = [(400, b"", 0)] * 2  # boto3 asks again, for the region
    with _server([*head, (400, over, len(over)), (200, b"x", 1)]) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        with pytest.raises(OSError, match="400"):
            store.exists("a")  # an answer to HEAD does not say why
        with pytest.raises(UsageError, match=code):
            keys(store)
        assert store.read("a") == b"x"
        pickled = pickle.dumps(store)
    with _server([(400, over, len(over))]) as endpoint:
        store = pickle.loads(pickled.replace(store.endpoint.encode(), endpoint.encode()))
        with pytest.raises(DeblurError, match=f"{code}.*the same command, with fresh") as caught:
            store.read("b")
        assert not isinstance(caught.value, UsageError)


def test_a_download_that_breaks_off_is_tried_again(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    monkeypatch.setattr(storage.s3, "_PATIENCE_S", 1)
    broken, whole = (200, b"hal", 5), (200, b"whole", 5)
    with _server([broken, whole, *[broken] * 20]) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        assert store.read("a") == b"whole"
        with pytest.raises(OSError, match="the connection broke off"):
            store.read("a")


def test_an_error_of_tls_in_the_midst_of_a_body_is_one_photo_s(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    from botocore.response import StreamingBody
    from urllib3.exceptions import SSLError

    def broken(self: StreamingBody, amt: int | None = None) -> bytes:
        raise SSLError("[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")

    monkeypatch.setattr(storage.s3, "_PATIENCE_S", 1)
    monkeypatch.setattr(StreamingBody, "read", broken)
    with _server([(200, b"whole", 5)] * 20) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        with pytest.raises(OSError, match=r"the connection broke off: .*BAD_RECORD_MAC"):
            store.read("a")


@pytest.mark.parametrize("answered", [False, True])
def test_a_store_that_has_answered_is_waited_for(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None, answered: bool
) -> None:
    monkeypatch.setattr(storage.s3, "_PATIENCE_S", 2.0)
    monkeypatch.setattr(storage.s3, "_FIRST_PATIENCE_S", 0.0)
    with _server([(200, b"", 0)] * 3) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        if answered:
            store.put("a", b"")
        pickled = pickle.dumps(store)
    storage.s3._answered.discard(endpoint)  # as in another process
    store = pickle.loads(pickled)
    storage.s3._client(endpoint)  # which takes its time
    pauses: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda pause_s: (pauses.append(pause_s), sleep(pause_s)))
    # What is wrong from the start is wrong usage; what breaks down later fails the job, as rows
    # of a ledger would say that the photos are to blame.
    with pytest.raises(DeblurError, match="could not be reached") as caught:
        store.put("a", b"")
    assert isinstance(caught.value, UsageError) is not answered
    assert bool(pauses) is answered


@pytest.mark.parametrize("status", [400, 403, 404, 412, 501])
def test_an_answer_that_will_stay_is_not_asked_for_again(
    s3: str, fresh_clients: None, status: int
) -> None:
    with (
        _server([(status, b"", 0), (200, b"whole", 5)]) as endpoint,
        pytest.raises(OSError, match=r"S3 answered|access denied|no such object"),
    ):
        S3Store("s3://bucket", endpoint).read("a")


def test_an_endpoint_that_is_no_store(s3: str, fresh_clients: None) -> None:
    page = b"<html>Not Found</html>"
    with _server([(404, page, len(page))] * 2) as endpoint:
        store = S3Store("s3://bucket", endpoint)
        for call in (lambda: keys(store), store.make_ready):
            with pytest.raises(UsageError, match=f"{endpoint} is no S3 endpoint"):
                call()


def test_a_store_that_is_busy_from_the_start_is_waited_for(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    monkeypatch.setattr(storage.s3, "_FIRST_PATIENCE_S", 0.0)
    slow, page = b"<Error><Code>SlowDown</Code></Error>", b"<html>no upstream</html>"
    with _server([*[(503, slow, len(slow))] * 3, (200, b"whole", 5)]) as endpoint:
        assert S3Store("s3://bucket", endpoint).read("a") == b"whole"
    with _server([(503, page, len(page))]) as endpoint, pytest.raises(OSError, match="503"):
        S3Store("s3://bucket", endpoint).read("a")  # that was no store, but something before it


def test_objects_have_a_content_type(bucket: Callable[[], str]) -> None:
    store = open_store(f"{bucket()}/p")
    assert isinstance(store, S3Store)
    types = {
        "_deblur/report.html": "text/html",
        "dataset.json": "application/json",
        "a/b.JPG": "image/jpeg",
        "x://[y/?.png": "image/png",
        "train/0.parquet": "application/octet-stream",
        "a.b/c": "application/octet-stream",
    }
    for key, kind in types.items():
        store.put(key, b"x")
        assert store._call("head_object", Key=f"p/{key}")["ContentType"] == kind


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_answer_that_will_pass_is_waited_for(s3: str, fresh_clients: None, status: int) -> None:
    slow = b"<Error><Code>SlowDown</Code></Error>"
    with _server([*[(status, slow, len(slow))] * 3, (200, b"whole", 5)]) as endpoint:
        assert S3Store("s3://bucket", endpoint).read("a") == b"whole"


class _server:
    """Answers one request after the other with (status, body, length that it announces)."""

    def __init__(self, answers: list[tuple[int, bytes, int]]) -> None:
        rest = iter(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                status, body, announced = next(rest)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(announced))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._http.server_port}"

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
