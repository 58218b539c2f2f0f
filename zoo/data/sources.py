"""Sources of images: random access by index, the same item for the same index every time.

open_source(path) -> Source      bundled | folder | image file | tensorflow-datasets folder | ArrayRecord
holdout(source) -> train, held out              split by item, never by crop
Resilient(source)                               unreadable items are replaced and counted
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.data.transforms import read_image
from zoo.errors import DataError, InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
RECORD_SUFFIXES = (".array_record", ".arrayrecord")
ACCEPTED = (
    "'bundled', a folder of PNG, JPEG or WebP images, a tensorflow-datasets folder,"
    " or ArrayRecord files of encoded images"
)


class Source(Protocol):
    """A random-access sequence of images.

    `source[i]` is {"image": uint8 [h, w, 3], "name": str} and raises InputError if item i is unreadable.
    `names` are known without reading any image.
    """

    @property
    def names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_source(path: str) -> Source:
    """Opens images; the kind is recognised from the path.

    Args:
        path: one of
            - "bundled": the photos of this package;
            - a folder, searched recursively for images; hidden ones are skipped, names are sorted;
            - one image file;
            - a tensorflow-datasets folder prepared in the array_record format, with a feature "image";
              ":split" after it reads another split than train;
            - an ArrayRecord file or a folder of them, whose records are encoded images.

    Raises:
        DataError: the path is missing, or there are no images in it.
    """
    if path == "bundled":
        return _ImageFiles(Path(__file__).parent / "photos")
    folder, _, split = path.partition(":")
    if not Path(path).exists() and _is_tfds(Path(folder)):
        return _TfdsImages(Path(folder), split)
    root = Path(path)
    if not root.exists():
        raise DataError(f"{path}: no such file or folder; data is {ACCEPTED}")
    if root.is_file():
        return _open_file(root)
    if _is_tfds(root):
        return _TfdsImages(root, "train")
    records = sorted(p for p in root.iterdir() if p.suffix.lower() in RECORD_SUFFIXES)
    return _ArrayRecords(records) if records else _ImageFiles(root)


def _is_tfds(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def _open_file(path: Path) -> Source:
    if path.suffix.lower() in RECORD_SUFFIXES:
        return _ArrayRecords([path])
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _ImageFiles(path.parent, [path.name])
    raise DataError(f"{path}: neither an image nor an ArrayRecord file; data is {ACCEPTED}")


class _ImageFiles:
    """Image files under `root`; an item's name is its path from there."""

    def __init__(self, root: Path, names: list[str] | None = None):
        self._root = root
        self.names = names or _find_images(root)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        return {"image": read_image(self._root / name, name), "name": name}


def _find_images(root: Path) -> list[str]:
    paths = (p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    names = sorted(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
    if not names:
        what = "holds no PNG, JPEG or WebP images" if any(root.iterdir()) else "is an empty folder"
        raise DataError(f"{root} {what}; data is {ACCEPTED}")
    return names


class _TfdsImages:
    """One split of a prepared tensorflow-datasets folder, read without TensorFlow.

    Images stay encoded until an item is read, so that a damaged one is an InputError like any other.
    """

    def __init__(self, folder: Path, split: str):
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(folder)
        features = dict(builder.info.features.items())
        if not isinstance(features.get("image"), tfds.features.Image):
            raise DataError(f"{folder} has no image feature 'image' but {sorted(features)}; choose another data set")
        try:
            decoders = {"image": tfds.decode.SkipDecoding()}
            self._records: Any = builder.as_data_source(split, decoders=decoders)
        except (ValueError, NotImplementedError) as error:
            splits = ", ".join(builder.info.splits)
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{folder}: cannot read split '{split}' ({reason}); splits are {splits}, and the data must"
                " have been prepared with file_format='array_record'"
            ) from error
        self.names = [f"{split}/{i:08d}" for i in range(len(self._records))]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _read_record(lambda: self._records[index]["image"], self.names[index])


class _ArrayRecords:
    """ArrayRecord files whose records are encoded images; an item's name is its file and its number there."""

    def __init__(self, paths: list[Path]):
        self._records = [_open_records(path) for path in paths]
        self._index = [(f, i) for f, records in enumerate(self._records) for i in range(len(records))]
        if not self._index:
            raise DataError(f"{paths[0]}: ArrayRecord without records; data is {ACCEPTED}")
        self.names = [f"{paths[f].name}/{i:08d}" for f, i in self._index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, record = self._index[index]
        return _read_record(lambda: self._records[file][record], self.names[index])


def _open_records(path: Path) -> Any:
    import grain

    try:
        return grain.sources.ArrayRecordDataSource(str(path))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged ArrayRecord file ({reason}); write it again") from error


def _read_record(fetch: Callable[[], bytes], name: str) -> dict[str, Any]:
    """One item from the encoded image that `fetch` returns; the reader's own checksums raise RuntimeError."""
    try:
        data = bytes(fetch())
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: damaged record ({reason}); write its file again") from error
    return {"image": read_image(data, name), "name": name}


class _Subset:
    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, list(indices)
        self.names = [source.names[i] for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]


def subset(source: Source, indices: Sequence[int]) -> Source:
    """The items of `source` at `indices`, in that order."""
    return _Subset(source, indices)


def holdout(source: Source, share: float = 0.05) -> tuple[Source, Source]:
    """Splits by item: (train, held out).

    An item is held out if the hash of its name falls below `share`, so adding files moves no other file. At
    least one item is on either side (the lowest or highest hash, the one case in which a new file can move
    another); a source of a single item is returned as both.

    Args:
        source: what to split.
        share: part of the items to hold out, 0 to 1.
    """
    if len(source) == 1:
        return source, source
    order = np.array([_hash(name) for name in source.names])
    held = order < share
    held[order.argmin()], held[order.argmax()] = True, False
    return subset(source, np.flatnonzero(~held).tolist()), subset(source, np.flatnonzero(held).tolist())


def _hash(name: str) -> float:
    """A number in [0, 1) from a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


class Resilient:
    """A source in which an unreadable item is replaced by the next readable one.

    The same index always gives the same item. Safe to read from several threads.

    Attributes:
        corrupt: what was found unreadable so far, name -> reason.
    """

    def __init__(self, source: Source, max_corrupt: float = 0.05):
        """Wraps `source`; more than `max_corrupt` (a share of its items) unreadable ones are a DataError."""
        self._source, self._limit = source, max_corrupt
        self._lock = threading.Lock()
        self.names = source.names
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads item `index`, or the first readable one after it (around the end).

        Raises:
            DataError: the unreadable items exceed the share, or nothing is readable.
        """
        for i in range(index, index + len(self)):
            i %= len(self)
            if self.names[i] not in self.corrupt:
                try:
                    return self._source[i]
                except InputError as error:
                    with self._lock:
                        self.corrupt[self.names[i]] = str(error)
            self._check()
        raise DataError(f"none of the {len(self)} items is readable: {self._first()}")

    def _check(self) -> None:
        count = len(self.corrupt)
        if count > self._limit * len(self):
            raise DataError(
                f"{count} of {len(self)} items are unreadable, more than max_corrupt={self._limit:g} allows;"
                f" mend them or raise it: {self._first()}"
            )

    def _first(self) -> str:
        with self._lock:
            reasons = list(self.corrupt.values())
        return " | ".join(reasons[:3]) + (" | ..." if len(reasons) > 3 else "")
