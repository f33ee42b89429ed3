"""Pillow's image -> arrays: colours, alpha, upright. All goes by bands of rows.

What is made of a whole photo at once is held at once: for 100 megapixels of 16 bits, 600 MB for
each step of an expression, and Pillow's own image takes 400 MB.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageCms

_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_ROWS = 64
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
    if icc := image.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            if converted := ImageCms.profileToProfile(image, source, target, outputMode="RGB"):
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of other colours: as if there were none
    return image.convert("RGB")


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
