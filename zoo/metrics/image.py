"""Full-reference image quality on the host, in float64: PSNR and SSIM."""

from __future__ import annotations

import numpy as np

from zoo.errors import InputError

MAX_PSNR = 100.0  # dB given to identical images: infinity has no place in JSON and in a mean
SSIM_WINDOW = 11


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of images, -10 log10(mean squared error) at peak 1.

    Args:
        a: [n, h, w, c], uint8 or float in [0, 1].
        b: the same shape, uint8 or float in [0, 1].

    Returns:
        float64 [n], dB, at most `MAX_PSNR` (identical images get exactly that).

    Raises:
        InputError: shapes differ, or a float image leaves [0, 1] or holds NaN.
    """
    a, b = _pair(a, b)
    mse = np.mean((a - b) ** 2, axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(mse, 10 ** (-MAX_PSNR / 10)))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair, averaged over windows and channels.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 13(4), 2004: gaussian 11 x 11 window with sigma 1.5, K1 = 0.01, K2 = 0.03, data
    range 1, population (not sample) covariance. Only windows wholly inside the image count. The paper takes
    the luminance; here each RGB channel is compared and the mean taken, as scikit-image does.

    Args:
        a: [n, h, w, c], uint8 or float in [0, 1], at least 11 px high and wide.
        b: the same shape, uint8 or float in [0, 1].

    Returns:
        float64 [n], at most 1.

    Raises:
        InputError: shapes differ, images are smaller than the window, or values leave [0, 1].
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise InputError(
            f"ssim got images of {a.shape[1]} x {a.shape[2]} px, its window needs at least "
            f"{SSIM_WINDOW} x {SSIM_WINDOW}: compare larger images"
        )
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a = _window_mean(a * a) - mean_a**2
    var_b = _window_mean(b * b) - mean_b**2
    cov = _window_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * cov + c2) / (var_a + var_b + c2)
    return np.mean(luminance * contrast_structure, axis=(1, 2, 3))


def _window_mean(x: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of each whole window: [n, h, w, c] -> [n, h - 10, w - 10, c]."""
    from scipy.ndimage import correlate1d

    r = SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / 1.5) ** 2)
    weights /= weights.sum()
    x = correlate1d(x, weights, axis=1)[:, r:-r]
    return correlate1d(x, weights, axis=2)[:, :, r:-r]


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = _unit_range(a), _unit_range(b)
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"got images of shapes {a.shape} and {b.shape}: give two equal [n, h, w, c]")
    return a, b


def _unit_range(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image / 255.0
    image = image.astype(np.float64)
    if not (image.min() >= 0 and image.max() <= 1):  # written so that NaN fails too
        raise InputError(
            f"got float images in [{image.min():.3g}, {image.max():.3g}]: give uint8, or float in [0, 1] "
            "(a tokenizer's [-1, 1] goes through zoo.pictures.to_uint8)"
        )
    return image
