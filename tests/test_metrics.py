"""Image metrics against scikit-image's numbers, codebook metrics against their definitions, and pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo.errors import InputError
from zoo.metrics.image import MAX_PSNR, psnr, ssim
from zoo.pictures import grid, save_png, thumbnail, to_uint8
from zoo.quantize.usage import count_ids, entropy_bits, perplexity, usage

# (seed, h, w, noise) -> scikit-image 0.26.0: structural_similarity(gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, channel_axis=-1, data_range=255), which also leaves out windows that cross the
# border, and peak_signal_noise_ratio(data_range=255)
REFERENCE = {
    (0, 32, 32, 10): (0.8097240122075243, 28.15717870970446),
    (1, 40, 23, 25): (0.4202196566793504, 20.304615735441345),
    (2, 11, 11, 60): (0.08242184130979159, 13.654034859003762),
}


def image_pair(seed, h, w, noise):
    y, x = np.mgrid[:h, :w]
    a = 127 + 60 * np.sin(x / 5 + np.arange(3)[:, None, None]) + 50 * np.cos(y / 7)
    a = np.moveaxis(a, 0, -1)
    b = a + np.random.default_rng(seed).normal(0, noise, a.shape)
    return [np.clip(np.rint(v), 0, 255).astype(np.uint8) for v in (a, b)]


@pytest.mark.parametrize("case", REFERENCE)
def test_image_metrics_equal_scikit_image(case):
    a, b = (v[None] for v in image_pair(*case))
    expected_ssim, expected_psnr = REFERENCE[case]
    np.testing.assert_allclose(ssim(a, b), [expected_ssim], rtol=1e-10)
    np.testing.assert_allclose(psnr(a, b), [expected_psnr], rtol=1e-10)
    np.testing.assert_allclose(ssim(a / 255, b), [expected_ssim], rtol=1e-10)


def test_image_metrics_are_per_item():
    a, noisy = image_pair(0, 32, 32, 10)
    x, y = np.stack([a, a, noisy]), np.stack([a, noisy, noisy])
    assert psnr(x, y)[[0, 2]].tolist() == [MAX_PSNR, MAX_PSNR]
    np.testing.assert_allclose(ssim(x, y), [1, REFERENCE[0, 32, 32, 10][0], 1], rtol=1e-10)


def test_psnr_of_a_known_error():
    a = np.full((1, 4, 4, 3), 0.5)
    np.testing.assert_allclose(psnr(a, a + 0.1), [20.0])


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 9, 3)), "shapes"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8, 3)), "shapes"),
        (np.full((1, 12, 12, 3), -1.0), np.zeros((1, 12, 12, 3)), "[0, 1]"),
        (np.zeros((1, 12, 12, 3)), np.full((1, 12, 12, 3), np.nan), "[0, 1]"),
        (np.zeros((1, 12, 10, 3)), np.zeros((1, 12, 10, 3)), "at least 11"),
    ],
)
def test_unfit_images_are_refused(a, b, words):
    with pytest.raises(InputError) as caught:
        ssim(a, b)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_codebook_metrics_of_known_counts():
    counts = np.array([[5, 5, 5, 5], [7, 0, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(usage(counts), [1, 0.25, 0.5, 0])
    np.testing.assert_allclose(entropy_bits(counts), [2, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(perplexity(counts), [4, 1, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(usage(counts, [4, 4, 2, 4]), [1, 0.25, 1, 0])


def test_codebook_metrics_inside_jit_take_any_scale():
    counts = jnp.array([[0.1, 0.3, 0.0], [1.0, 1.0, 2.0]])
    used, effective = jax.jit(lambda c: (usage(c), perplexity(c)))(counts)
    p = np.array([0.25, 0.75])
    np.testing.assert_allclose(used, [2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(effective, [np.prod(p**-p), 2**1.5], rtol=1e-6)


def test_ids_are_counted_per_codebook_without_padding():
    ids = np.array([[[0, 2], [1, 0]], [[1, 1], [-1, -1]]])  # [b, t, q]
    assert count_ids(ids, (2, 4)).tolist() == [[1, 2, 0, 0], [1, 1, 1, 0]]
    with pytest.raises(InputError, match="id 2 of codebook 0 is outside 0..1"):
        count_ids(ids[..., ::-1], (2, 4))


def test_to_uint8_inverts_the_scaling_and_clips():
    levels = np.arange(256, dtype=np.uint8)
    assert (to_uint8(levels / 127.5 - 1) == levels).all()
    assert to_uint8([-7.0, 0.999, 7.0]).tolist() == [0, 255, 255]


@pytest.mark.parametrize(("bits", "k"), [(0, 1), (23, 1), (95.9, 1), (96, 2), (1535, 7), (1536, 8), (1e9, 32)])
def test_thumbnail_spends_at_most_the_bits(bits, k):
    image = image_pair(0, 32, 40, 10)[1]
    small, side = thumbnail(image, bits)
    assert side == k and small.shape == image.shape and small.dtype == np.uint8


def test_thumbnail_is_the_area_average():
    image = image_pair(0, 32, 32, 10)[1]
    mean = image.mean(axis=(0, 1))
    assert np.abs(thumbnail(image, 24)[0] - mean).max() <= 1
    flat = np.full((16, 16, 3), 77, np.uint8)
    assert (thumbnail(flat, 384)[0] == 77).all()
    quality = [psnr(image[None], thumbnail(image, 24 * k**2)[0][None])[0] for k in (1, 4, 16)]
    assert quality == sorted(quality)


def test_grid_shows_every_image_at_one_size():
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    small = blue[:4, :4]
    sheet = grid(
        [[red, small]] * 3,
        columns=["original", "a heading wider than its picture"],
        labels=[["", "22.4 dB"]] * 3,
        row_labels=["photo.jpg", "a_very_long_name_" * 9, "c"],
        scale=5,
    )
    pixels = np.asarray(sheet).reshape(-1, 3)
    for color in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == color).all(axis=1).sum() == 3 * 40 * 40
    edge = np.concatenate([np.asarray(sheet)[[0, -1]].ravel(), np.asarray(sheet)[:, [0, -1]].ravel()])
    assert (edge == 255).all() and sheet.width < 700


def test_save_png_makes_folders_and_names_the_place_it_cannot_write(tmp_path):
    image = image_pair(0, 12, 12, 10)[0]
    save_png(image, tmp_path / "new" / "a.png")
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == image).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*b.png"):
        save_png(image, tmp_path / "file" / "b.png")
