from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from deblur import blur, pairs, photo
from deblur.errors import PhotoError, UsageError
from deblur.storage import Store, open_store

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        tmp_path if request.param == "folder" else request.getfixturevalue("bucket")()
    )


def make(data: bytes, **options: Any) -> pairs.Pair:
    defaults = {"key": "a/b.jpg", "category": "a", "recipe": "box14", "seed": 0, "size_px": 32}
    return pairs.make_pair(data, **defaults | options)


def some(count: int) -> list[pairs.Pair]:
    return [
        pairs.Pair(f"c{n % 3}/été {n}.jpg", f"c{n % 3}", f"{n:064x}", b"sharp%d" % n, b"", "{}")
        for n in range(count)
    ]


# === Making one ===


@pytest.mark.parametrize("size", [(32, 32), (48, 65), (65, 48)])
def test_a_pair_is_the_middle_of_the_photo_and_its_blur(photos: Any, size: tuple[int, int]) -> None:
    pixels = photos.pixels(*size)
    data = photos.file(pixels, "PNG")
    pair = make(data)
    top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
    sharp = pixels[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(photo.decode_lossless(pair.sharp), sharp)
    np.testing.assert_array_equal(photo.decode_lossless(pair.blurred), cv2.blur(sharp, (14, 14)))
    assert (pair.key, pair.category) == ("a/b.jpg", "a")
    assert pair.source_sha256 == hashlib.sha256(data).hexdigest()
    assert make(data) == pair


@pytest.mark.parametrize("recipe", blur.RECIPES)
def test_the_blur_can_be_repeated_from_the_row(photos: Any, recipe: str) -> None:
    pair = make(photos.jpeg(), recipe=recipe)
    degradation = blur.Degradation.from_json(pair.recipe)
    assert degradation == blur.draw(recipe, seed=0, key="a/b.jpg")
    again = blur.degrade(photo.decode_lossless(pair.sharp), degradation)
    np.testing.assert_array_equal(photo.decode_lossless(pair.blurred), again)


def test_grey_becomes_rgb_and_16_bits_become_8(photos: Any) -> None:
    pixels = photos.pixels(32, 32)
    grey = make(photos.file(np.ascontiguousarray(pixels[..., 0]), "PNG"))
    expected = np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_array_equal(photo.decode_lossless(grey.sharp), expected)
    wide = make(photo.encode(photo.Photo(pixels.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(photo.decode_lossless(wide.sharp), pixels)


def test_alpha_matters_in_the_crop_alone(photos: Any) -> None:
    pixels, alpha = photos.pixels(40, 40), np.full((40, 40), 255, np.uint8)
    alpha[:4] = alpha[-4:] = 0
    pair = make(photos.file(np.dstack([pixels, alpha]), "PNG"))
    np.testing.assert_array_equal(photo.decode_lossless(pair.sharp), pixels[4:36, 4:36])
    alpha[4, 4] = 254
    with pytest.raises(PhotoError, match="transparent"):
        make(photos.file(np.dstack([pixels, alpha]), "PNG"))


def test_photos_that_make_no_pair(photos: Any) -> None:
    for data, reason in [
        (photos.jpeg(31, 64), "64x31 is smaller than the crop of 32x32"),
        (photos.jpeg()[:-200], "truncated"),
        (b"", "the file is empty"),
        (b"no photo", "not a photo"),
    ]:
        with pytest.raises(PhotoError, match=reason):
            make(data)


# === A shard of many ===


def test_a_shard_keeps_rows_and_facts(store: Store) -> None:
    rows = some(7)
    rejected = {"x.jpg": "the JPEG is damaged", "ü y.jpg": "is small"}
    facts = pairs.write_shard(store, "train/00000.parquet", rows, rejected, "plan")
    assert facts.categories == {"c0": 3, "c1": 2, "c2": 2}
    assert facts.pairs == 7
    assert facts.rejected == rejected
    assert list(pairs.shard_facts(store, ["train/00000.parquet"])) == [facts]
    data = store.read("train/00000.parquet")
    assert pairs.read_shard(data) == rows
    pairs.write_shard(store, "again", rows, rejected, "plan")
    assert store.read("again") == data, "any worker writes the same bytes"


def test_a_shard_of_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    facts = pairs.write_shard(store, "train/00000.parquet", [], {"a": "b"}, "plan")
    assert facts.pairs == 0
    assert list(pairs.shard_facts(store, ["train/00000.parquet"])) == [facts]
    assert pairs.read_shard(store.read("train/00000.parquet")) == []


def test_what_is_no_shard_has_no_facts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    pairs.write_shard(store, "whole", some(3), {}, "plan")
    store.put("cut", store.read("whole")[:-20])
    store.put("other", b"something else")
    store.put("empty", b"")
    names = ["cut", "other", "empty", "nothing", "whole"]
    assert [facts and facts.pairs for facts in pairs.shard_facts(store, names)] == [*4 * [None], 3]


def test_facts_are_had_without_the_pictures(tmp_path: Path, monkeypatch: Any) -> None:
    store = open_store(tmp_path)
    many = {f"{number} {'x' * 200}": "the JPEG is damaged" for number in range(600)}
    expected = [
        pairs.write_shard(store, "few", some(3), {"a": "b"}, "plan"),
        pairs.write_shard(store, "many", some(3), many, "plan"),
    ]
    with (tmp_path / "few").open("r+b") as file:
        data = file.read()
        # What is not read may as well be torn; a byte more before it moves all that is.
        file.seek(0)
        file.write(b"\0" * 300_000 + data)
    monkeypatch.delattr(type(store), "read")
    assert list(pairs.shard_facts(store, ["few", "many"])) == expected


def test_shards_are_listed_by_split_and_number(store: Store) -> None:
    for name in ["train/00010", "train/00002", "test/00000"]:
        pairs.write_shard(store, f"{name}.parquet", [], {}, "plan")
    store.put("train/notes.txt", b"")
    assert pairs.shards(store, "train") == ["train/00002.parquet", "train/00010.parquet"]
    assert pairs.shards(store, "test") == ["test/00000.parquet"]


def test_the_fingerprint_knows_the_rows_but_no_order_and_no_shards(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def fingerprint(*shards: list[pairs.Pair]) -> int:
        facts = [pairs.write_shard(store, "x", rows, {}, "plan") for rows in shards]
        return sum(int(one.fingerprint, 16) for one in facts) % (1 << 256)

    rows = some(20)
    whole = fingerprint(rows)
    shuffled = random.Random(0).sample(rows, 20)
    assert fingerprint(shuffled[:3], shuffled[3:15], [], shuffled[15:]) == whole
    assert fingerprint(rows[:-1]) != whole
    assert fingerprint([*rows, rows[0]]) != whole
    for field in dataclasses.fields(pairs.Pair):
        value = getattr(rows[0], field.name)
        other = value + (b"x" if isinstance(value, bytes) else "x")
        changed = dataclasses.replace(rows[0], **{field.name: other})
        assert fingerprint([changed, *rows[1:]]) != whole
    # What moves from one field to the next is another row.
    one, two = (
        pairs.Pair("k", "c", "0", *bytes_, "{}") for bytes_ in ((b"ab", b"c"), (b"a", b"bc"))
    )
    assert one.digest != two.digest


# === The data set ===

DATASET = pairs.Dataset(
    source="s3://photos",
    recipe="box14",
    seed=3,
    size_px=256,
    counts={"train": {"castle": 250, "forêt": 2}, "test": {"castle": 150}},
    rejected=4,
    fingerprint="ab" * 32,
    plan_id="0123",
)


def test_a_dataset_reads_as_it_was_written(store: Store) -> None:
    pairs.write_dataset(store, DATASET)
    assert pairs.read_dataset(store) == DATASET
    assert (DATASET.total("train"), DATASET.total("test"), DATASET.total("x")) == (252, 150, 0)
    # A later version may say more of itself.
    values = json.loads(store.read(pairs.DATASET))
    store.put(pairs.DATASET, json.dumps(values | {"news": 1}).encode())
    assert pairs.read_dataset(store) == DATASET


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "holds no finished pairs"),
        (b"", "is damaged"),
        (b'{"source": "s3://ph', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b'{"schema_version": 99}', "schema version 99; this deblur reads version 1"),
        (b"{}", "schema version None"),
        (b"[]", "is damaged"),
        (b'{"schema_version": 1}', "is damaged"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    store = open_store(tmp_path)
    if data is not None:
        store.put(pairs.DATASET, data)
    with pytest.raises(UsageError, match=reason):
        pairs.read_dataset(store)


def test_a_place_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        pairs.read_dataset(open_store(tmp_path / "missing"))
    (tmp_path / "photo.jpg").write_bytes(b"a file")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        pairs.read_dataset(open_store(tmp_path / "photo.jpg"))


def test_the_rejected_are_sorted_rows(store: Store) -> None:
    rows = [("b", "train", "is small"), ("a", "test", "é")]
    for given in (rows, []):
        pairs.write_rejected(store, given)
        table = pq.read_table(io.BytesIO(store.read(pairs.REJECTED)))
        assert table.schema.equals(pairs.REJECTED_SCHEMA)
        assert [tuple(row.values()) for row in table.to_pylist()] == sorted(given)
