"""Name rules: which tensor of the reference is which leaf of ours, and how its axes are laid out.

A rule is data. `Rule("encoder.transformer.{layer}.ln_1.weight", "encoder.blocks.block.ln1.scale")` says that the leaf
on the right stacks the tensors on the left: a placeholder that only the reference has is the leading layer axis.
`{path}` stands for any dotted name, every other placeholder for an integer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of inverse maps between the reference's axes and ours; both linear, so gradients convert likewise."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_reference: Callable[[np.ndarray], np.ndarray]


def _patch_to_reference(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, x.shape[1]).transpose(3, 2, 0, 1)


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
CONV_1X1 = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # OI11 <-> [in, out]
PATCH = Layout(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patch_to_reference)  # O3PP <-> [PP3, out]
TOKEN = Layout(lambda x: x[0], lambda x: x[None])  # [1, 1, d] <-> [1, d]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One reference name pattern, one path pattern of ours, and the layout between them."""

    reference: str
    ours: str
    layout: Layout = SAME

    def names(self, path: str, shape: Sequence[int]) -> tuple[list[str], bool] | None:
        """The reference names of the leaf at `path`, and whether they stack along its axis 0; None if no match."""
        match = re.fullmatch(_pattern(self.ours), path)
        if match is None:
            return None
        name = self.reference
        for key, value in match.groupdict().items():
            name = name.replace(f"{{{key}}}", value)
        layer = re.search(r"\{\w+\}", name)
        if layer is None:
            return [name], False
        return [name.replace(layer.group(), str(i)) for i in range(shape[0])], True


def layer(reference: str, ours: str, layout: Layout) -> list[Rule]:
    """Weight and bias of a convolution or a linear layer, or with SAME of a norm."""
    weight = "scale" if layout is SAME else "kernel"
    return [Rule(f"{reference}.weight", f"{ours}.{weight}", layout), Rule(f"{reference}.bias", f"{ours}.bias")]


def _pattern(template: str) -> str:
    escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{'.+' if m[1] == 'path' else '[0-9]+'})", escaped)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of ours with its reference tensors."""

    path: tuple
    names: list[str]
    stacked: bool
    layout: Layout

    def to_ours(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        arrays = [self.layout.to_ours(t) for t in tensors]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_reference(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
        arrays = leaf if self.stacked else [leaf]
        return {name: self.layout.to_reference(a) for name, a in zip(self.names, arrays, strict=True)}


def plan(rules: Sequence[Rule], leaves: dict[tuple, tuple[int, ...]]) -> list[Entry]:
    """Matches every leaf (path -> shape) with the first rule that fits.

    Raises:
        KeyError: a leaf that no rule names; the rules are incomplete.
    """
    entries = []
    for path, shape in leaves.items():
        dotted = ".".join(map(str, path))
        for rule in rules:
            if found := rule.names(dotted, shape):
                entries.append(Entry(path, *found, rule.layout))
                break
        else:
            raise KeyError(f"no name rule for {dotted}")
    return entries


def reference_shapes(entries: Sequence[Entry], leaves: dict[tuple, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the state dict that the entries describe; no memory is used."""
    shapes = {}
    for entry in entries:
        empty = np.broadcast_to(np.float32(0), leaves[entry.path])
        shapes |= {name: tensor.shape for name, tensor in entry.to_reference(empty).items()}
    return shapes
