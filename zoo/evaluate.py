"""Evaluation: one tokenizer on a data set, or several tokenizers side by side.

Reconstructions are rounded to uint8 before they are measured, so that the numbers are those of the saved
pictures. Beside them stands the same for a bicubically enlarged RGB thumbnail of equally many bits.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from zoo.data.transforms import eval_transform
from zoo.errors import DataError, InputError, WeightsError
from zoo.metrics.image import psnr, ssim
from zoo.pictures import BITS_PER_PIXEL, grid, save_png, thumbnail, to_uint8
from zoo.quality import Quality, padded
from zoo.quantize import usage
from zoo.types import Codes

if TYPE_CHECKING:
    from zoo.data.sources import Source
    from zoo.tokenizer import Tokenizer

WORST = 8  # items in worst.png
CELL = 192  # pixels, about, of an image in a contact sheet
THUMBNAIL_SIDES = range(1, 17)
COLUMNS: tuple[str, ...] = ("file", "psnr", "ssim", "thumbnail_psnr", "thumbnail_ssim")


def evaluate(
    tokenizer: Tokenizer,
    source: Source,
    out: str | Path | None = None,
    *,
    batch_size: int = 16,
    quality: Quality | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Encodes and decodes every image of `source` at the tokenizer's own size and measures the result.

    Args:
        tokenizer: an image tokenizer.
        source: images with names. One that cannot be read is named on stderr, counted, and left out.
        out: folder for metrics.json, items.csv and worst.png (the 8 of lowest PSNR); None writes nothing.
        batch_size: images per call. The last batch is padded, so that one shape compiles.
        quality: the metrics that need networks, new; what they lack is not measured.
        about: what else the report says, e.g. {"data": the path}.

    Returns:
        Flat and finite: psnr [dB], ssim (means over items), n, corrupt, image_size [px], resize and crop in words; for
        a tokenizer with codebooks also thumbnail_psnr, thumbnail_ssim, psnr_gain (psnr - thumbnail_psnr),
        bits_per_item, bits_per_pixel, and usage, perplexity, entropy_bits of the ids (means over its codebooks); with
        `quality` its summary; then `about`.

    Raises:
        DataError: there is no readable image.
        InputError: `out` cannot be written.
        WeightsError: a reconstruction holds NaN or infinity.
    """
    folder = None if out is None else writable(out)
    spec = tokenizer.spec
    size, bits = spec.input_shape[0], spec.bits_per_item()
    batch_size = min(batch_size, len(source))
    quality = quality or Quality()
    items, worst, corrupt, counts = [], [], {}, np.zeros((), np.int64)
    for names, images in _read_batches(source, size, batch_size, corrupt):
        output, codes = _reconstruct(tokenizer, images, names, batch_size)
        rows, pictures = _measure(names, images, output, bits, quality.add(images, output, batch_size))
        items += rows
        pairs = worst + list(zip(rows, pictures, strict=True))
        worst = sorted(pairs, key=lambda pair: pair[0]["psnr"])[:WORST]
        if not spec.continuous:
            counts = counts + usage.count_ids(_valid_ids(codes, len(names)), spec.vocab_sizes)
    if not items:
        example = f", e.g. {next(iter(corrupt.values()))}" if corrupt else ""
        raise DataError(f"nothing to evaluate: no readable image{example}; give other images")
    metrics = _summary(items, size, bits) | {"n": len(items), "corrupt": len(corrupt), "image_size": size}
    if not spec.continuous:
        metrics |= _codebook_metrics(counts, spec.vocab_sizes)
    metrics |= quality.summary() | (about or {})
    if folder:
        _write_json(folder / "metrics.json", metrics)
        _write_items(folder / "items.csv", items)
        save_png(_worst_picture(worst, size, bits), folder / "worst.png")
    return metrics


def compare(
    tokenizers: Sequence[Tokenizer], images: Sequence[tuple[str, np.ndarray]], out: str | Path
) -> dict[str, Any]:
    """Several tokenizers on the same images: a picture, a rate-distortion plot and the numbers.

    Each tokenizer sees the images at its own size, and its PSNR is measured there; the picture shows all of
    them at the largest of these sizes.

    Args:
        tokenizers: image tokenizers.
        images: (name, uint8 [h, w, 3]) of any size.
        out: folder for compare.png (rows: images; columns: original, tokenizers, and the thumbnail that has
            the bits of the first tokenizer with codebooks), rate_distortion.png and compare.json.

    Returns:
        What compare.json holds: "files"; "models", a list of name, image_size, bits_per_item and
        bits_per_pixel (None for continuous ones), psnr (mean, dB) and item_psnr (in the order of files);
        "thumbnails", a list of image_size, k, bits_per_pixel and psnr, for k = 1..16.

    Raises:
        InputError: no tokenizer, no image, or `out` cannot be written.
        WeightsError: a reconstruction holds NaN or infinity.
    """
    if not tokenizers or not images:
        raise InputError("nothing to compare: give at least one model and one image")
    folder = writable(out)
    names = [name for name, _ in images]
    sizes = sorted({tokenizer.spec.input_shape[0] for tokenizer in tokenizers})
    originals = {size: np.stack([eval_transform(image, size) for _, image in images]) for size in sizes}
    models, outputs = [], []
    for tokenizer in tqdm(tokenizers, desc="compare", unit="model", file=sys.stderr):
        x = originals[tokenizer.spec.input_shape[0]]
        outputs.append(_reconstruct_all(tokenizer, x, names))
        models.append(_model_numbers(tokenizer, x, outputs[-1]))
    result = {"files": names, "models": models, "thumbnails": _thumbnail_curve(originals)}
    _write_json(folder / "compare.json", result)
    save_png(_compare_picture(names, models, originals, outputs), folder / "compare.png")
    _plot_rate_distortion(result, folder / "rate_distortion.png")
    return result


def _read_batches(
    source: Source, size: int, batch_size: int, corrupt: dict[str, str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and uint8 [n, size, size, 3], in order; adds name -> reason of unreadable images to `corrupt`."""
    names, images = [], []
    for i in tqdm(range(len(source)), desc="eval", unit="image", file=sys.stderr):
        try:
            image = source[i]["image"]
        except InputError as error:
            corrupt[source.names[i]] = str(error)
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        names.append(source.names[i])
        images.append(eval_transform(image, size))
        if len(images) == batch_size:
            yield names, np.stack(images)
            names, images = [], []
    if images:
        yield names, np.stack(images)


def _reconstruct(
    tokenizer: Tokenizer, images: np.ndarray, names: Sequence[str], batch_size: int
) -> tuple[np.ndarray, Codes]:
    """uint8 [n, s, s, 3] there and back. The codes keep the padding: only their first n count."""
    n = len(images)
    codes = tokenizer.encode(padded(images, batch_size))
    output = np.asarray(tokenizer.decode(codes))[:n]
    finite = np.isfinite(output).all(axis=(1, 2, 3))
    if not finite.all():
        name = names[int(np.argmin(finite))]
        raise WeightsError(
            f"{tokenizer.name} decodes {name} to NaN or infinity: its weights are damaged or its training "
            "diverged; take an earlier checkpoint"
        )
    return to_uint8(output), codes


def _reconstruct_all(tokenizer: Tokenizer, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    step = min(16, len(images))
    parts = [
        _reconstruct(tokenizer, images[i : i + step], names[i : i + step], step)[0] for i in range(0, len(images), step)
    ]
    return np.concatenate(parts)


def _model_numbers(tokenizer: Tokenizer, images: np.ndarray, output: np.ndarray) -> dict[str, Any]:
    size, bits = tokenizer.spec.input_shape[0], tokenizer.spec.bits_per_item()
    quality = psnr(images, output)
    return {
        "name": tokenizer.name,
        "image_size": size,
        "bits_per_item": bits,
        "bits_per_pixel": None if bits is None else bits / size**2,
        "psnr": float(quality.mean()),
        "item_psnr": quality.tolist(),
    }


def _measure(
    names: Sequence[str], images: np.ndarray, output: np.ndarray, bits: float | None, more: dict[str, list[float]]
) -> tuple[list[dict[str, Any]], list[list[np.ndarray]]]:
    """Per item: a row of items.csv, with columns of `more`, and [original, reconstruction(, thumbnail)]."""
    columns: list[Sequence[Any]] = [names, psnr(images, output).tolist(), ssim(images, output).tolist()]
    shown = [images, output]
    if bits is not None:
        small = np.stack([thumbnail(image, bits)[0] for image in images])
        columns += [psnr(images, small).tolist(), ssim(images, small).tolist()]
        shown.append(small)
    keys = [*COLUMNS[: len(columns)], *more]
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*columns, *more.values(), strict=True)]
    return rows, [list(pictures) for pictures in zip(*shown, strict=True)]


def _valid_ids(codes: Codes, n: int) -> np.ndarray:
    """The ids [n, t, q] of the first n items, -1 past an item's end."""
    ids = np.asarray(codes.ids)[:n]
    return ids if codes.mask is None else np.where(np.asarray(codes.mask)[:n, :, None], ids, -1)


def _summary(items: list[dict[str, Any]], size: int, bits: float | None) -> dict[str, Any]:
    means: dict[str, Any] = {key: float(np.mean([item[key] for item in items])) for key in items[0] if key != "file"}
    means |= {"resize": f"shorter edge to {size} px, bicubic", "crop": f"centre, {size} x {size} px"}
    if bits is None:
        return means
    gain = means["psnr"] - means["thumbnail_psnr"]
    return means | {"psnr_gain": gain, "bits_per_item": bits, "bits_per_pixel": bits / size**2}


def _codebook_metrics(counts: np.ndarray, vocab_sizes: tuple[int, ...]) -> dict[str, float]:
    return {
        "usage": float(usage.usage(counts, vocab_sizes).mean()),
        "perplexity": float(usage.perplexity(counts).mean()),
        "entropy_bits": float(usage.entropy_bits(counts).mean()),
    }


def _worst_picture(worst: list[tuple[dict[str, Any], list[np.ndarray]]], size: int, bits: float | None) -> Any:
    columns = ["original", "reconstruction", "thumbnail of equal bits"][: 2 if bits is None else 3]
    labels = [["", *(f"{item[key]:.1f} dB" for key in ("psnr", "thumbnail_psnr") if key in item)] for item, _ in worst]
    return grid(
        [pictures for _, pictures in worst],
        columns=columns,
        labels=labels,
        row_labels=[item["file"] for item, _ in worst],
        scale=_scale(size),
    )


def _compare_picture(
    names: list[str],
    models: list[dict[str, Any]],
    originals: dict[int, np.ndarray],
    outputs: list[np.ndarray],
) -> Any:
    largest = max(originals)
    columns = ["original", *(model["name"] for model in models)]
    cells = [list(originals[largest]), *map(list, outputs)]
    captions = [[f"{largest} px"] * len(names)]
    for model in models:
        rate = "continuous" if model["bits_per_item"] is None else f"{model['bits_per_item']:,.0f} bits"
        captions.append([f"{rate}, {quality:.1f} dB" for quality in model["item_psnr"]])
    first = next((model for model in models if model["bits_per_item"] is not None), None)
    if first:
        images = originals[first["image_size"]]
        small, sides = zip(*(thumbnail(image, first["bits_per_item"]) for image in images), strict=True)
        columns.append(f"thumbnail {sides[0]} x {sides[0]}")
        cells.append(list(small))
        bits = BITS_PER_PIXEL * sides[0] ** 2
        captions.append([f"{bits:,} bits, {quality:.1f} dB" for quality in psnr(images, np.stack(small))])
    rows, labels = list(zip(*cells, strict=True)), list(zip(*captions, strict=True))
    return grid(rows, columns=columns, labels=labels, row_labels=names, scale=_scale(largest))


def _thumbnail_curve(originals: dict[int, np.ndarray]) -> list[dict[str, float]]:
    points = []
    for size, images in originals.items():
        for k in THUMBNAIL_SIDES:
            bits = BITS_PER_PIXEL * k**2
            small = np.stack([thumbnail(image, bits)[0] for image in images])
            quality = float(psnr(images, small).mean())
            points.append({"image_size": size, "k": k, "bits_per_pixel": bits / size**2, "psnr": quality})
    return points


def _plot_rate_distortion(result: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    text = {"textcoords": "offset points", "path_effects": [withStroke(linewidth=3, foreground="white")]}
    sizes = sorted({point["image_size"] for point in result["thumbnails"]})
    for size, style in zip(sizes, itertools.cycle(["-", "--", ":", "-."]), strict=False):
        points = [point for point in result["thumbnails"] if point["image_size"] == size]
        x, y = [p["bits_per_pixel"] for p in points], [p["psnr"] for p in points]
        axes.plot(x, y, f"{style}o", color="gray", markersize=3, linewidth=1, label=f"RGB thumbnail, {size} px")
    for model in result["models"]:
        if model["bits_per_pixel"] is None:
            line = axes.axhline(model["psnr"], linestyle=(0, (8, 3)), linewidth=1, color="tab:gray")
            label, point, where = f"{model['name']} (continuous)", (0.0, model["psnr"]), line.get_transform()
        else:
            label, point, where = model["name"], (model["bits_per_pixel"], model["psnr"]), "data"
            axes.plot(*point, "o", markersize=10, markeredgecolor="white")
        axes.annotate(label, point, xycoords=where, xytext=(6, 6), **text)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="bits per pixel", ylabel="mean PSNR (dB)", title=f"{len(result['files'])} images")
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def _scale(size: int) -> int:
    return max(1, round(CELL / size))


def writable(out: str | Path) -> Path:
    """Makes the folder and tries to write there, before hours of work and not after.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    return folder


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_items(path: Path, items: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *(key for key in items[0] if key not in COLUMNS)], restval="")
        writer.writeheader()
        for item in items:
            writer.writerow({key: f"{value:.4f}" if key != "file" else value for key, value in item.items()})
