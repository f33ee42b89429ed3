"""The data set's layouts and official lists: categories, splits, selection.

A source is its keys: relative POSIX paths, as an object store lists them. Its layout is the first
of these that fits; photos outside of a layout that fits are left out.

**places365 as it is distributed**, below any prefix:

    data_256/a/airfield/00000001.jpg          train: the category is the path below the initial
    data_256/f/forest/broadleaf/00000001.jpg  also data_large/, and _standard or _challenge
    val_256/Places365_val_00000001.jpg        test, by the official lists; also val_large/
    test_256/Places365_test_00000001.jpg      left out: its labels were never published

    places365_val.txt                         Places365_val_00000001.jpg 165
    categories_places365.txt                  /f/forest/broadleaf 150
    places365_train_standard.txt              /a/airfield/00000001.jpg 0

The folders `data_256` and so on may be the root itself, if all photos are named that way.

**Split folders**: `train/CATEGORY/…` beside `test/…`, `val/…` or `validation/…` (these are "test"),
below any prefix, with most of the photos in them, or one of them alone with all. They may also lie in
each category's folder: `CATEGORY/train/…` beside `CATEGORY/test/…`. The "easyformat" archive of places365
is of this kind; it writes a nested category with a hyphen, which becomes a slash again
(`places365_standard/train/forest-broadleaf/00000001.jpg`).

**A folder per category**: every photo lies in a folder, and no folder with photos inside another.
The category is the folder's path below what all share: `castle`, `forest/broadleaf`.

**Any tree of photos**: one pool, whose category is "".
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from deblur import photo
from deblur.errors import UsageError
from deblur.seeds import digest

# Also what only some installations read: such a photo is rejected with a reason.
PHOTO_EXTENSIONS = frozenset(photo.FORMATS)

_VAL_LIST = "places365_val.txt"
_CATEGORY_LIST = "categories_places365.txt"
_TRAIN_LISTS = ("places365_train_standard.txt", "places365_train_challenge.txt")

LIST_FILES = (_CATEGORY_LIST, _VAL_LIST, *_TRAIN_LISTS)
"""The list files worth reading, in any folder, best first. The train lists (millions of lines) only
serve to name the categories where `categories_places365.txt` is missing."""

_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test", "validation": "test"}

_OFFICIAL_KEY = re.compile(
    r"(?P<place>(?:.*/)?(?:data|val|test)_(?:256|large)(?:_standard|_challenge)?/)?"
    r"(?:(?P<initial>[a-z])/(?P<category>(?P=initial)[^/]*(?:/[^/]+)*)/(?P<name>[^/]+)"
    r"|(?P<held_out>Places365_(?:val|test)_\d{8})\.\w+)"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A photo that may serve. `split` is "train", "test", or None when the source does not say."""

    key: str
    category: str
    split: str | None


@dataclass(frozen=True, slots=True)
class Pool:
    """All keys that may serve in one category and split: the `wanted` first, then replacements."""

    category: str
    split: str
    keys: tuple[str, ...]
    wanted: int


def is_photo(key: str) -> bool:
    """Tell whether a key names a photo, not hidden and not in a `.hidden` or `_private` folder."""
    *folders, name = key.split("/")
    return (
        os.path.splitext(name)[1].lower() in PHOTO_EXTENSIONS
        and not name.startswith(".")
        and not any(folder.startswith((".", "_")) for folder in folders)
    )


def candidates(keys: Iterable[str], lists: Mapping[str, str]) -> list[Candidate]:
    """Return the photos among `keys`, by key, with their categories and splits.

    Args:
        keys: The keys of the source, in any order.
        lists: The texts of its list files (see `LIST_FILES`) by their keys.
    """
    photos = sorted({key for key in keys if is_photo(key)})
    return _official(photos, lists) or _split_folders(photos) or _category_folders(photos)


def choose(candidates: Iterable[Candidate], wanted: Sequence[str]) -> list[Candidate]:
    """Return the photos of the wanted categories, under the wanted names; no names mean all.

    A name stands for every category that has its path components in a row, whatever their case:
    `forest` for `forest`, `forest/broadleaf` and `photos/forest`, not for `forest_path`. Where
    several names stand for a category, the one with the most components has it, then the first.
    """
    candidates = list(candidates)
    spelt: dict[str, str] = {}
    for name in filter(None, (one.strip("/ ") for one in wanted)):
        spelt.setdefault(name.casefold(), name)
    names = list(spelt.values())
    if not names:
        return candidates
    categories = sorted({candidate.category for candidate in candidates})
    name_of: dict[str, str] = {}
    for category in categories:
        if fitting := [name for name in names if _stands_for(name, category)]:
            name_of[category] = max(fitting, key=lambda name: name.count("/"))
    if missing := [name for name in names if name not in name_of.values()]:
        for name, theirs in (
            (name, name_of[one]) for name in missing for one in name_of if _stands_for(name, one)
        ):
            raise UsageError(f"{theirs!r} has all photos of {name!r}: leave one of them out")
        raise UsageError(_explain_missing(missing, categories))
    return [
        Candidate(candidate.key, name_of[candidate.category], candidate.split)
        for candidate in candidates
        if candidate.category in name_of
    ]


def pools(chosen: Iterable[Candidate], *, train: int, test: int, seed: int) -> list[Pool]:
    """Return the pools that supply `train` and `test` photos a category; no key is in two of them.

    The order of the keys depends on the seed and the keys alone. A category with photos of both
    splits keeps them apart. Any other (also one with, say, official training photos alone) is
    divided in the ratio of `train` and `test`, spares and shortage alike, and each side that wants
    any gets at least one of two or more photos. A pool that wants none is left out.
    """
    if min(train, test) < 0 or train + test == 0:
        raise UsageError(
            f"train={train} and test={test} photos a category: "
            "give two counts of 0 or more, and not 0 for both"
        )
    split_of: dict[str, dict[str, str | None]] = defaultdict(dict)
    for candidate in chosen:
        split_of[candidate.category][candidate.key] = candidate.split
    result = []
    for category, splits in sorted(split_of.items()):
        keys = sorted(splits, key=lambda key: digest(seed, key, "select"))
        if {"train", "test"} <= set(splits.values()):
            for_test = [key for key in keys if splits[key] == "test"]
            for_train = [key for key in keys if splits[key] != "test"]
        else:
            # Test first: then asking for more training photos leaves the chosen test photos alone.
            cut = _cut(len(keys), train, test)
            for_test, for_train = keys[:cut], keys[cut:]
        for split, side, count in (("train", for_train, train), ("test", for_test, test)):
            if wanted := min(count, len(side)):
                result.append(Pool(category, split, tuple(side), wanted))
    return result


def _official(photos: Sequence[str], lists: Mapping[str, str]) -> list[Candidate]:
    """Return the photos of places365 as it is distributed; none if this is something else."""
    named = {key: match for key in photos if (match := _OFFICIAL_KEY.fullmatch(key))}
    placed = {key: match for key, match in named.items() if match["place"]}
    if not placed and len(named) < len(photos):
        return []
    labels: dict[str, str] | None = None
    # A photo may be there in two sizes or editions: its first key stands for it (data_256 is before
    # data_large), since otherwise one copy could be trained on and the other tested on.
    found: dict[tuple[str, str, str], Candidate] = {}
    for key, match in (placed or named).items():
        if match["held_out"]:
            labels = _val_labels(lists) if labels is None else labels
            split, category, name = "test", labels.get(match["held_out"], ""), match["held_out"]
        else:
            split, category, name = "train", match["category"], match["name"]
        if category:
            found.setdefault((split, category, name), Candidate(key, category, split))
    return list(found.values()) or [Candidate(key, "", None) for key in photos]


def _split_folders(photos: Sequence[str]) -> list[Candidate]:
    """Return the photos in train, test and val folders; none if no such folders can be believed."""
    found: list[tuple[str, Candidate]] = []
    splits_at: dict[str, set[str]] = defaultdict(set)
    easyformat: set[str] = set()
    for key in photos:
        *folders, name = key.split("/")
        at = next((i for i, folder in enumerate(folders) if folder.lower() in _SPLIT_FOLDERS), None)
        if at is None:
            continue
        place, split = "/".join(folders[:at]), _SPLIT_FOLDERS[folders[at].lower()]
        found.append((place, Candidate(key, "/".join(folders[at + 1 :]), split)))
        splits_at[place].add(split)
        if "places365_standard" in folders[:at] or name.startswith("Places365_val_"):
            easyformat.add(place)
    # A lone `train/` among other folders is rather a category: locomotives.
    alone = len(found) == len(photos) and len(splits_at) == 1
    found = [one for one in found if alone or len(splits_at[one[0]]) == 2]
    if 2 * len(found) <= len(photos):
        return []
    inside = len({place for place, _ in found}) > 1 and not any(
        photo.category for _, photo in found
    )
    shared = _shared([f"{place}/" for place, _ in found])
    return [
        replace(candidate, category="/".join(place.split("/")[shared:]))
        if inside
        else replace(candidate, category=candidate.category.replace("-", "/"))
        if place in easyformat
        else candidate
        for place, candidate in found
    ]


def _category_folders(photos: Sequence[str]) -> list[Candidate]:
    """Return all photos, by folder if no folder with photos (nor the root) contains another."""
    folders = {key.rpartition("/")[0] for key in photos}
    paths = [folder.split("/") for folder in folders]
    if any("/".join(path[:end]) in folders for path in paths for end in range(len(path))):
        return [Candidate(key, "", None) for key in photos]
    shared = _shared(folders)
    return [Candidate(key, "/".join(key.split("/")[shared:-1]), None) for key in photos]


def _shared(folders: Iterable[str]) -> int:
    """Return how many first parts all folders share, short of the last of any."""
    levels = zip(*(folder.split("/")[:-1] for folder in folders), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


def _val_labels(lists: Mapping[str, str]) -> dict[str, str]:
    """Return the categories of the official validation photos by their names without extension."""
    numbers = {name.rpartition(".")[0]: number for name, number in _list_lines(lists, _VAL_LIST)}
    categories: dict[int, str] = {}
    if numbers:
        # Both kinds of lines begin with the initial, and those of a train list end with a photo.
        for path, number in _list_lines(lists, _CATEGORY_LIST):
            categories[number] = path.strip("/").partition("/")[2]
        if not categories:
            for name in _TRAIN_LISTS:
                for path, number in _list_lines(lists, name):
                    categories[number] = path.strip("/").partition("/")[2].rpartition("/")[0]
    return {name: categories.get(number, "") for name, number in numbers.items()}


def _list_lines(lists: Mapping[str, str], name: str) -> Iterator[tuple[str, int]]:
    """Yield the (path, number) of every line of the lists with that name."""
    for key in sorted(lists):
        if key.rpartition("/")[2] != name:
            continue
        for line_number, line in enumerate(lists[key].splitlines(), start=1):
            path, _, number = line.strip().rpartition(" ")
            if path and number.isdecimal():
                yield path, int(number)
            elif line.strip():
                raise UsageError(
                    f"line {line_number} of {key} is {line[:80]!r}, not a path, a space and a "
                    "number: put the official list there, or take the file away"
                )


def _stands_for(name: str, category: str) -> bool:
    """Tell whether the path components of `name` stand in a row in those of `category`."""
    return f"/{name}/".casefold() in f"/{category}/".casefold()


def _explain_missing(missing: Sequence[str], categories: Sequence[str]) -> str:
    """Say which wanted categories have no photos, and which categories there are."""
    named = [category for category in categories if category]
    parts = {part: None for category in named for part in (category, *category.split("/"))}
    close = dict.fromkeys(
        match for name in missing for match in difflib.get_close_matches(name, parts, cutoff=0.7)
    )
    message = f"no photos of the wanted {', '.join(map(repr, missing))}"
    if not named:
        return (
            f"{message}: the source has no categories. Put each category's photos into a folder of "
            f"its name, or want none. The val_256 of places365 needs {_VAL_LIST} and "
            f"{_CATEGORY_LIST} beside it"
        )
    if close:
        message += f" (close: {', '.join(close)})"
    more = f" and {len(named) - 20} more" if len(named) > 20 else ""
    return f"{message}; the source has {', '.join(named[:20])}{more}"


def _cut(count: int, train: int, test: int) -> int:
    """Return how many of `count` photos are for test: its share, rounded, and no side without."""
    share = (2 * count * test + train + test) // (2 * (train + test))
    return min(max(share, 1), count - 1) if train and test and count > 1 else share
