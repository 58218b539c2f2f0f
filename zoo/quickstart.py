"""`zoo quickstart`: real photos to tokens and back with the bundled model, as pictures and a page to read."""

from __future__ import annotations

import base64
import html
import io
import shlex
import shutil
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from zoo.data.sources import open_source, subset
from zoo.data.transforms import eval_transform
from zoo.errors import InputError
from zoo.evaluate import writable
from zoo.metrics.image import psnr
from zoo.pictures import grid, save_png, thumbnail, to_uint8
from zoo.pretrained import load
from zoo.tokenizer import Tokenizer

PRESET = "titok_tiny.photos"
PHOTOS = (
    "chelsea_cat.jpg",
    "coffee_cup.jpg",
    "chinese_pagoda.jpg",
    "tulips.jpg",
    "rocky_shore.jpg",
    "fig_in_red_bowl.jpg",
)
COPIED = 4  # photos that the next commands work on; two are too few to hold one out
PIXELS = 192  # of a picture on screen
COLUMNS = ("original", "reconstruction", "thumbnail of equal bits")
HERE = Path(__file__).parent
NOTEBOOKS = (HERE / "notebooks" / "quickstart.ipynb", HERE.parent / "notebooks" / "quickstart.ipynb")


def quickstart(out: Path) -> None:
    """Encodes and decodes bundled photos, prints ids and bits, and says what to do next.

    Writes quickstart.png, quickstart.html (which needs no other file), photos/ and, where it is at hand, the
    notebook quickstart.ipynb.

    Args:
        out: a folder; what it holds already stays, but for files of these names.

    Raises:
        InputError: `out` cannot be written. CheckpointError: the bundled release is damaged.
    """
    out = writable(out)
    tokenizer = load(PRESET)
    size, bits = tokenizer.spec.input_shape[0], tokenizer.spec.bits_per_item()
    assert bits is not None
    names, originals = _read_photos(size)
    codes = tokenizer.encode(originals)
    outputs = to_uint8(tokenizer.decode(codes))
    thumbnails = np.stack([thumbnail(image, bits)[0] for image in originals])
    quality = psnr(originals, outputs), psnr(originals, thumbnails)
    ids = np.asarray(codes.ids)[:, :, 0]
    _print_photos(tokenizer, names, ids, quality)

    rows = list(zip(originals, outputs, thumbnails, strict=True))
    scale = max(1, round(PIXELS / size))
    captions = [["", f"{a:.1f} dB", f"{b:.1f} dB"] for a, b in zip(*quality, strict=True)]
    sheet = grid(rows, columns=COLUMNS, labels=captions, row_labels=[_title(n) for n in names], scale=scale)
    save_png(sheet, out / "quickstart.png")
    page = _page(tokenizer, names, rows, quality, ids, _next_commands(out, names[0], tokenizer.name))
    try:
        (out / "quickstart.html").write_text(page, encoding="utf-8")
        _copy_files(out, names)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    print(f"\n{out / 'quickstart.png'}   {' | '.join(COLUMNS)}")
    print(f"{out / 'quickstart.html'}  the same with all ids: open it in a browser")
    print("\nNext, with files that were just written:")
    for command, what in _next_commands(out, names[0], tokenizer.name):
        print(f"\n  # {what}\n  {command}")


def _read_photos(size: int) -> tuple[list[str], np.ndarray]:
    """Names and uint8 [n, size, size, 3] of the photos shown."""
    bundled = open_source("bundled")
    source = subset(bundled, [bundled.names.index(name) for name in PHOTOS])
    return source.names, np.stack([eval_transform(source[i]["image"], size) for i in range(len(source))])


def _print_photos(
    tokenizer: Tokenizer, names: list[str], ids: np.ndarray, quality: tuple[np.ndarray, np.ndarray]
) -> None:
    bits = tokenizer.spec.bits_per_item()
    print(tokenizer)
    for name, row, ours, thumb in zip(names, ids, *quality, strict=True):
        first = " ".join(map(str, row[:8]))
        print(f"{name:22}{bits:,.0f} bits  {ours:.1f} dB (thumbnail {thumb:.1f})  ids {first} ...")
    print(f"{'mean':22}{bits:,.0f} bits  {quality[0].mean():.1f} dB (thumbnail {quality[1].mean():.1f})")


def _copy_files(out: Path, names: list[str]) -> None:
    (out / "photos").mkdir(exist_ok=True)
    for name in names[:COPIED]:
        shutil.copyfile(HERE / "data" / "photos" / name, out / "photos" / name)
    if notebook := _notebook():
        shutil.copyfile(notebook, out / "quickstart.ipynb")


def _notebook() -> Path | None:
    """The notebook, in the package or in a checkout."""
    return next((path for path in NOTEBOOKS if path.is_file()), None)


def _next_commands(out: Path, name: str, model: str) -> list[tuple[str, str]]:
    """(command, what it does), all of them on files that the quickstart writes."""
    photos, photo, npz, run, notebook = (
        shlex.quote(str(out / part))
        for part in ("photos", f"photos/{name}", f"{Path(name).stem}.npz", "run", "quickstart.ipynb")
    )
    # the config's own learning rate is for a fresh model: in 20 steps it costs a trained one 1.5 dB
    train = f"zoo train smoke/titok --data.path {photos} --init {model} --optim.lr 1e-4 --workdir {run} --steps 20"
    commands = [
        (f"zoo encode {photo} --out {npz}", "a photo to tokens: give your own"),
        (train, "train on a folder of images, from the bundled model on: give your own, and more steps"),
    ]
    if _notebook():
        hint = "all of this in Python; needs: pip install 'tokenizer-zoo[notebooks]'"
        commands.append((f"jupyter lab {notebook}", hint))
    return commands


def _title(name: str) -> str:
    return Path(name).stem.replace("_", " ")


def _page(
    tokenizer: Tokenizer,
    names: list[str],
    rows: list[tuple[np.ndarray, ...]],
    quality: tuple[np.ndarray, np.ndarray],
    ids: np.ndarray,
    commands: list[tuple[str, str]],
) -> str:
    """The HTML page; pictures are part of it."""
    spec = tokenizer.spec
    size, bits = spec.input_shape[0], spec.bits_per_item()
    photos = [
        _photo(name, row, ["", f"{ours:.1f} dB", f"{thumb:.1f} dB"], codes)
        for name, row, ours, thumb, codes in zip(names, rows, *quality, ids, strict=True)
    ]
    steps = [f"<p>{html.escape(what)}</p><pre>{html.escape(command)}</pre>" for command, what in commands]
    return Template((HERE / "quickstart.html").read_text(encoding="utf-8")).substitute(
        model=html.escape(tokenizer.name),
        size=size,
        tokens=spec.tokens,
        vocabulary=f"{spec.vocab_size:,}",
        bits=f"{bits:,.0f}",
        raw=f"{24 * size * size:,}",
        side=thumbnail(rows[0][0], bits or 0)[1],
        ours=f"{quality[0].mean():.1f}",
        thumbnail=f"{quality[1].mean():.1f}",
        photos="\n".join(photos),
        steps="\n".join(steps),
    )


def _photo(name: str, row: tuple[np.ndarray, ...], captions: list[str], codes: np.ndarray) -> str:
    figures = [
        f'<figure><img src="{_data_uri(image)}" alt="{html.escape(_title(name))}, {column}">'
        f"<figcaption>{column} <b>{caption}</b></figcaption></figure>"
        for image, column, caption in zip(row, COLUMNS, captions, strict=True)
    ]
    numbers = "".join(f"<span>{code}</span>" for code in codes)
    return (
        f'<section><h2>{html.escape(_title(name))}</h2><div class="row">{"".join(figures)}</div>'
        f'<div class="ids">{numbers}</div></section>'
    )


def _data_uri(image: np.ndarray) -> str:
    """A PNG in the page itself, enlarged bicubically as in quickstart.png."""
    side = image.shape[0] * max(1, round(2 * PIXELS / image.shape[0]))  # twice: sharp on dense screens
    file = io.BytesIO()
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
