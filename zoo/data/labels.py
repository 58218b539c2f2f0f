"""What is known of an image beside its pixels: a teacher's ids, or a text embedding."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence

import numpy as np

from zoo.errors import DataError

KEYS = ("ids", "text")


class Labels:
    """Rows of an .npz by the name of their image.

    The file holds `file` str [n] and one or both of `ids` int32 [n, t, q], as `zoo encode` writes them, and `text`
    float [n, l, d], the text encoder's output. `file` may have more leading folders than the names.

    Raises:
        DataError: unreadable, not of this form, or without a row for one of `names`.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in ("file", *KEYS) if key in file.files}
        except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"cannot read the labels {path}: {error}; `zoo encode IMAGES --out FILE` writes such"
            ) from error
        files = [str(name) for name in arrays.pop("file", ())]
        if not arrays or any(len(array) != len(files) for array in arrays.values()):
            raise DataError(
                f"{path} holds {sorted(arrays)} and {len(files)} file names; labels need `file` and `ids` or `text` "
                "of the same length"
            )
        self._arrays = arrays
        rows: dict[str, list[int]] = {}
        for row, file in enumerate(files):
            for name in _endings(file):
                rows.setdefault(name, []).append(row)
        missing = [name for name in names if len(rows.get(name, ())) != 1]
        if missing:
            raise DataError(
                f"{path} has no single row for {len(missing)} of {len(names)} images, the first "
                f"is {missing[0]}; write the labels again for this folder"
            )
        self._rows = {name: rows[name][0] for name in names}

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        row = self._rows[name]
        return {key: array[row] for key, array in self._arrays.items()}


def _endings(file: str) -> list[str]:
    """a/b/c.png, b/c.png, c.png"""
    parts = file.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]
