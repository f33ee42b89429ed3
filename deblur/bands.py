"""Pillow's image <-> arrays: colours, alpha, upright. All goes by bands of rows.

What is made of a whole photo at once is held at once: for 100 megapixels of 16 bits, 600 MB for
each step of an expression, and Pillow's own image takes 400 MB.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

from deblur.errors import PhotoError
from deblur.pictures import MOST_SIDE_PX

_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_ROWS = 64
# Bands in which what is hidden is filled are higher, since each looks that far up and down for what
# is visible. Where there is nothing, an edge does no harm.
_FILLED_ROWS, _FILLED_FROM_PX = 512, 256
# The longest sides that encoders take: beyond them, the reasons of some say nothing, and what those of
# AVIF and HEIF still write, their decoders refuse.
_LONGEST_PX = {"JPEG": 65_500, "WEBP": MOST_SIDE_PX, "AVIF": 32_768, "HEIF": 65_520}
MODES = _ALPHA_MODES | {"1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK"}


def of_8_bits(image: Image.Image, depth: int) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (pixels, alpha, grey) of a loaded image; `depth` is that of a PNG, else 0."""
    if image.mode == "CMYK":
        return array(colours_of_inks(image)), None, False
    grey = image.mode in {"1", "L", "LA", "La"}
    key = image.info.get("transparency")
    if image.mode in _ALPHA_MODES or key is not None:
        if image.mode == "L" and isinstance(key, int):
            # Pillow stretches greys of 2 and 4 bits to 8, but not the grey that is transparent.
            image.info["transparency"] = key * {2: 85, 4: 17}.get(depth, 1)
        if image.mode == "La":
            image = image.convert("LA")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        alpha = np.empty(pixels.shape[:2], np.uint8)
        for part, samples in _parts(image):
            pixels[part], alpha[part] = samples[..., :3], samples[..., 3]
        return pixels, alpha, grey
    return array(image if image.mode == "RGB" else image.convert("RGB")), None, grey


def of_16_bits(halves: Iterable[Image.Image]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (pixels, alpha) of two images in RGB or RGBA: the upper bytes, and then the lower.

    Each is closed before the next is drawn.
    """
    pixels, alpha = np.empty((0, 0, 3), np.uint16), None
    for image in halves:
        if not pixels.size:
            pixels = np.zeros((image.height, image.width, 3), np.uint16)
            alpha = np.zeros(pixels.shape[:2], np.uint16) if image.mode == "RGBA" else None
        for part, samples in _parts(image):
            pixels[part] = pixels[part] << 8 | samples[..., :3]
            if alpha is not None:
                alpha[part] = alpha[part] << 8 | samples[..., 3]
        image.close()
    return pixels, alpha


def array(image: Image.Image) -> np.ndarray:
    """Return the pixels of 8 bits, in a quarter of np.asarray's time and half its memory."""
    channels = len(image.getbands())
    shape = (image.height, image.width, channels) if channels > 1 else (image.height, image.width)
    pixels = np.empty(shape, np.uint8)
    for part, samples in _parts(image):
        pixels[part] = samples
    return pixels


def slices(height: int) -> Iterator[slice]:
    """Yield the rows of one band after the other."""
    for top in range(0, height, _ROWS):
        yield slice(top, min(top + _ROWS, height))


def _parts(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    for part in slices(image.height):
        yield part, np.asarray(image.crop((0, part.start, image.width, part.stop)))


def colours_of_inks(image: Image.Image) -> Image.Image:
    """Return CMYK as sRGB through the embedded profile, if any: without it, inks look garish."""
    return _through_profile(image, image.info.get("icc_profile"))


def _through_profile(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            if converted := ImageCms.profileToProfile(image, source, target, outputMode="RGB"):
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of other colours: as if there were none
    return image.convert("RGB")


def colours_of_greys(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Return the pixels of a grey photo as sRGB through its profile of greys."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = array(_through_profile(ramp, icc))[0]
    if pixels.dtype == np.uint16:  # Pillow takes profiles for 8 bits only
        at = np.arange(65536) / 257
        channels = [np.interp(at, np.arange(256), level) for level in levels.T]
        levels = np.rint(np.stack(channels, axis=1) * 257).astype(np.uint16)
    colours = np.empty_like(pixels)
    grey = mean(pixels)
    for part in slices(len(pixels)):
        colours[part] = levels[grey[part]]
    return colours


def fill_hidden(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray | None:
    """Fill, in place, what is fully transparent with the nearest that is not; return what was there.

    Around a cut-out there may be anything, often black: a hard edge at its outline, which restoring
    would carry into what is visible.

    Returns:
        (N, 3), the N pixels in order; (1, 3), if all were alike; None, if there was nothing to do.
    """
    hidden = alpha == 0
    if hidden.all() or not hidden.any():
        return None
    before: np.ndarray = pixels[hidden]
    for top in range(0, len(pixels), _FILLED_ROWS):
        band = slice(max(top - _FILLED_FROM_PX, 0), top + _FILLED_ROWS + _FILLED_FROM_PX)
        inner = slice(top - band.start, top - band.start + _FILLED_ROWS)
        covered = hidden[band]
        if covered.all() or not covered[inner].any():
            continue
        # Each that is visible has a label of its own, which spreads to the hidden ones around it.
        labels = cv2.distanceTransformWithLabels(
            covered.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )[1]
        colours = np.empty((labels.max() + 1, 3), pixels.dtype)
        colours[labels[~covered]] = pixels[band][~covered]
        pixels[band][inner][covered[inner]] = colours[labels[inner][covered[inner]]]
    alike = not (before != before[0]).any()
    return before[:1].copy() if alike else before


def with_hidden(pixels: np.ndarray, alpha: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return a copy with what `fill_hidden` found put back."""
    pixels = pixels.copy()
    pixels[alpha == 0] = before
    return pixels


def mean(pixels: np.ndarray) -> np.ndarray:
    """Return the (H, W) grey of three channels: the channel itself where all three are equal."""
    grey = np.empty(pixels.shape[:2], pixels.dtype)
    for part in slices(len(pixels)):
        grey[part] = (pixels[part].sum(axis=2, dtype=np.uint32) + 1) // 3
    return grey


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (CIPA DC-008, 4.6.5.1)."""
    if orientation in {2, 7}:
        pixels = pixels[:, ::-1]
    elif orientation in {4, 5}:
        pixels = pixels[::-1]
    turns = {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8; 16 bits are rounded to the nearest of 8."""
    if pixels.dtype == np.uint8:
        return pixels
    rounded = np.empty(pixels.shape, np.uint8)
    for part in slices(len(pixels)):
        rounded[part] = (pixels[part].astype(np.uint32) * 255 + 32767) // 65535
    return rounded


def save(samples: np.ndarray, format: str, options: dict[str, Any]) -> bytes:
    """Code (H, W, 1 to 4) uint8 by Pillow. PhotoError where a side is too long for the format."""
    longest, most = max(samples.shape[:2]), _LONGEST_PX.get(format)
    if most and longest > most:
        raise PhotoError(f"a side of {longest} pixels is over its limit of {most}")
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **options)
    except OSError:
        if not options.get("progressive"):
            raise
        # Pillow's buffer for a progressive JPEG is two bytes a pixel, which noise can exceed.
        buffer = io.BytesIO()
        image.save(buffer, format, **options | {"progressive": False})
    return buffer.getvalue()
