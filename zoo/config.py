"""Frozen dataclass configs to JSON and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def to_json(config: Any) -> Any:
    """A dataclass (nested, with tuples) as dicts, lists and scalars."""
    return dataclasses.asdict(config)


def from_json(cls: type, data: Any) -> Any:
    """The inverse of `to_json` for the dataclass `cls`.

    Raises:
        TypeError: a field is unknown or missing.
    """
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints.get(name, Any), value) for name, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(Any, v) for v in value)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_json(typing.cast(type, option), value)
    return value
