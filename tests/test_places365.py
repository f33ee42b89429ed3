from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur.errors import UsageError
from deblur.places365 import Candidate, Pool, candidates, choose, is_photo, pools

CATEGORIES = "/a/airfield 0\n/c/castle 83\n/f/forest/broadleaf 150\n"
VAL_1, VAL_2 = "Places365_val_00000001.jpg", "Places365_val_00000002.jpg"
VAL = f"{VAL_1} 150\n{VAL_2} 0\nPlaces365_val_00000003.jpg 83\n"
LISTS = {"categories_places365.txt": CATEGORIES, "places365_val.txt": VAL}
TRAIN_LIST = "/f/forest/broadleaf/00000001.jpg 150\n/a/airfield/00000007.jpg 0\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.jpg", True),
        ("castle/B.JPEG", True),
        ("IMG_1.HEIC", True),
        ("a/b/c.TiFf", True),
        ("_MG_1234.jpg", True),  # what cameras write for Adobe RGB
        ("a.b.webp", True),
        ("jpg", False),
        ("notes.txt", False),
        (".jpg", False),
        ("castle/._a.jpg", False),
        (".thumbnails/a.jpg", False),
        ("a/_deblur/ledger/a.png", False),
        ("castle/", False),
        ("", False),
    ],
)
def test_is_photo(key, expected):
    assert is_photo(key) is expected


LAYOUTS = {
    "data_256": (
        ["data_256/a/airfield/00000001.jpg", "data_256/f/forest/broadleaf/00000001.jpg", "x.jpg"],
        {},
        [
            ("data_256/a/airfield/00000001.jpg", "airfield", "train"),
            ("data_256/f/forest/broadleaf/00000001.jpg", "forest/broadleaf", "train"),
        ],
    ),
    "data_large_challenge below a prefix": (
        ["my/places/data_large_challenge/c/castle/00000009.jpg"],
        {},
        [("my/places/data_large_challenge/c/castle/00000009.jpg", "castle", "train")],
    ),
    "the initials' folders alone": (
        ["c/castle/00000009.jpg", "f/forest/broadleaf/00000001.jpg"],
        {},
        [
            ("c/castle/00000009.jpg", "castle", "train"),
            ("f/forest/broadleaf/00000001.jpg", "forest/broadleaf", "train"),
        ],
    ),
    "train and val, no label for test": (
        [
            "data_256_standard/c/castle/00000009.jpg",
            f"val_256/{VAL_1}",
            f"val_256/{VAL_2}",
            "test_256/Places365_test_00000001.jpg",
            "val_256/Places365_val_00000099.jpg",  # not in the list
        ],
        {f"filelist_places365-standard/{name}": text for name, text in LISTS.items()},
        [
            ("data_256_standard/c/castle/00000009.jpg", "castle", "train"),
            (f"val_256/{VAL_1}", "forest/broadleaf", "test"),
            (f"val_256/{VAL_2}", "airfield", "test"),
        ],
    ),
    "val at the root, categories from a train list": (
        [VAL_1, VAL_2.replace(".jpg", ".png")],
        {"places365_val.txt": VAL, "places365_train_standard.txt": TRAIN_LIST},
        [(VAL_1, "forest/broadleaf", "test"), (VAL_2.replace(".jpg", ".png"), "airfield", "test")],
    ),
    "val without lists": (
        [f"val_large/{VAL_1}", f"val_large/{VAL_2}"],
        {},
        [(f"val_large/{VAL_1}", "", None), (f"val_large/{VAL_2}", "", None)],
    ),
    "val without the categories' names": (
        [f"val_large/{VAL_1}"],
        {"places365_val.txt": VAL},
        [(f"val_large/{VAL_1}", "", None)],
    ),
    "the same photos in two sizes": (
        [
            "data_large/c/castle/00000009.jpg",
            "data_256/c/castle/00000009.jpg",
            f"val_large/{VAL_1}",
            f"val_256/{VAL_1}",
        ],
        LISTS,
        [
            ("data_256/c/castle/00000009.jpg", "castle", "train"),
            (f"val_256/{VAL_1}", "forest/broadleaf", "test"),
        ],
    ),
    "easyformat": (
        [
            "places365_standard/train/forest-broadleaf/00000001.jpg",
            f"places365_standard/val/forest-broadleaf/{VAL_1}",
        ],
        {},
        [
            ("places365_standard/train/forest-broadleaf/00000001.jpg", "forest/broadleaf", "train"),
            (f"places365_standard/val/forest-broadleaf/{VAL_1}", "forest/broadleaf", "test"),
        ],
    ),
    "easyformat without its folder": (
        ["train/forest-broadleaf/00000001.jpg", f"val/forest-broadleaf/{VAL_1}"],
        {},
        [
            ("train/forest-broadleaf/00000001.jpg", "forest/broadleaf", "train"),
            (f"val/forest-broadleaf/{VAL_1}", "forest/broadleaf", "test"),
        ],
    ),
    "split folders": (
        [
            "p/Train/low-light/a.jpg",
            "p/test/low-light/b.jpg",
            "p/validation/x/y/c.jpg",
            "stray.jpg",
        ],
        {},
        [
            ("p/Train/low-light/a.jpg", "low-light", "train"),
            ("p/test/low-light/b.jpg", "low-light", "test"),
            ("p/validation/x/y/c.jpg", "x/y", "test"),
        ],
    ),
    "split folders without categories": (
        ["train/a.jpg", "test/b.jpg"],
        {},
        [("test/b.jpg", "", "test"), ("train/a.jpg", "", "train")],
    ),
    "one split folder with all photos": (
        ["train/castle/a.jpg", "train/forest/b.jpg"],
        {},
        [("train/castle/a.jpg", "castle", "train"), ("train/forest/b.jpg", "forest", "train")],
    ),
    "split folders in each category's": (
        [
            "in/castle/train/a.jpg",
            "in/castle/test/b.jpg",
            "in/forest/train/c.jpg",
            "in/forest/val/d.jpg",
        ],
        {},
        [
            ("in/castle/test/b.jpg", "castle", "test"),
            ("in/castle/train/a.jpg", "castle", "train"),
            ("in/forest/train/c.jpg", "forest", "train"),
            ("in/forest/val/d.jpg", "forest", "test"),
        ],
    ),
    "split folders of a few": (
        ["castle/a.jpg", "castle/b.jpg", "x/train/c.jpg", "x/test/d.jpg"],
        {},
        [
            ("castle/a.jpg", "castle", None),
            ("castle/b.jpg", "castle", None),
            ("x/test/d.jpg", "x/test", None),
            ("x/train/c.jpg", "x/train", None),
        ],
    ),
    "train is a category": (
        ["bus/a.jpg", "train/b.jpg"],
        {},
        [("bus/a.jpg", "bus", None), ("train/b.jpg", "train", None)],
    ),
    "a folder per category": (
        [
            "castle/a.jpg",
            f"castle/{VAL_1}",
            "forest/broadleaf/b.jpg",
            "_deblur/c.jpg",
            "readme.txt",
        ],
        LISTS,
        [
            (f"castle/{VAL_1}", "castle", None),
            ("castle/a.jpg", "castle", None),
            ("forest/broadleaf/b.jpg", "forest/broadleaf", None),
        ],
    ),
    "a folder per category below a prefix": (
        ["my/photos/castle/a.jpg", "my/photos/castles/b.jpg"],
        {},
        [("my/photos/castle/a.jpg", "castle", None), ("my/photos/castles/b.jpg", "castles", None)],
    ),
    "one photo that looks official": (
        ["c/castle/a.jpg", "photos/b.jpg"],
        {},
        [("c/castle/a.jpg", "c/castle", None), ("photos/b.jpg", "photos", None)],
    ),
    "one folder": (["my/castle/a.jpg"], {}, [("my/castle/a.jpg", "castle", None)]),
    "photos at the root": (["a.jpg", "b.png"], {}, [("a.jpg", "", None), ("b.png", "", None)]),
    "photos beside folders": (
        ["castle/a.jpg", "b.jpg"],
        {},
        [("b.jpg", "", None), ("castle/a.jpg", "", None)],
    ),
    "folders inside folders": (
        ["2024/a.jpg", "2024/june/b.jpg"],
        {},
        [("2024/a.jpg", "", None), ("2024/june/b.jpg", "", None)],
    ),
    "nothing": (["readme.txt", "castle/"], {}, []),
}


@pytest.mark.parametrize(("keys", "lists", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(keys, lists, expected):
    wanted = [Candidate(*row) for row in expected]
    assert candidates(keys, lists) == wanted
    assert candidates([*reversed(keys), *keys], lists) == wanted


def test_a_list_that_is_no_list_is_refused():
    with pytest.raises(UsageError, match=r"line 2 of l/places365_val\.txt is '<html>'"):
        candidates([f"val_256/{VAL_1}"], {"l/places365_val.txt": f"{VAL_1} 3\n<html>\n"})


def _photos(*categories: str, split: str | None = None, count: int = 1) -> list[Candidate]:
    return [Candidate(f"{c}/{i}.jpg", c, split) for c in categories for i in range(count)]


PLACES = _photos(
    "castle", "forest/broadleaf", "forest_path", "mountain", "mountain_path", "skyscraper"
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (
            ["castle", "forest", "mountain", "skyscraper"],
            {
                "castle": "castle",
                "forest/broadleaf": "forest",
                "mountain": "mountain",
                "skyscraper": "skyscraper",
            },
        ),
        (["broadleaf"], {"forest/broadleaf": "broadleaf"}),
        (["/forest/broadleaf/"], {"forest/broadleaf": "forest/broadleaf"}),
        (["Castle", "Castle"], {"castle": "Castle"}),
        ([], {c.category: c.category for c in PLACES}),
        ([" "], {c.category: c.category for c in PLACES}),
    ],
)
def test_choose(wanted, expected):
    assert {c.key.rpartition("/")[0]: c.category for c in choose(PLACES, wanted)} == expected


def test_the_most_specific_name_has_the_category():
    photos = _photos("forest/broadleaf", "forest/needleleaf")
    chosen = choose(photos, ["forest", "forest/broadleaf"])
    assert [c.category for c in chosen] == ["forest/broadleaf", "forest"]


def test_a_category_that_is_wanted_twice() -> None:
    there = [Candidate("a", "forest/broadleaf", None), Candidate("b", "castle", None)]
    found = choose(there, ["Castle", "castle", "forest"])
    assert [one.category for one in found] == ["forest", "Castle"]
    with pytest.raises(UsageError, match="'forest/broadleaf' has all photos of 'forest': leave"):
        choose(there, ["forest", "forest/broadleaf"])


def test_a_missing_category_is_named_with_those_that_there_are():
    with pytest.raises(UsageError) as caught:
        choose(
            [*PLACES, *_photos(*(f"z{i:02}" for i in range(30)))], ["castel", "mountain", "moon"]
        )
    message = str(caught.value)
    assert "no photos of the wanted 'castel', 'moon' (close: castle)" in message
    assert "the source has castle, forest/broadleaf, forest_path" in message
    assert message.endswith("z13 and 16 more")


def test_a_source_without_categories_says_what_to_do():
    with pytest.raises(UsageError, match=r"no categories.*of its name.*places365_val\.txt"):
        choose(_photos("", count=3), ["castle"])


@pytest.mark.parametrize(
    ("count", "train", "test", "sizes", "wanted"),
    [
        (400, 250, 150, (250, 150), (250, 150)),
        (800, 250, 150, (500, 300), (250, 150)),  # spares in the same ratio
        (40, 250, 150, (25, 15), (25, 15)),  # too few: in the same ratio
        (2, 250, 1, (1, 1), (1, 1)),  # a side that wants some gets some
        (10, 3, 0, (10,), (3,)),
        (10, 0, 3, (10,), (3,)),
    ],
)
@pytest.mark.parametrize("split", [None, "train", "test"])  # one-sided sources are divided as well
def test_dividing_a_pool(count, train, test, sizes, wanted, split):
    got = pools(_photos("castle", split=split, count=count), train=train, test=test, seed=0)
    assert tuple(len(pool.keys) for pool in got) == sizes
    assert tuple(pool.wanted for pool in got) == wanted


def test_official_splits_are_kept_apart():
    photos = [Candidate(f"{s}/{i}.jpg", "castle", s) for s in ("train", "test") for i in range(9)]
    train, test = pools(photos, train=5, test=20, seed=0)
    assert (train.split, train.wanted, test.split, test.wanted) == ("train", 5, "test", 9)
    assert set(train.keys) == {f"train/{i}.jpg" for i in range(9)}
    assert set(test.keys) == {f"test/{i}.jpg" for i in range(9)}


def test_selection_is_pinned():
    # A change here would give every user other pairs for the same command.
    photos = _photos("castle", count=6)
    assert pools(photos, train=2, test=1, seed=0) == [
        Pool(
            "castle", "train", ("castle/2.jpg", "castle/1.jpg", "castle/3.jpg", "castle/5.jpg"), 2
        ),
        Pool("castle", "test", ("castle/0.jpg", "castle/4.jpg"), 1),
    ]
    assert pools(photos, train=2, test=1, seed=1) != pools(photos, train=2, test=1, seed=0)


@pytest.mark.parametrize(("train", "test"), [(-1, 5), (5, -1), (0, 0)])
def test_impossible_counts_are_refused(train, test):
    with pytest.raises(UsageError, match=f"train={train} and test={test}"):
        pools(PLACES, train=train, test=test, seed=0)


@st.composite
def _sources(draw: st.DrawFn) -> list[Candidate]:
    keys = draw(st.lists(st.text(max_size=6), unique=True, max_size=40))
    category, split = st.sampled_from(["a", "b", ""]), st.sampled_from(["train", "test", None])
    return [Candidate(key, draw(category), draw(split)) for key in keys]


@given(
    _sources(),
    st.integers(0, 12),
    st.integers(1, 12),
    st.integers(0, 2**40),
    st.randoms(use_true_random=False),
)
def test_pools_are_disjoint_sufficient_and_independent_of_order(photos, train, test, seed, random):
    got = pools(photos, train=train, test=test, seed=seed)
    shuffled = random.sample(photos, len(photos))
    assert pools(shuffled, train=train, test=test, seed=seed) == got
    keys = [key for pool in got for key in pool.keys]
    assert len(keys) == len(set(keys))
    assert set(keys) <= {c.key for c in photos}
    asked = {"train": train, "test": test}
    official = {c.key: c.split for c in photos}
    for pool in got:
        assert 0 < pool.wanted == min(asked[pool.split], len(pool.keys))
        mine = [c for c in photos if c.category == pool.category]
        assert {c.key for c in mine} >= set(pool.keys)
        if {"train", "test"} <= {c.split for c in mine}:
            assert {official[key] for key in pool.keys} <= {pool.split, None}
        elif len(mine) >= train + test:
            assert pool.wanted == asked[pool.split]
    if train:
        for category in {c.category for c in photos}:
            mine = {c.key for c in photos if c.category == category}
            used = {key for pool in got if pool.category == category for key in pool.keys}
            assert used == mine or len(mine) == 1


_FOLDERS = st.sampled_from(
    ["train", "test", "val", "castle", "forest", "data_256", "f", "_x", "val_256"]
)
_KEYS = st.builds(
    lambda folders, name: "/".join([*folders, name]),
    st.lists(_FOLDERS, max_size=4),
    st.sampled_from(["a.jpg", "b.JPG", "00000001.jpg", VAL_1, "list.txt"]),
)


@given(st.lists(_KEYS, max_size=12), st.randoms(use_true_random=False))
def test_candidates_are_unique_photos_whatever_the_order(keys, random):
    got = candidates(keys, LISTS)
    assert candidates(random.sample(keys, len(keys)), LISTS) == got
    found = [c.key for c in got]
    assert len(set(found)) == len(found)
    assert set(found) <= {key for key in keys if is_photo(key)}
    assert bool(found) == any(is_photo(key) for key in keys)
    # A category is all in one layout: a source that knows splits knows them for each photo.
    assert len({c.split is None for c in got}) <= 1
