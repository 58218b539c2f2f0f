"""Reads what torch.save wrote before torch 1.6: a state dict of tensors, without torch.

    pickles: a magic number | a version | sizes of C types | the state dict, whose tensors name storages | their names
    then for each storage: int64 count, raw little-endian numbers

A pickle is a program and can run anything. These are never run: `pickletools` lists their operations, and `_read`
follows the few that a state dict needs. What names anything else is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    **{"torch FloatStorage": "<f4", "torch DoubleStorage": "<f8"},
    **{"torch HalfStorage": "<f2", "torch LongStorage": "<i8"},
}
Tensor = tuple[str, int, list[int], list[int]]  # storage, offset, shape and axes as they lie there


def _tensor(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor without gaps, whose axes may be transposed; lengths of 1 have no order."""
    axes = sorted(range(len(shape)), key=lambda i: (shape[i] == 1, -strides[i]))
    stored = [shape[i] for i in axes]
    if any(n > 1 and strides[axes[i]] != math.prod(stored[i + 1 :]) for i, n in enumerate(stored)):
        raise ValueError(f"it holds a tensor {shape} of strides {strides}, which leaves numbers out")
    return storage, offset, stored, axes


CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
}
MARK = object()
CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"MARK": lambda: MARK, "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}


def _read(file: BinaryIO, dtypes: dict[str, str]) -> Any:
    """The value of the pickle that begins here, of dicts, lists, tuples, numbers, text and tensors.

    Storages stand as their keys; their types go into `dtypes`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        match operation.name:
            case "PROTO" | "STOP":
                continue
            case "GLOBAL":
                if argument not in CALLS | STORAGES:
                    raise ValueError(f"it names {argument.replace(' ', '.')}, which is no part of a state dict")
                stack.append(argument)
            case "REDUCE":
                values = stack.pop()
                stack.append(CALLS[stack.pop()](*values))
            case "BUILD":  # attributes of an OrderedDict: torch keeps versions there
                stack.pop()
            case "BINPERSID":
                _, storage, key, *_ = stack.pop()
                dtypes[key] = STORAGES[storage]
                stack.append(key)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(_since_mark(stack)))
            case "APPENDS":
                values = _since_mark(stack)
                stack[-1].extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                values = _since_mark(stack)
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name]())
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case name:
                raise ValueError(f"it has the pickle operation {name}, which no state dict needs")
    return stack.pop()


def _since_mark(stack: list[Any]) -> list[Any]:
    at = max(i for i, value in enumerate(stack) if value is MARK)
    values = stack[at + 1 :]
    del stack[at:]
    return values


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file in the old format, as they are stored.

    Raises:
        Exception: of many kinds, where the file is another one or truncated.
    """
    dtypes: dict[str, str] = {}
    with Path(path).open("rb") as file:
        if _read(file, dtypes) != MAGIC:
            raise ValueError("it is no file of torch.save")
        _version, _sizes, state, keys = (_read(file, dtypes) for _ in range(4))
        storages = {}
        for key in keys:
            (count,) = np.fromfile(file, "<i8", 1)
            storages[key] = np.fromfile(file, dtypes[key], count)
    return {
        name: storages[key][offset : offset + math.prod(shape)].reshape(shape).transpose(np.argsort(axes))
        for name, (key, offset, shape, axes) in state.items()
    }
