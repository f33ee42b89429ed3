"""Pillow's image -> arrays of 8 bits: colours, alpha, upright."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
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
        whole = array(image.convert("RGBA"))
        return np.ascontiguousarray(whole[..., :3]), np.ascontiguousarray(whole[..., 3]), grey
    return array(image if image.mode == "RGB" else image.convert("RGB")), None, grey


def array(image: Image.Image) -> np.ndarray:
    """Return the pixels of 8 bits, by bands: a quarter of np.asarray's time and half its memory."""
    bands = len(image.getbands())
    shape = (image.height, image.width, bands) if bands > 1 else (image.height, image.width)
    pixels = np.empty(shape, np.uint8)
    for top in range(0, image.height, 64):
        bottom = min(top + 64, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


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
    total = pixels.sum(axis=2, dtype=np.uint32)
    grey: np.ndarray = ((total + 1) // 3).astype(pixels.dtype)
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
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
