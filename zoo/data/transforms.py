"""Reading image files and the published crops, on the host with Pillow and numpy.

The evaluation and training crops are those of TiTok (arXiv:2406.07550, ImageTransform in the repository
bytedance/1d-tokenizer); the ADM crop (arXiv:2105.05233) is center_crop_arr of its pretokenization script.
Pillow's bicubic filter always antialiases and rounds to uint8, so the results are exact and not only close.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_ASPECT = 100  # a 1 x 10,000 image would be enlarged to 256 x 2,560,000 before the crop


def read_image(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """Reads a PNG, JPEG or WebP image of any mode as upright RGB.

    Grey is repeated three times. Transparent pixels are laid over white. 16-bit grey is rounded to 8 bits
    (v / 257); of 16-bit colour Pillow keeps the high byte. EXIF orientation is applied. Of an animation the
    first frame counts. Images above 179 million pixels (Pillow's limit) are refused.

    Args:
        source: a path, or the encoded bytes.
        name: what to call the image in errors; the path by default.

    Returns:
        uint8 [h, w, 3].

    Raises:
        InputError: a missing, truncated, over-large or very long image, or a file of another kind.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); give a PNG, JPEG or WebP file") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        what = "is empty" if not data else "does not hold a PNG, JPEG or WebP image"
        raise InputError(f"{name}: {what}; replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: damaged or too large ({reason}); replace or remove it") from error
    h, w, _ = rgb.shape
    if max(h, w) > MAX_ASPECT * min(h, w):
        raise InputError(f"{name}: {w} x {h} pixels; one side may be at most {MAX_ASPECT} times the other, crop it")
    return rgb


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Converts any mode that the three formats decode to, to uint8 [h, w, 3]."""
    if image.mode.startswith("I"):  # 16-bit grey: 'I;16', 'I;16B', or 'I' in older versions of Pillow
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resize of the shorter edge to `size`; the longer edge is truncated to whole pixels.

    Args:
        image: uint8 [h, w, 3].
        size: pixels of the shorter edge.
    """
    height, width = _shorter_to(image, size)
    return np.array(_pil(image).resize((width, height), Image.Resampling.BICUBIC))


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` x `size` pixels of uint8 [h, w, 3]; half a pixel rounds to even, as Python rounds."""
    h, w, _ = image.shape
    top, left = round((h - size) / 2), round((w - size) / 2)
    return image[top : top + size, left : left + size]


def eval_transform(image: np.ndarray, size: int) -> np.ndarray:
    """The published evaluation preprocessing: shorter edge to `size`, then the middle square.

    Args:
        image: uint8 [h, w, 3] of any size.
        size: pixels of the square.

    Returns:
        uint8 [size, size, 3].
    """
    return center_crop(resize_shorter(image, size), size)


def adm_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The ADM crop: halved by box averages while possible, then bicubic, then the middle square.

    Args:
        image: uint8 [h, w, 3] of any size.
        size: pixels of the square.

    Returns:
        uint8 [size, size, 3].
    """
    pil = _pil(image)
    while min(pil.size) >= 2 * size:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.Resampling.BOX)
    scale = size / min(pil.size)
    pil = pil.resize((round(pil.width * scale), round(pil.height * scale)), Image.Resampling.BICUBIC)
    left, top = (pil.width - size) // 2, (pil.height - size) // 2
    return np.array(pil.crop((left, top, left + size, top + size)))


def train_transform(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    flip: bool = True,
    diversify: bool = False,
) -> np.ndarray:
    """The published training preprocessing: shorter edge to `size`, a random square, a random mirror.

    Only the square is resampled (Pillow's `box`): the same pixels as resizing everything and cropping, but
    for a grey level or two where the float32 corners of the box tip a rounding, and cheaper.

    Args:
        image: uint8 [h, w, 3] of any size.
        size: pixels of the square.
        rng: draws everything that is random.
        scale: the shorter edge becomes `size` times a uniform draw from this range, 1 <= low <= high. The
            published recipes use 1.
        flip: mirrors left and right with probability one half.
        diversify: then changes what photos of one source have in common; see `diversify_photo`. Not published.

    Returns:
        uint8 [size, size, 3].
    """
    h, w, _ = image.shape
    height, width = _shorter_to(image, round(size * rng.uniform(*scale)))
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    y, x = h / height, w / width
    box = (left * x, top * y, min((left + size) * x, w), min((top + size) * y, h))
    crop = np.array(_pil(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
    crop = np.ascontiguousarray(crop[:, ::-1]) if flip and rng.random() < 0.5 else crop
    return diversify_photo(crop, rng) if diversify else crop


def diversify_photo(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes from a photo what a small collection has in common: where the sky is, its hues, its haze.

    A quarter turn in half of the cases, the colour channels in another order in half of the cases, contrast times
    2^U(-0.5, 1) around the mean grey and saturation times 2^U(-0.5, 1) around each pixel's grey.

    Args:
        image: uint8 [s, s, 3].
        rng: draws the changes.

    Returns:
        uint8 [s, s, 3].
    """
    if rng.random() < 0.5:
        image = np.rot90(image, rng.choice([1, 3]))
    if rng.random() < 0.5:
        image = image[..., rng.permutation(3)]
    contrast, saturation = 2.0 ** rng.uniform(-0.5, 1, 2).astype(np.float32)
    grey = image.mean(-1, keepdims=True, dtype=np.float32)
    middle = grey.mean()
    out = middle + contrast * (grey - middle + saturation * (image - grey))
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _shorter_to(image: np.ndarray, size: int) -> tuple[int, int]:
    """Height and width after the shorter edge becomes `size`."""
    h, w, _ = image.shape
    return (size, int(size * w / h)) if h <= w else (int(size * h / w), size)


def _pil(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"got {image.dtype} {list(image.shape)}; an image is uint8 [h, w, 3], convert it first")
    return Image.fromarray(image)
