from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur import keys


@pytest.mark.parametrize(
    ("key", "extension", "suffix", "expected"),
    [
        ("a.jpg", None, "", "a.jpg"),
        ("trip/a.JPG", None, "-sharp", "trip/a-sharp.JPG"),
        ("trip/a.png", ".jpg", "", "trip/a.jpg"),
        ("trip.2/a", ".jpg", "", "trip.2/a.jpg"),
        ("trip.2/a.b.png", ".webp", "_1", "trip.2/a.b_1.webp"),
        ("süß.tif", ".png", "", "süß.png"),
    ],
)
def test_output_key(key: str, extension: str | None, suffix: str, expected: str) -> None:
    assert keys.output_key(key, extension, suffix) == expected


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("../a.jpg", "'..'"),
        ("trip/../../a.jpg", "'..'"),
        ("./a.jpg", "'.'"),
        ("/etc/a.jpg", "absolute"),
        ("trip//a.jpg", "empty part"),
        ("trip/", "empty part"),
        ("", "empty part"),
        ("a\0.jpg", "control character"),
        ("a\n.jpg", "control character"),
        ("a\x7f.jpg", "control character"),
        ("a\x9b.jpg", "control character"),
        ("a\udcff.jpg", "not UTF-8"),
        ("x" * 252 + ".jpg", "256 bytes"),
        ("ü" * 126 + ".jpg", "256 bytes"),
        ("/".join(["x" * 200] * 6) + ".jpg", "1209 bytes"),
        ("_deblur/a.jpg", "own folder"),
        ("_DEBLUR/a.jpg", "own folder"),
    ],
)
def test_keys_without_a_place(key: str, why: str) -> None:
    assert why in (keys.objection(key) or "")


@pytest.mark.parametrize(
    "key",
    [
        "a.jpg",
        "..a.jpg",
        "a../..b/c.jpg",
        "süß und 写真/😀.jpg",
        "<script>alert(1)</script>.jpg",
        "x" * 251 + ".jpg",
        "a\\b.jpg",
        "x/_deblur/a.jpg",
        "C:/a.jpg",
    ],
)
def test_keys_that_are_odd_but_have_one(key: str) -> None:
    assert keys.objection(key) is None


def test_the_bucket_s_prefix_counts() -> None:
    key = "/".join(["x" * 200] * 5)
    assert keys.objection(key, "y" * 20) is None
    assert "1025 bytes" in (keys.objection(key, "y" * 21) or "")


@given(st.text())
def test_what_has_a_place_stays_below_the_destination(key: str) -> None:
    if keys.objection(key) is None:
        assert not key.startswith("/")
        assert not {"", ".", ".."} & set(key.split("/"))
    else:
        keys.shown(key).encode()


def test_what_is_printed_does_nothing_to_a_terminal() -> None:
    assert keys.printable("ü\x1b[2J\n\udcff.jpg") == r"ü\x1b[2J\n\udcff.jpg"


def same(*names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


def as_jpeg(*names: str) -> list[tuple[str, str]]:
    return [(name, keys.output_key(name, ".jpg")) for name in names]


def test_nothing_collides_where_names_differ() -> None:
    assert keys.collisions(same("A.jpg", "a.jpg", "a.png", "b/a.jpg"), disk=True) == {}


def test_the_first_by_key_has_the_place() -> None:
    found = keys.collisions(as_jpeg("c.png", "a.tif", "a.png", "a.bmp", "b.png"))
    assert found == {
        "a.tif": "its output would be that of a.bmp",
        "a.png": "its output would be that of a.bmp",
    }


def test_case_and_accents_where_the_disk_does_not_see_them() -> None:
    names = same("A.jpg", "a.jpg", "b/é.png", "b/e\u0301.png", "STRASSE.jpg", "straße.jpg")
    assert set(keys.collisions(names, folded=True)) == {"a.jpg", "b/é.png", "straße.jpg"}
    assert keys.collisions(names) == {}


def test_a_photo_cannot_be_a_folder_on_a_disk() -> None:
    names = same("a.jpg", "a.jpg/b.jpg", "a.jpg/c/d.jpg", "e/f.jpg")
    assert keys.collisions(names) == {}
    assert keys.collisions(names, disk=True) == dict.fromkeys(
        ["a.jpg/b.jpg", "a.jpg/c/d.jpg"], "its folder would be a.jpg, which is a photo's output"
    )


@given(
    st.lists(st.text("aAb./", min_size=1, max_size=5), unique=True, max_size=12),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_is_left_never_collides(
    names: list[str], folded: bool, disk: bool, chance: random.Random
) -> None:
    outputs = as_jpeg(*names)
    lost = keys.collisions(outputs, folded=folded, disk=disk)
    left = [output.casefold() if folded else output for key, output in outputs if key not in lost]
    assert len(left) == len(set(left))
    if disk:
        assert not any(one.startswith(f"{other}/") for one in left for other in left)
    chance.shuffle(outputs)
    assert keys.collisions(outputs, folded=folded, disk=disk) == lost
