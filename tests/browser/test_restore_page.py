"""The report of `deblur restore` in a browser: what it shows, and that names do nothing there."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deblur import photo
from deblur.gallery import compare
from deblur.report import Restoration, restore_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium, a package of Debian's")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    '<script>document.title="owned"</script>\'"><img src=x onerror=document.title="owned">.jpg'
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, photos) -> Path:
    sizes = [(300, 400), (900, 1200)]
    comparisons = [
        compare(
            f"{number} {HOSTILE}",
            photo.Photo(np.full((*size, 3), (200, 0, 0), np.uint8)),
            photo.Photo(np.full((*size, 3), (0, 0, 200), np.uint8)),
        )
        for number, size in enumerate(sizes)
    ]
    html = restore_page(
        Restoration(
            source=f"s3://bucket/{HOSTILE}",
            destination="/out",
            model=HOSTILE,
            counts={"restored": 2, "skipped": 0, "failed": 1, "not_done": 0},
            this_run={"restored": 2, "skipped": 0, "failed": 1, "megapixels": 1.2, "seconds": 2.5},
            failures=[(HOSTILE, f"why not: {HOSTILE}")],
            failures_in_all=1,
            comparisons=comparisons,
            facts={"Model": HOSTILE},
        )
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html)
    return path


def chromium(profile: Path, page: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout


class Dom(HTMLParser):
    """Reads what the browser has made of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_and_nothing_else(page: Path, tmp_path: Path) -> None:
    dom = Dom(chromium(tmp_path / "profile", page, "--dump-dom"))
    assert "<title>owned" not in dom.text
    assert dom.text.count(HOSTILE) >= 6
    assert [tag for tag, _ in dom.elements].count("script") == 1
    images = [attributes for tag, attributes in dom.elements if tag == "img"]
    assert len(images) == 2 + 4
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)
    # The script has run: it gives each slider its place.
    stages = [attributes for _, attributes in dom.elements if attributes.get("class") == "compare"]
    assert [stage.get("style") for stage in stages] == ["--at: 50%;"] * 3


def test_a_slider_shows_before_on_the_left(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium(
        tmp_path / "profile", page, f"--screenshot={picture}", "--window-size=1000,1600",
        "--force-color-profile=srgb", "--hide-scrollbars",
    )  # fmt: skip
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:] < 60).all(axis=2)
    blue = (pixels[..., 2] > 150) & (pixels[..., :2] < 60).all(axis=2)
    assert 0.8 < red.sum() / blue.sum() < 1.25
    assert red.sum() > 50_000
    rows = red.sum(axis=1) > 50
    left, right = red[rows].argmax(axis=1), blue[rows].argmax(axis=1)
    assert np.mean(left < right) > 0.98  # not where the corners are round
