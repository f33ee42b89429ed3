"""What only a real store can show: it checks credentials, it can be killed, and it is not small."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from deblur.errors import UsageError
from deblur.storage import S3Store
from deblur.storage.s3_arrow import Renewing
from tests.stores import AT_ONCE_S, Become, SeaweedFS

_numbers = itertools.count()


@pytest.fixture
def store(seaweed: SeaweedFS) -> S3Store:
    return S3Store(f"s3://tests/real/{next(_numbers)}", seaweed.endpoint)


@pytest.mark.parametrize(
    ("name", "secret", "code"),
    [
        ("testing", "not-the-secret", "SignatureDoesNotMatch"),
        ("nobody", "at-all", "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_fail_at_once_and_in_one_line(
    store: S3Store, become: Become, name: str, secret: str, code: str
) -> None:
    become(name, secret)
    start = time.monotonic()
    for call in (lambda: list(store.list()), store.make_ready, lambda: store.read("a")):
        with pytest.raises(UsageError, match=f"refuses these S3 credentials .{code}") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert secret not in str(caught.value)
    assert time.monotonic() - start < AT_ONCE_S


def test_a_wrong_bucket_fails_at_once_and_in_one_line(seaweed: SeaweedFS) -> None:
    store = S3Store("s3://nothing-here/photos", seaweed.endpoint)
    start = time.monotonic()
    for call in (lambda: list(store.list()), store.make_ready, lambda: store.read("a")):
        with pytest.raises(UsageError, match="there is no bucket 'nothing-here'") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert time.monotonic() - start < AT_ONCE_S


def test_an_identity_that_may_only_read(store: S3Store, become: Become) -> None:
    store.put("a", b"x")
    become("read_only")
    (entry,) = store.list()
    assert store.read("a", entry.etag) == b"x"
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        store.make_ready()
    assert str(caught.value) == f"cannot write to {store.uri}: access denied (AccessDenied)"
    with pytest.raises(PermissionError, match="access denied"):
        store.put("b", b"x")
    assert time.monotonic() - start < AT_ONCE_S


def test_a_source_to_read_and_a_destination_to_write(
    seaweed: SeaweedFS, store: S3Store, become: Become
) -> None:
    store.put("a", b"x")
    become("half")
    destination = S3Store("s3://writable/real", seaweed.endpoint)
    destination.make_ready()
    assert list(destination.list()) == []
    for entry in store.list():
        destination.put(entry.key, store.read(entry.key, entry.etag))
    assert destination.read("a") == b"x"
    with pytest.raises(UsageError, match="cannot write to s3://tests"):
        store.make_ready()


def test_pyarrow_with_boto3_s_keys(store: S3Store, become: Become, tmp_path: Path) -> None:
    become("testing")
    options = {
        "region": "us-east-1",
        "endpoint_override": urlsplit(str(store.endpoint)).netloc,
        "scheme": "http",
    }
    filesystem = fs.PyFileSystem(Renewing(store, options))
    path = f"{store.bucket}/{store.prefix}"
    filesystem.create_dir(f"{path}/a")
    with filesystem.open_output_stream(
        f"{path}/a/b.txt", metadata={"Content-Type": "text/plain"}
    ) as file:
        file.write(b"whole")
    filesystem.copy_file(f"{path}/a/b.txt", f"{path}/a/c.txt")
    filesystem.move(f"{path}/a/c.txt", f"{path}/a/d.txt")
    with filesystem.open_input_stream(f"{path}/a/d.txt") as file:
        assert file.read() == b"whole"
    selector = fs.FileSelector(path, recursive=True)
    found = {info.path.removeprefix(f"{path}/") for info in filesystem.get_file_info(selector)}
    assert found == {"a", "a/b.txt", "a/d.txt"}

    table = pa.table({"a": [1, 2]})
    pq.write_table(table, f"{path}/t/0.parquet", filesystem=filesystem)
    (fragment,) = ds.dataset(f"{path}/t", filesystem=filesystem).get_fragments()
    pickled = pickle.dumps((fragment.filesystem, fragment))  # as Ray sends them to its workers
    assert b"testing" not in pickled
    assert pickle.loads(pickled)[1].to_table() == table

    # As Ray Train moves its checkpoints.
    fs.copy_files(f"{path}/t", str(tmp_path), filesystem, fs.LocalFileSystem())
    fs.copy_files(str(tmp_path), f"{path}/t/again", fs.LocalFileSystem(), filesystem)
    assert pq.read_table(f"{path}/t/again/0.parquet", filesystem=filesystem) == table

    filesystem.delete_file(f"{path}/a/b.txt")
    filesystem.delete_dir(f"{path}/t")
    assert [entry.key for entry in store.list()] == ["a/d.txt"]
    become("testing", "not-the-secret")
    with pytest.raises(OSError, match=r"ACCESS_DENIED|SignatureDoesNotMatch|403"):
        filesystem.get_file_info(f"{path}/a/d.txt")


def test_two_thousand_objects(store: S3Store) -> None:
    wanted = {f"{number % 7}/a b/{number:04}.jpg": b"%d" % number for number in range(2000)}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(store.put, wanted, wanted.values()))
        entries = list(store.list())  # two pages and more, through folders
        assert sorted(entry.key for entry in entries) == sorted(wanted)
        read = threads.map(lambda entry: store.read(entry.key, entry.etag), entries)
        assert {entry.key: data for entry, data in zip(entries, read, strict=True)} == wanted


def test_a_restart_in_mid_run_loses_nothing(store: S3Store, seaweed: SeaweedFS) -> None:
    stop = threading.Event()
    put: dict[str, bytes] = {}

    def work(worker: int) -> None:
        number = 0
        while not stop.is_set():
            key, data = f"{worker}/{number}", b"%d" % number * 100
            store.put(key, data)
            assert store.read(key) == data
            put[key] = data
            number += 1

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work, worker) for worker in range(4)]
        try:
            time.sleep(0.5)
            seaweed.kill()
            before = len(put)
            time.sleep(2)
            assert len(put) <= before + 4
            seaweed.start()
            after = len(put)
            deadline = time.monotonic() + 30
            while len(put) < after + 20 and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            stop.set()
        for future in workers:
            future.result()  # no error has come through
    assert len(put) >= after + 20
    assert {entry.key for entry in store.list()} == set(put)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.read, put)) == list(put.values())
