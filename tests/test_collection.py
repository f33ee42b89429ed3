"""A collection as it really is, through the job: all is accounted for, and nothing but pixels changes.

The photos are not ours to ship, so they are taken from the folder that DEBLUR_TEST_PHOTOS names, or
from `shared/data` beside the checkout: camera files in `photos/`, damaged ones in `malformed/`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from deblur import photo
from jobs import restore, restore_plan

HOME = Path(os.environ.get("DEBLUR_TEST_PHOTOS") or Path(__file__).parents[2] / "shared" / "data")
if not (HOME / "photos").is_dir():
    pytest.skip(f"there are no photos in {HOME}: DEBLUR_TEST_PHOTOS", allow_module_level=True)

# Larger photos, most from cameras, are decoded and encoded as the job does it, but the model is left
# out: on two cores it takes 20 s for their 130 megapixels. The bound also makes bombs of those that
# really decode, to 400 megapixels and more.
MAX_MEGAPIXELS = 3.0

FILES = [
    path.relative_to(HOME).as_posix()
    for folder in ("photos", "malformed")
    for path in sorted((HOME / folder).rglob("*"))
    if path.is_file()
]


def _megapixels(path: Path) -> float:
    try:
        with Image.open(path) as image:
            return image.width * image.height / 1e6
    except OSError:
        return 0.0


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


_register_heif()
KEYS = [key for key in FILES if Path(key).suffix.lower() in restore_plan.EXTENSIONS]
LARGE = [
    key for key in KEYS if key.startswith("photos/") and _megapixels(HOME / key) > MAX_MEGAPIXELS
]


@pytest.fixture(scope="module")
def restored(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, ray_cluster: None
) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the summary of one run over all but the large photos."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("in", "out"))
    for key in FILES:
        if key not in LARGE:
            (source / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HOME / key, source / key)
    options = restore.Options(
        str(source), str(target), model=str(tiny),
        no_guard=True, max_megapixels=MAX_MEGAPIXELS,
    )  # fmt: skip
    summary = restore.run(options)
    for key in LARGE:
        whole = photo.decode((HOME / key).read_bytes())
        (target / key).write_bytes(photo.encode(whole.with_pixels(whole.pixels ^ 1)))
    return target, summary


@pytest.fixture(scope="module")
def rows(restored: tuple[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    table = pq.read_table(restored[0] / "_deblur" / "ledger")
    assert len(table) == len(KEYS) - len(LARGE)
    return {row["key"]: row for row in table.to_pylist()}


def test_every_file_is_accounted_for(
    restored: tuple[Path, dict[str, Any]], rows: dict[str, dict[str, Any]]
) -> None:
    folder, summary = restored
    assert summary["photos"] == len(KEYS) - len(LARGE) == len(rows)
    assert summary["restored"] + summary["failed"] == summary["photos"]
    done = {key for key, row in rows.items() if row["status"] == "restored"}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {key for key in there if not key.startswith("_deblur/")} == done | set(LARGE)


def test_what_can_be_read_whole_is_restored(rows: dict[str, dict[str, Any]]) -> None:
    with (HOME / "malformed" / "MANIFEST.csv").open(newline="") as file:
        # Another decoder's word, in a process of its own: "ok PNG 32x32 RGB", or its exception.
        words = {row["file"]: row["pillow_load"].split() for row in csv.DictReader(file)}
    # But for what that decoder does not look at: a checksum of a PNG's pixels, and a missing end.
    for name in (
        "pngsuite_corrupt/xcsn0g01",
        "imagetestsuite_png/94e1bdbb03c42581d8407602634636ea",
    ):
        words[f"malformed/{name}.png"] = ["damaged"]
    for key, row in rows.items():
        word = words.get(key, ["ok", "", "0x0"])
        good = (
            word[0] == "ok" and word[1] != "GIF" and "over the limit" not in (row["reason"] or "")
        )
        assert row["status"] == ("restored" if good else "failed"), (key, word, row["reason"])
    bombs = [str(row["reason"]) for key, row in rows.items() if key.startswith("malformed/bomb/")]
    assert sum("over the limit of 3 megapixels" in reason for reason in bombs) >= 5


def test_reasons_are_for_people(rows: dict[str, dict[str, Any]]) -> None:
    reasons = {str(row["reason"]) for row in rows.values() if row["status"] == "failed"}
    assert len(reasons) > 10
    for reason in reasons:
        assert reason.isprintable()
        assert 10 < len(reason) < 120
        assert not re.search(
            r"Traceback|\b0x[0-9a-f]{4}|Error\b|Exception|<\w|/tmp|\w\.py\b", reason
        )
        assert not re.search(r"\b[A-Z][a-z]+[A-Z]\w+\b", reason), reason  # the name of a class


# === What stays ===


def _photos(folder: Path) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    for key in KEYS:
        if key.startswith("photos/"):
            with Image.open(HOME / key) as before, Image.open(folder / key) as after:
                yield key, before, after


def test_pixels_are_upright(restored: tuple[Path, dict[str, Any]]) -> None:
    def small(image: Image.Image) -> np.ndarray:
        grey = np.asarray(image.convert("RGB").resize((32, 32)).convert("L"), np.float64)
        return (grey - grey.mean()) / max(grey.std(), 1e-9)

    turned = 0
    for key, before, after in _photos(restored[0]):
        assert after.getexif().get(0x0112, 1) == 1, key
        upright = ImageOps.exif_transpose(before)
        assert after.size == upright.size, key
        turned += before.getexif().get(0x0112, 1) > 1
        want, found = small(upright), small(after)
        ways = [np.rot90(side, turns) for side in (want, want[::-1]) for turns in range(4)]
        likeness = [float((way * found).mean()) for way in ways]
        assert int(np.argmax(likeness)) == 0, (key, likeness)
    assert turned >= 16


def test_profiles_are_kept_to_the_byte(restored: tuple[Path, dict[str, Any]]) -> None:
    profiles = 0
    for key, before, after in _photos(restored[0]):
        if before.mode != "CMYK":  # whose pixels are sRGB by now
            assert after.info.get("icc_profile") == before.info.get("icc_profile"), key
            profiles += "icc_profile" in before.info
    assert profiles >= 8


def test_dpi_are_kept(restored: tuple[Path, dict[str, Any]]) -> None:
    known = 0
    for key, before, after in _photos(restored[0]):
        if dpi := before.info.get("dpi"):
            known += 1
            turned = before.getexif().get(0x0112, 1) >= 5
            want = [float(value) for value in (dpi[::-1] if turned else dpi)]
            assert [float(value) for value in after.info["dpi"]] == pytest.approx(want, 1e-3), key
    assert known >= 20


# Tag, as `exiftool -G1` names it -> how it may change, and why. A tag that is not here may not.
MAY = {
    "IFD0:Orientation": ("changes", "the pixels are upright by now, and this is 1"),
    r"(File|ExifIFD):(Exif)?Image(Width|Height)": ("changes", "swapped where a photo was lying"),
    "ExifIFD:SubjectArea": ("changes", "a place in the photo, which turns with it"),
    "IFD1:Thumbnail(Image|Length)": ("changes", "made anew of the restored pixels"),
    "IFD1:ThumbnailOffset": ("changes", "where that is in the file"),
    "IFD1:ImageHeight": ("changes", "the new thumbnail's, rounded"),
    "Photoshop:PhotoshopThumbnail": ("goes", "a second one, which would be stale"),
    "JFIF:.*": ("changes", "the encoder's own header, with the same DPI as the EXIF"),
    "Adobe:.*": ("goes", "how the old encoder coded colours"),
    "Ducky:.*": ("goes", "the old encoder's own settings"),
    "File:ColorComponents": ("changes", "CMYK comes out as RGB"),
    "File:YCbCrSubSampling": ("comes", "CMYK comes out as RGB"),
    "(MPF0|MPImage[12]):.*": ("goes", "a preview behind the photo, which would be stale"),
    "PNG:ModifyDate": ("goes", "it says when the pixels were last changed"),
    "PNG:BackgroundColor": ("goes", "a viewer's matter: transparency itself is kept"),
    "PNG:ProfileName": ("changes", "what the file calls the profile; its bytes are the same"),
    "ExifTool:Warning": ("goes", "some PNGs had their EXIF behind the pixels"),
    "(Meta|QuickTime):.*": ("changes", "how an HEIF is laid out and coded: in tiles before"),
    "ICC-header2:.*|ICC_Profile2:.*": ("goes", "the profile of an HEIF's own thumbnail"),
}  # fmt: skip


def _tags(folder: Path, keys: list[str]) -> dict[str, dict[str, list[str]]]:
    words = ["exiftool", "-json", "-G1:4", "-a", "-n", "-struct", "--System:all", "--Composite:all"]
    done = subprocess.run([*words, *keys], cwd=folder, capture_output=True, check=True)
    found = {}
    for tags in json.loads(done.stdout):
        values = defaultdict(list)
        for name, value in tags.items():
            # Of tags that are there twice, the second is "Copy1".
            plain = ":".join(part for part in name.split(":") if not part.startswith("Copy"))
            values[plain].append(str(value))
        found[values.pop("SourceFile")[0]] = {name: sorted(all) for name, all in values.items()}
    return found


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
def test_no_other_tag_changes(restored: tuple[Path, dict[str, Any]]) -> None:
    keys = [key for key in KEYS if key.startswith("photos/")]
    before, after = _tags(HOME, keys), _tags(restored[0], keys)
    unused = set(MAY)
    for key in keys:
        for tag in sorted(before[key].keys() | after[key].keys()):
            old, new = before[key].get(tag), after[key].get(tag)
            if old == new:
                continue
            rule = next((rule for rule in MAY if re.fullmatch(rule, tag)), None)
            assert rule, f"{key}: {tag} was {old} and is {new}"
            unused.discard(rule)
            how = MAY[rule][0]
            assert how == "changes" or (new if how == "goes" else old) is None, (key, tag, old, new)
    assert not unused
