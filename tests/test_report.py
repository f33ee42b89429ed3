from __future__ import annotations

import base64
import dataclasses
import math
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from deblur.gallery import compare, finest
from deblur.photo import Photo
from deblur.report import (
    Evaluation,
    Example,
    MethodFigures,
    Restoration,
    evaluate_page,
    restore_page,
)

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = '<script>alert("1")</script>\'"><img src=x onerror=alert(1)> {{ 7*7 }} &amp;'


def _encoded(extension: str, shade: int = 90) -> bytes:
    return cv2.imencode(extension, np.full((8, 8, 3), shade, np.uint8))[1].tobytes()


def _evaluation(**changes: object) -> Evaluation:
    pictures = {
        "blurred": _encoded(".jpg"),
        "wiener": _encoded(".png"),
        "nafnet": _encoded(".webp"),
        "sharp": _encoded(".jpg", 200),
    }
    evaluation = Evaluation(
        title="Four scenes",
        pairs="s3://bucket/pairs",
        photos=1600,
        recipe="box14",
        methods=[
            MethodFigures("blurred", 23.656, 0.6581, None, {"castle": (22.1, 0.6), "": (25, 0.7)}),
            MethodFigures("unsharp", 22.0, 0.5, 0.0154, {"castle": (21.5, 0.4)}),
            MethodFigures(
                "nafnet",
                30.412,
                0.8614,
                12.34,
                {"castle": (29.5, 0.85), "": (31, 0.9)},
                sharpness=0.966,
            ),
        ],
        examples=[Example("a/b.jpg", "castle", pictures, {"blurred": 21.3456, "sharp": math.inf})],
        facts={"Fingerprint": "sha256:0123", "Command": "deblur evaluate a b"},
        seconds=754.2,
    )
    return dataclasses.replace(evaluation, **changes)


class _Page(HTMLParser):
    """Reads a page, insists that its tags are balanced, and keeps its text and its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in {"dt", "dd"}:
            self.text += " "

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _row(page: _Page, name: str) -> list[str]:
    at = page.cells.index(name)
    return page.cells[at : at + 6]


def test_the_figures_of_the_methods():
    page = _Page(evaluate_page(_evaluation()))
    assert _row(page, "blurred") == ["blurred", "23.66", "0.658", "–", "–", "–"]
    assert _row(page, "unsharp") == ["unsharp", "22.00", "0.500", "–", "−1.66", "0.015"]
    assert _row(page, "nafnet") == ["nafnet", "30.41", "0.861", "97 %", "+6.76", "12.3"]


def test_the_figures_by_category():
    page = _Page(evaluate_page(_evaluation()))
    at = page.cells.index("Category")
    assert page.cells[at:] == [
        *("Category", "blurred", "unsharp", "nafnet"),
        *("castle", "22.10 0.600", "21.50 0.400", "29.50 0.850"),
        *("no category", "25.00 0.700", "–", "31.00 0.900"),
    ]


def test_what_was_measured_is_said():
    text = " ".join(_Page(evaluate_page(_evaluation())).text.split())
    assert "1,600 test photos of s3://bucket/pairs, blurred by box14." in text
    assert "Measured in 12 min 34 s." in text
    assert "nafnet over the blurred input +6.76 dB" in text
    assert "Fingerprint sha256:0123 Command deblur evaluate a b" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (3725, "1 h 02 min")],
)
def test_durations(seconds, said):
    assert f"Measured in {said}." in evaluate_page(_evaluation(seconds=seconds))


def test_intervals_and_shares_and_blurs() -> None:
    blurred, model = (
        MethodFigures("blurred", 20.0, 0.5, None, {}, (19.5, 20.5), {"motion, weak": (20.0, 0.5)}),
        MethodFigures(
            "nafnet", 24.0, 0.7, 1.0, {}, (23.1, 24.9),
            {"motion, weak": (24.5, 0.75), HOSTILE: (23.0, 0.6)}, {"blurred": 0.996},
        ),
    )  # fmt: skip
    page = _Page(evaluate_page(_evaluation(methods=[blurred, model])))
    assert "24.00 23.10 to 24.90" in page.cells
    assert page.cells[: page.cells.index("blurred")].count("Better than blurred") == 1
    assert "99.6 %" in page.cells
    at = page.cells.index("Blur")
    assert page.cells[at:] == [
        *("Blur", "blurred", "nafnet"),
        *(HOSTILE, "–", "23.00 0.600"),
        *("motion, weak", "20.00 0.500", "24.50 0.750"),
    ]


def test_odd_numbers():
    methods = [
        MethodFigures("blurred", 20.0, 0.5, 2.5, {}),
        MethodFigures("identity", math.inf, 1.0, 0.0, {}),
        MethodFigures("unmeasured", math.nan, math.nan, None, {}),
        MethodFigures("same", 19.9999, 0.5, 2.5, {}),
    ]
    page = _Page(evaluate_page(_evaluation(methods=methods)))
    assert _row(page, "blurred") == ["blurred", "20.00", "0.500", "–", "–", "2.50"]
    assert _row(page, "identity") == ["identity", "∞", "1.000", "–", "+∞", "0.000"]
    assert _row(page, "unmeasured") == ["unmeasured", "–", "–", "–", "–", "–"]
    assert _row(page, "same") == ["same", "20.00", "0.500", "–", "+0.00", "2.50"]
    assert "By category" not in page.text


def test_without_the_blurred_method_there_is_no_gain():
    methods = [MethodFigures("nafnet", 30.0, 0.9, 1.0, {"": (30.0, 0.9)})]
    page = _Page(evaluate_page(_evaluation(methods=methods, examples=[], facts={}, photos=1)))
    assert _row(page, "nafnet") == ["nafnet", "30.00", "0.900", "–", "–", "1.00"]
    assert "1 test photo of" in page.text
    assert not re.search("nafnet over|By category|Examples|Facts", page.text)


def test_pictures_are_embedded_once_and_in_order():
    evaluation = _evaluation()
    page = _Page(evaluate_page(evaluation))
    (example,) = evaluation.examples
    shown = [image for image in page.all("img") if "src" in image]
    assert [image["alt"] for image in shown] == list(example.pictures)
    types = ["image/jpeg", "image/png", "image/webp", "image/jpeg"]
    for image, mime_type, picture in zip(shown, types, example.pictures.values(), strict=True):
        assert image["src"] == f"data:{mime_type};base64,{base64.b64encode(picture).decode()}"
    assert "blurred · 21.35 dB" in page.text
    assert "sharp · ∞ dB" in page.text


def test_the_comparison_starts_with_the_best_method_and_has_a_slider():
    page = _Page(evaluate_page(_evaluation()))
    pressed = [button["aria-pressed"] for button in page.all("button")]
    assert pressed == ["false", "true", "false"]  # wiener, nafnet, sharp
    (slider,) = page.all("input")
    assert slider["type"] == "range"


@pytest.mark.parametrize("captions", [[], ["blurred"], ["blurred", "sharp"]])
def test_few_pictures(captions):
    example = Example("a.jpg", "", {caption: _encoded(".png") for caption in captions}, {})
    page = _Page(evaluate_page(_evaluation(examples=[example])))
    assert len(page.all("button")) == max(len(captions) - 1, 0)


def test_a_picture_of_another_format_is_refused():
    example = Example("a.jpg", "", {"blurred": b"GIF89a, as it says"}, {})
    with pytest.raises(ValueError, match=r"18 bytes starts with b'GIF89a, as i': encode it as"):
        evaluate_page(_evaluation(examples=[example]))


def test_hostile_names_stay_text():
    plain = _Page(evaluate_page(_evaluation()))
    picture = _encoded(".png")
    figures = [MethodFigures(name, 1.0, 1.0, 1.0, {HOSTILE: (1, 1)}) for name in ("x", HOSTILE)]
    page = _Page(
        evaluate_page(
            _evaluation(
                title=HOSTILE,
                pairs=HOSTILE,
                recipe=HOSTILE,
                methods=figures,
                examples=[Example(HOSTILE, HOSTILE, {HOSTILE: picture}, {HOSTILE: 1.0})],
                facts={HOSTILE: HOSTILE},
            )
        )
    )
    assert page.text.count(HOSTILE) >= 12
    assert len(page.all("script")) == len(plain.all("script")) == 1
    assert [image["alt"] for image in page.all("img") if "src" in image] == [HOSTILE]
    assert not any(name.startswith("on") for _, element in page.elements for name in element)


def test_nothing_is_fetched():
    html = evaluate_page(_evaluation(facts={"Source": "https://example.org"}))
    page = _Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", html)
    (policy,) = (m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none';")


def test_the_page_is_the_same_each_time():
    assert evaluate_page(_evaluation()) == evaluate_page(_evaluation())


# === The report of a run of restore ===


def _restoration(**changes: object) -> Restoration:
    restoration = Restoration(
        source="s3://bucket/in",
        destination="s3://bucket/out",
        model="nafnet",
        counts={"restored": 1200, "skipped": 3, "failed": 2, "not_done": 0},
        this_run={"restored": 200, "skipped": 3, "failed": 2, "megapixels": 2400, "seconds": 600},
        failures=[("a.jpg", "the file is empty"), ("b.jpg", "the JPEG is damaged")],
        failures_in_all=2,
        comparisons=[],
        facts={"Version": "deblur 0"},
    )
    return dataclasses.replace(restoration, **changes)


def _noise(height: int, width: int, seed: int = 0) -> Photo:
    rng = np.random.default_rng(seed)
    return Photo(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_a_run_is_told():
    page = _Page(restore_page(_restoration()))
    text = " ".join(page.text.split())
    assert "1,200 of 1,205 photos restored" in text
    assert "restored in this run 200" in text
    assert "megapixels a second 4.00" in text
    assert page.cells == [
        "Photo",
        "Why",
        "a.jpg",
        "the file is empty",
        "b.jpg",
        "the JPEG is damaged",
    ]
    assert "Version deblur 0" in text


def test_many_and_long_failures_are_bounded():
    failures = [("<" * 5000, "&" * 5000)] * 200
    html = restore_page(_restoration(failures=failures, failures_in_all=12_345))
    assert "The first 200 of 12,345" in " ".join(_Page(html).text.split())
    assert len(html) < 1_000_000


def test_a_run_with_names_of_code_is_text():
    facts = {HOSTILE: HOSTILE}
    html = restore_page(
        _restoration(
            failures=[(HOSTILE, HOSTILE)],
            source=HOSTILE,
            facts=facts,
            comparisons=[compare(HOSTILE, _noise(20, 30), _noise(20, 30, 1))],
        )
    )
    page = _Page(html)
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, element in page.elements for name in element)
    assert page.text.count(HOSTILE) == 7


def test_the_page_of_a_run_is_small_whatever_the_photos():
    comparison = compare("a", _noise(1000, 1500), _noise(1000, 1500, 1))
    html = restore_page(_restoration(comparisons=[comparison] * 6))
    assert len(html) < 3_000_000
    assert html == restore_page(_restoration(comparisons=[comparison] * 6))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (300, 300), (561, 200), (900, 800)])
def test_comparisons_of_all_sizes(size):
    made = compare("a", _noise(*size), _noise(*size, 1))
    assert (made.height, made.width) == size
    whole = cv2.imdecode(np.frombuffer(made.before, np.uint8), cv2.IMREAD_COLOR)
    assert max(whole.shape[:2]) <= 560
    assert (made.crop_before is None) == (max(size) <= 560)
    if made.crop_after is not None:
        crop = cv2.imdecode(np.frombuffer(made.crop_after, np.uint8), cv2.IMREAD_COLOR)
        assert crop.shape[:2] == (min(size[0], 360), min(size[1], 360))


def test_the_crop_is_where_the_detail_is():
    pixels = np.full((2000, 3000, 3), 128, np.uint8)
    pixels[1200:1400, 2100:2300] = _noise(200, 200).pixels
    top, left = finest(pixels)
    assert top <= 1200
    assert top + 360 >= 1400
    assert left <= 2100
    assert left + 360 >= 2300


def test_photos_of_two_sizes_cannot_be_compared():
    with pytest.raises(ValueError, match="cannot compare"):
        compare("a", _noise(3, 3), _noise(3, 4))
