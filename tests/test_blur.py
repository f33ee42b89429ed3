from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur import blur
from deblur.errors import UsageError

GOLDEN = Path(__file__).parent / "golden" / "blur.npz"
DRAWING = [recipe for recipe in blur.RECIPES if not recipe.startswith("box14")]
NOISE_FREE = [recipe for recipe in blur.RECIPES if recipe not in {"photo", "box14-jpeg"}]

recipes = st.sampled_from(blur.RECIPES)
keys = st.text(max_size=20)


@pytest.fixture(scope="module")
def sharp() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


# === Drawing ===


@settings(max_examples=50, deadline=None)
@given(recipe=recipes, key=keys, seed=st.integers(0, 2**31))
def test_a_draw_depends_on_seed_and_key_alone(recipe: str, key: str, seed: int) -> None:
    drawn = blur.draw(recipe, seed=seed, key=key)
    assert drawn == blur.draw(recipe, seed=seed, key=key)
    if recipe in DRAWING:
        assert drawn != blur.draw(recipe, seed=seed, key=key + "x")
        assert drawn != blur.draw(recipe, seed=seed + 1, key=key)


@settings(max_examples=50, deadline=None)
@given(recipe=recipes, key=keys)
def test_json_keeps_all_that_repeats_the_bytes(recipe: str, key: str) -> None:
    drawn = blur.draw(recipe, seed=0, key=key)
    copy = blur.Degradation.from_json(drawn.to_json())
    picture = np.random.default_rng(2).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert copy == drawn
    assert copy.to_json() == drawn.to_json()
    np.testing.assert_array_equal(blur.degrade(picture, copy), blur.degrade(picture, drawn))


def test_json_is_compact_and_sorted() -> None:
    text = blur.draw("motion", seed=0, key="a.jpg").to_json()
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text == again
    assert blur.draw("box14", seed=0, key="a").to_json() == '{"parameters":{},"recipe":"box14"}'


def test_an_unknown_recipe_is_refused_with_the_names() -> None:
    with pytest.raises(UsageError, match=r"'box15'.*box14, .*gaussian, motion, defocus, photo"):
        blur.draw("box15", seed=0, key="a")
    with pytest.raises(UsageError, match="'sharpen'"):
        blur.Degradation.from_json('{"parameters":{},"recipe":"sharpen"}')


def test_photo_draws_all_its_blurs_with_jpeg_and_without() -> None:
    drawn = [blur.draw("photo", seed=0, key=str(i)).parameters for i in range(400)]
    kinds = [parameters["blur"]["kind"] for parameters in drawn]
    for kind, share in blur.PHOTO_BLURS.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.08)
    compressed = [parameters["jpeg_quality"] is not None for parameters in drawn]
    assert np.mean(compressed) == pytest.approx(blur.JPEG_SHARE, abs=0.08)


# === Kernels ===


@settings(max_examples=100, deadline=None)
@given(recipe=recipes, key=keys)
def test_a_psf_is_odd_and_spreads_all_light_once(recipe: str, key: str) -> None:
    kernel = blur.psf(blur.draw(recipe, seed=0, key=key))
    assert kernel.dtype == np.float32
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    if not recipe.startswith("box14"):
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        assert kernel.sum(axis=0) @ offsets == pytest.approx(0, abs=1e-3)
        assert kernel.sum(axis=1) @ offsets == pytest.approx(0, abs=1e-3)


def test_box14_is_its_taps() -> None:
    kernel = blur.psf(blur.Degradation("box14"))
    assert kernel.shape == (15, 15)
    np.testing.assert_allclose(kernel[:14, :14], 1 / 196, rtol=1e-6)
    assert not kernel[14].any()
    assert not kernel[:, 14].any()


@pytest.mark.parametrize("recipe", blur.RECIPES)
def test_a_separable_psf_is_the_outer_product(recipe: str) -> None:
    drawn = blur.draw(recipe, seed=0, key="a")
    taps = blur.separable(drawn)
    assert (taps is not None) == (recipe in ("box14", "box14-jpeg", "gaussian"))
    if taps is not None:
        np.testing.assert_allclose(np.outer(taps, taps), blur.psf(drawn), atol=1e-7)


def test_a_gaussian_and_a_disk_have_the_width_drawn() -> None:
    gaussian = blur.psf(blur.Degradation("gaussian", {"sigma_px": 2.5}))
    disk = blur.psf(blur.Degradation("defocus", {"radius_px": 5.0}))
    for kernel, variance in ((gaussian, 2.5**2), (disk, 5.0**2 / 4)):
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        assert kernel.sum(axis=0) @ offsets**2 == pytest.approx(variance, rel=0.03)


def test_a_longer_exposure_blurs_more() -> None:
    def spread(exposure: float) -> float:
        drawn = {"exposure": exposure, "anxiety": 0.002, "path_seed": 7}
        kernel = blur.psf(blur.Degradation("motion", drawn))
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        return float(kernel.sum(axis=0) @ offsets**2 + kernel.sum(axis=1) @ offsets**2)

    assert spread(0.1) < spread(0.3) < spread(0.7)


# === Carrying it out ===


def test_box14_is_the_blur_of_the_report(sharp: np.ndarray) -> None:
    blurred = blur.degrade(sharp, blur.draw("box14", seed=5, key="any"))
    np.testing.assert_array_equal(blurred, cv2.blur(sharp, (14, 14)))


@pytest.mark.parametrize("recipe", NOISE_FREE)
@pytest.mark.parametrize("key", ["a", "b"])
def test_a_noise_free_recipe_is_its_psf(sharp: np.ndarray, recipe: str, key: str) -> None:
    drawn = blur.draw(recipe, seed=0, key=key)
    correlated = cv2.filter2D(
        sharp.astype(np.float64), -1, blur.psf(drawn), borderType=cv2.BORDER_REFLECT_101
    )
    assert np.abs(correlated - blur.degrade(sharp, drawn)).max() <= 0.51


@pytest.mark.parametrize("recipe", NOISE_FREE)
@pytest.mark.parametrize("level", [0, 93, 255])
def test_a_flat_picture_stays_flat(recipe: str, level: int) -> None:
    flat = np.full((40, 30, 3), level, np.uint8)
    np.testing.assert_array_equal(blur.degrade(flat, blur.draw(recipe, seed=0, key="a")), flat)


@pytest.mark.parametrize("recipe", blur.RECIPES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 50, 3), (31, 64, 3)])
def test_shape_type_and_input_are_kept(recipe: str, shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    before = picture.copy()
    for key in "abcd":
        blurred = blur.degrade(picture, blur.draw(recipe, seed=0, key=key))
        assert blurred.shape == shape
        assert blurred.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"want \(H, W, 3\) uint8, got \(8, 8"):
        blur.degrade(wrong, blur.draw("box14", seed=0, key="a"))


@pytest.mark.parametrize("recipe", ["box14", "gaussian", "defocus"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_pair_mirrored_about_the_shift_is_a_pair(
    sharp: np.ndarray, recipe: str, axis: int
) -> None:
    drawn, shift = blur.draw(recipe, seed=0, key="a"), blur.mirror_shift(recipe)
    blurred_mirror = blur.degrade(np.ascontiguousarray(np.flip(sharp, axis)), drawn)
    mirrored_blur = np.roll(np.flip(blur.degrade(sharp, drawn), axis), shift, axis)
    inside = (slice(1, None),) * 2  # the roll brings the other border into the first line
    tolerance = 0 if recipe == "box14" else 1
    assert levels_apart(blurred_mirror[inside], mirrored_blur[inside]) <= tolerance


def test_photo_is_exposed_like_the_sharp_one() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    for key in map(str, range(20)):
        drawn = blur.draw("photo", seed=0, key=key)
        error = blur.degrade(grey, drawn).astype(float) / 255 - 128 / 255
        # No JPEG block survives a flat patch, so JPEG only takes noise away here.
        assert abs(error.mean()) < 0.01
        assert error.var() < 1.2 * blur.noise_variance(drawn)
        if drawn.parameters["jpeg_quality"] is None and drawn.parameters["read"]:
            assert error.var() > 0.8 * blur.noise_variance(drawn)


def test_some_photos_have_no_noise_but_none_is_left_as_it_is() -> None:
    drawn = [blur.draw("photo", seed=0, key=str(key)).parameters for key in range(2000)]
    noiseless = [each for each in drawn if each["read"] == 0]
    assert all(each["shot"] == 0 for each in noiseless)
    assert 0.2 < len(noiseless) / len(drawn) < 0.28
    # Such a pair would have an infinite PSNR before it is restored.
    untouched = [each for each in noiseless if each["blur"]["kind"] == "none"]
    assert untouched
    assert all(each["jpeg_quality"] for each in untouched)


def test_highlights_outshine_white() -> None:
    night = np.zeros((31, 31, 3), np.uint8)
    night[15, 15] = 255
    drawn = dict(blur.draw("photo", seed=0, key="a").parameters)
    drawn |= {"blur": {"kind": "defocus", "radius_px": 2.0}, "shot": 0.0, "read": 0.0}
    drawn |= {"jpeg_quality": None}
    dim, bright = (
        int(blur.degrade(night, blur.Degradation("photo", drawn | {"highlight": h}))[15, 15, 0])
        for h in (0.0, 1.5)
    )
    assert 0 < dim < bright


@pytest.mark.parametrize("recipe", NOISE_FREE)
def test_without_noise_only_rounding_is_left(recipe: str) -> None:
    drawn = blur.draw(recipe, seed=0, key="a")
    assert blur.noise_variance(drawn) == pytest.approx(1 / 12 / 255**2)


def test_box14_jpeg_is_box14_that_may_have_been_saved() -> None:
    rng = np.random.default_rng(4)
    sharp = cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 2)
    exact = blur.degrade(sharp, blur.draw("box14", seed=0, key="a"))
    qualities = []
    for key in map(str, range(200)):
        drawn = blur.draw("box14-jpeg", seed=0, key=key)
        error = blur.degrade(sharp, drawn).astype(float) - exact
        qualities.append(drawn.parameters["jpeg_quality"])
        assert error.any() == (qualities[-1] is not None)
        assert error.var() < 2 * 255**2 * blur.noise_variance(drawn)
    saved = [quality for quality in qualities if quality is not None]
    assert 40 < len(saved) < 80
    assert min(saved) >= 85


def test_golden_pictures() -> None:
    golden = np.load(GOLDEN)
    names = [name for name in golden.files if name.endswith(".json")]
    kinds = set()
    for name in names:
        text, expected = str(golden[name]), golden[name.removesuffix(".json")]
        recipe, _, key = name.removesuffix(".json").rpartition("-")
        drawn = blur.draw(recipe, seed=0, key=key)
        assert drawn.to_json() == text
        tolerance = 0 if recipe == "box14" else 1
        assert levels_apart(blur.degrade(golden["sharp"], drawn), expected) <= tolerance, name
        kinds.add(drawn.parameters.get("blur", {}).get("kind"))
    assert {name.rpartition("-")[0] for name in names} == set(blur.RECIPES)
    assert kinds >= set(blur.PHOTO_BLURS)
