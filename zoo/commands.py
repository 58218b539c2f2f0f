"""What the commands of zoo/cli.py do, where that takes more than a few lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputError, ZooError

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.sources import Source
    from zoo.tokenizer import Tokenizer
    from zoo.types import Codes

DEFAULT_MODEL = "titok_tiny.photos"  # for images
BATCH = 16  # images per call
SHOWN = 8  # items whose ids are printed
SHOWN_IDS = 12
MAX_COMPARED = 24  # rows of a picture that people look at
CODE_FIELDS = ("length", "size", "file", "model", "spec")


def complain(error: BaseException | str) -> None:
    """One line on stderr, past a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"zoo: {' '.join(str(error).splitlines())}", file=sys.stderr)


def use_compilation_cache() -> None:
    """Keeps compiled programs in $ZOO_CACHE/xla (default ~/.cache/tokenizer-zoo/xla) for later commands.

    A cache that the user has set stays; without a writable folder there is none.
    """
    import jax

    from zoo.pretrained import cache_folder

    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = cache_folder() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load(model: str) -> Tokenizer:
    """The tokenizer of a preset or release folder, compiled through the cache."""
    from zoo import pretrained

    use_compilation_cache()
    return pretrained.load(model)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


class Images:
    """The readable images of files, folders and data sets. Unreadable ones are named on stderr and counted.

    Attributes:
        bad: how many could not be read so far.
    """

    def __init__(self, files: Iterable[str]):
        from zoo.data.sources import open_source

        self.bad = 0
        self._items: list[tuple[str, Source, int]] = []
        for file in files:
            try:
                source = open_source(file)
            except ZooError as error:
                self._skip(error)
                continue
            alone = source.names == [Path(file).name]
            self._items += [(file if alone else f"{file}/{name}", source, i) for i, name in enumerate(source.names)]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, uint8 [h, w, 3]); the name is the path as given."""
        for name, source, i in self._items:
            try:
                yield name, source[i]["image"]
            except InputError as error:
                self._skip(error)

    def _skip(self, error: ZooError) -> None:
        complain(error)
        self.bad += 1


def encode(files: Sequence[str], model: str | None, out: str) -> int:
    """Writes the codes of all readable images; 1 if there were others."""
    import numpy as np

    images = Images(files)
    if not len(images):
        return 1
    check_writable(Path(out).parent)
    if model is None:
        model = DEFAULT_MODEL
        print(f"no --model given: using {model}, which is bundled", file=sys.stderr)
    tokenizer = load(model)
    names, codes = _encode_all(tokenizer, images)
    if not names:
        return 1
    # a folder is stored whole, so that `zoo decode` finds it from anywhere
    codes["model"] = np.array(str(Path(model).resolve()) if Path(model).is_dir() else model)
    _save_npz(Path(out), codes)
    _print_codes(tokenizer, names, codes)
    total = len(names) + images.bad
    print(f"{len(names)} of {total} images written to {out}")
    return 1 if images.bad else 0


def _encode_all(tokenizer: Tokenizer, images: Images) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names, and the arrays of a codes file but for its model."""
    import numpy as np
    from tqdm import tqdm

    from zoo.config import to_json
    from zoo.data.transforms import eval_transform

    size, count = tokenizer.spec.input_shape[0], min(BATCH, len(images))
    names, batch, parts = [], [], []
    for name, image in tqdm(images, desc="encode", unit="image", file=sys.stderr, disable=None):
        names.append(name)
        batch.append(eval_transform(image, size))
        if len(batch) == count:
            parts.append(_encode_batch(tokenizer, batch, count))
            batch = []
    if batch:
        parts.append(_encode_batch(tokenizer, batch, count))
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else ())}
    arrays |= {"file": np.array(names), "spec": np.array(json.dumps(to_json(tokenizer.spec)))}
    return names, arrays


def _encode_batch(tokenizer: Tokenizer, batch: list[np.ndarray], count: int) -> dict[str, np.ndarray]:
    """One batch, padded to `count` images so that one shape compiles."""
    import numpy as np

    codes = tokenizer.encode(np.stack(batch + batch[-1:] * (count - len(batch))))
    n, mask = len(batch), np.asarray(codes.mask)
    arrays = {"length": mask.sum(1).astype(np.int32), "size": np.asarray(codes.size, np.int32)}
    if tokenizer.spec.continuous:
        arrays["latents"] = np.asarray(codes.latents, np.float32)
    else:
        arrays["ids"] = np.where(mask[..., None], np.asarray(codes.ids, np.int32), -1)
    return {key: array[:n] for key, array in arrays.items()}


def _print_codes(tokenizer: Tokenizer, names: list[str], codes: dict[str, np.ndarray]) -> None:
    for i, name in enumerate(names[:SHOWN]):
        t = int(codes["length"][i])
        if tokenizer.spec.continuous:
            print(f"{name}  {t} tokens of {tokenizer.spec.latent_dim} channels")
            continue
        ids = codes["ids"][i, :t].ravel()
        more = " ..." if ids.size > SHOWN_IDS else ""
        bits = tokenizer.spec.bits_per_item(t)
        print(f"{name}  {t} tokens, {bits:,.0f} bits: {' '.join(map(str, ids[:SHOWN_IDS]))}{more}")
    if len(names) > SHOWN:
        print(f"... and {len(names) - SHOWN} more")


def decode(file: str, model: str | None, out: str) -> None:
    """Writes one PNG per item of a codes file."""
    import numpy as np
    from tqdm import tqdm

    from zoo.pictures import save_png, to_uint8

    stored = _read_npz(file)
    folder = check_writable(out)
    tokenizer = load(model or str(stored["model"]))
    codes = _stored_codes(file, stored, tokenizer)
    paths = _paths(folder, stored["file"].tolist())
    for start in tqdm(range(0, len(paths), BATCH), desc="decode", unit="batch", file=sys.stderr, disable=None):
        rows = np.arange(start, start + min(BATCH, len(paths))).clip(max=len(paths) - 1)  # pads: one shape
        images = tokenizer.decode(_take(codes, rows))
        for path, image in zip(paths[start : start + BATCH], images, strict=False):
            save_png(to_uint8(image), path)
    for path in paths[:SHOWN]:
        print(path)
    print(f"{len(paths)} images written to {folder}")


def _stored_codes(file: str, stored: dict[str, np.ndarray], tokenizer: Tokenizer) -> Codes:
    """The codes of a file, checked against the model.

    Raises:
        InputError: they are another model's, or no codes of this one.
    """
    import numpy as np

    from zoo.config import to_json
    from zoo.types import Codes

    kind = "latents" if tokenizer.spec.continuous else "ids"
    ours, theirs = json.loads(json.dumps(to_json(tokenizer.spec))), json.loads(str(stored["spec"]))
    other = [f"{key} {theirs.get(key)} instead of {value}" for key, value in ours.items() if theirs.get(key) != value]
    if other or kind not in stored:
        why = "; ".join(other) or f"no {kind}"
        raise InputError(f"{file} holds codes of {stored['model']}, not of {tokenizer.name} ({why}); give that model")
    values = stored[kind]
    n = values.shape[:1]
    if values.ndim != 3 or not values.size or any(stored[k].shape[:1] != n for k in ("length", "size", "file")):
        shapes = ", ".join(f"{key} {list(stored[key].shape)}" for key in (kind, "length", "size", "file"))
        raise InputError(f"{file}: {shapes}; {kind} is [n, t, channels] and the others have the same n: encode again")
    mask = np.arange(values.shape[1]) < stored["length"][:, None]
    arrays: dict[str, Any] = {kind: values, "mask": mask, "size": stored["size"]}
    try:
        return tokenizer.check_codes(Codes(**arrays))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _take(codes: Codes, rows: np.ndarray) -> Codes:
    import jax

    return jax.tree.map(lambda array: array[rows], codes)


def _paths(folder: Path, sources: list[str]) -> list[Path]:
    """A PNG per source, named after it: all different, and none of them a source itself."""
    taken = {Path(source).resolve() for source in sources}
    paths = []
    for source in sources:
        stem = Path(source).stem or "item"
        path, number = folder / f"{stem}.png", 1
        while path.resolve() in taken:
            number += 1
            path = folder / f"{stem}_{number}.png"
        taken.add(path.resolve())
        paths.append(path)
    return paths


def evaluate(model: str, data: str, out: str | None, **files: str | None) -> None:
    """Measures, prints a table with the published numbers, and says of what was not run what it needs."""
    from zoo import evaluate, presets, quality
    from zoo.data.sources import open_source

    source = open_source(data)
    tokenizer = load(model)
    preset = next((preset for preset in presets.all_presets() if preset.name == tokenizer.name), None)
    about: dict[str, Any] = {"model": tokenizer.name, "data": data}
    if preset and preset.published:
        about |= {f"published_{name}": value for name, value in preset.published.items()}
        about["published_on"] = preset.citation
    measures = quality.from_files(**files)
    metrics = evaluate.evaluate(tokenizer, source, out, quality=measures, about=about)
    print(_metrics_table(metrics, measures.not_run))
    for name, needs in measures.not_run.items():
        print(f"{quality.NAMES[name]} not run: {needs}")


def _metrics_table(metrics: dict[str, Any], not_run: Iterable[str]) -> str:
    """Measured and published numbers side by side, then what they were measured on."""
    published = {name.removeprefix("published_"): value for name, value in metrics.items() if "published_" in name}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    names = [*(name for name in numbers if "published_" not in name), *not_run]
    names += [name for name in published if name not in names and name != "on"]
    rows = [["metric", "measured", "published"]] if published else [["metric", "measured"]]
    for name in names:
        cells = [name, f"{numbers[name]:,.6g}" if name in numbers else "not run"]
        rows.append(cells + [f"{published[name]:,.6g}" if name in published else ""] * bool(published))
    facts = [[name, value] for name, value in metrics.items() if isinstance(value, str)]
    return f"{table(rows)}\n\n{table(facts)}"


def compare(models: Sequence[str], data: Sequence[str], out: str) -> int:
    """Writes the comparison and prints its numbers; 1 if some images could not be read."""
    from zoo import evaluate

    check_writable(out)
    images = Images(data)
    shown = [(Path(name).name, image) for _, (name, image) in zip(range(MAX_COMPARED), images, strict=False)]
    if not shown:
        return 1
    if len(images) > MAX_COMPARED:
        print(f"comparing the first {MAX_COMPARED} of {len(images)} images", file=sys.stderr)
    result = evaluate.compare([load(model) for model in models], shown, out)
    rows = [["model", "size", "bits", "bits per pixel", "PSNR, dB"]]
    for model in result["models"]:
        bits, rate = model["bits_per_item"], model["bits_per_pixel"]
        cells = ["continuous", ""] if bits is None else [f"{bits:,.0f}", f"{rate:.4f}"]
        rows.append([model["name"], str(model["image_size"]), *cells, f"{model['psnr']:.2f}"])
    print(table(rows))
    print(f"{len(shown)} images compared in {Path(out) / 'compare.png'} and {Path(out) / 'rate_distortion.png'}")
    return 1 if images.bad else 0


def bench(what: str, json: str | None) -> int:
    """Prints each row as it is measured; 1 if there are none. What lacks a package is named and left out."""
    from zoo import bench, bench_rows

    parts = bench.parts(what)
    if json:
        check_writable(Path(json).parent)
    rows = []
    for part in parts:
        try:
            for row in part():
                print(bench_rows.line(row), flush=True)
                rows.append(row)
                if json:
                    _write_json(Path(json), rows)
        except InputError as error:
            complain(error)
    return 0 if rows else 1


# -- files


def check_writable(folder: str | Path) -> Path:
    """Makes the folder and tries to write there, before the work and not after.

    Raises:
        InputError: it cannot be written.
    """
    from zoo.evaluate import writable

    return writable(folder)


def _write_json(path: Path, value: Any) -> None:
    check_writable(path.parent)
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes all or nothing: an older file stays until the new one is whole."""
    import zipfile

    import numpy as np

    temp = path.with_name(f".{path.name}.tmp")
    try:
        with zipfile.ZipFile(temp, "w") as archive:  # np.savez takes no array called "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        os.replace(temp, path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _read_npz(file: str) -> dict[str, np.ndarray]:
    """The arrays of a codes file.

    Raises:
        InputError: it is no such file.
    """
    import numpy as np

    hint = "give a file that `zoo encode` wrote"
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or 'not an .npz file'}; {hint}") from error
    except Exception as error:  # zipfile, zlib and numpy have each their own
        raise InputError(f"{file} is damaged or not an .npz file ({type(error).__name__}); {hint}") from error
    if missing := [key for key in CODE_FIELDS if key not in arrays]:
        raise InputError(f"{file} lacks {', '.join(missing)}; {hint}")
    return arrays
