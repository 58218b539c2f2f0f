"""Reads what torch.save wrote before torch 1.6: a state dict of tensors, without torch.

    pickles: a magic number | a version | sizes of C types | the state dict, whose tensors name storages | their names
    then for each storage: int64 count, raw little-endian numbers

A pickle can run code. This one may name the few things below, none of which does, and anything else is refused, as
torch's own weights_only loader does.
"""

from __future__ import annotations

import collections
import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
Tensor = tuple[str, int, list[int], list[int]]  # storage, offset, shape and axes as they lie there


def _tensor(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor without gaps, whose axes may be transposed; lengths of 1 have no order."""
    axes = sorted(range(len(shape)), key=lambda i: (shape[i] == 1, -strides[i]))
    stored = [shape[i] for i in axes]
    if any(n > 1 and strides[axes[i]] != math.prod(stored[i + 1 :]) for i, n in enumerate(stored)):
        raise pickle.UnpicklingError(f"it holds a tensor {shape} of strides {strides}, which leaves numbers out")
    return storage, offset, stored, axes


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): name for name in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Builds only dicts, and descriptions of tensors and storages."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, str] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is no part of a state dict")
        return ALLOWED[module_name, global_name]

    def persistent_load(self, pid: Any) -> str:
        _, storage, key, *_ = pid
        self.dtypes[key] = DTYPES[storage]
        return key


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file in the old format, as they are stored.

    Raises:
        Exception: of many kinds, where the file is another one or truncated.
    """
    with Path(path).open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise pickle.UnpicklingError("it is no file of torch.save")
        for _ in ("version", "sizes of C types"):
            _Unpickler(file).load()
        described = _Unpickler(file)
        state = described.load()
        storages = {}
        for key in _Unpickler(file).load():
            (count,) = np.fromfile(file, "<i8", 1)
            storages[key] = np.fromfile(file, described.dtypes[key], count)
    return {
        name: storages[key][offset : offset + math.prod(shape)].reshape(shape).transpose(np.argsort(axes))
        for name, (key, offset, shape, axes) in state.items()
    }
