"""Fourier transforms as matrices, against NumPy's."""

import numpy as np
import pytest

from deblur.networks.fourier import Grid, Spectrum


def _values(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width)).astype(np.float32)


def _places(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.int32)


def _complex(spectrum: Spectrum) -> np.ndarray:
    """Return it with the frequencies down in rising order, as `fftshift` has them."""
    found = np.asarray(spectrum.real) + 1j * np.asarray(spectrum.imaginary)
    above, below = np.split(found, 2, axis=-2)
    return np.concatenate([below[..., ::-1, :], above], axis=-2)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (528, 272)])
def test_a_spectrum_is_numpy_s_and_goes_back(height: int, width: int) -> None:
    values, places = _values(height, width), (_places(height), _places(width))
    grid = Grid(height, width)
    here = grid.at(*places)
    spectrum = here.analyse(values)
    expected = np.fft.fftshift(np.fft.rfft2(values), axes=1)
    np.testing.assert_allclose(_complex(spectrum), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(here.synthesise(spectrum), values, atol=1e-4)


def test_the_lower_half_is_a_part_of_all() -> None:
    values, places = _values(48, 80), (_places(48), _places(80))
    lower = Grid(48, 80, lower=True).at(*places)
    spectrum = lower.analyse(values)
    whole = np.fft.fftshift(np.fft.rfft2(values), axes=1)
    np.testing.assert_allclose(_complex(spectrum), whole[:, 12:36, :20], atol=1e-3)
    whole[:, :12] = whole[:, 36:] = whole[:, :, 20:] = 0
    # The lowest frequency down has no partner, where it has none across.
    whole[:, 12, 0] /= 2
    whole[:, 36, 0] = whole[:, 12, 0].conj()
    smooth = np.fft.irfft2(np.fft.ifftshift(whole, axes=1), s=(48, 80))
    np.testing.assert_allclose(lower.synthesise(spectrum), smooth, atol=1e-5)


@pytest.mark.parametrize("mirror", [3, 20])
def test_values_are_continued_as_their_mirror_image(mirror: int) -> None:
    values, (height, width) = _values(24, 36), (24 + 2 * mirror + 2, 36 + 2 * mirror + 2)
    seen = Grid(height, width).at(_places(24), _places(36), mirror).analyse(values)
    padded = np.zeros((2, height, width))
    padded[:, : 24 + 2 * mirror, : 36 + 2 * mirror] = np.pad(
        values, ((0, 0), (mirror, mirror), (mirror, mirror)), "reflect"
    )
    padded = np.roll(padded, (-mirror, -mirror), (1, 2))
    expected = np.fft.fftshift(np.fft.rfft2(padded), axes=1)
    np.testing.assert_allclose(_complex(seen), expected, atol=1e-3)


def test_a_product_of_spectra_is_a_convolution() -> None:
    values, grid = _values(32, 32), Grid(32, 32)
    here = grid.at(_places(32), _places(32))
    kernel = np.zeros((1, 3, 3), np.float32)
    kernel[0, 2, 1] = 1  # one row down
    shift = np.arange(-1, 2, dtype=np.int32)
    transfer = grid.at(shift, shift).analyse(kernel)
    moved = here.synthesise(here.analyse(values).times(transfer))
    np.testing.assert_allclose(moved, np.roll(values, 1, 1), atol=1e-4)
    back = transfer.conjugate().times(transfer)
    np.testing.assert_allclose(_complex(back), 1, atol=1e-5)
    np.testing.assert_allclose(transfer.power(), 1, atol=1e-5)
