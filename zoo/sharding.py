"""Where arrays live: meshes, and the sharding of every leaf of a state. Decided here, never inside a model.

Axes are Auto: under jax's default, Explicit, the codebook gather and two-axis patchify raise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.errors import InputError

AXES = ("data", "fsdp")
SMALLEST = 2**14  # values; smaller arrays are replicated


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A (data, fsdp) mesh over the first data * fsdp devices; -1: as many as there are.

    Raises:
        InputError: more devices than there are, or a size that does not divide them.
    """
    devices = jax.devices()
    if fsdp < 1 or (data < 1 and data != -1):
        raise InputError(f"mesh {data} x {fsdp}; give positive sizes, or -1 for data")
    if data == -1:
        data = len(devices) // fsdp
    if not 1 <= data * fsdp <= len(devices):
        raise InputError(
            f"mesh of {max(data, 1)} x {fsdp} devices; there are {len(devices)}: lower mesh.data or mesh.fsdp"
        )
    return jax.make_mesh((data, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices[: data * fsdp])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Every leaf whole on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def fsdp(mesh: Mesh, tree: Any) -> Any:
    """Large leaves split over the fsdp axis along their largest divisible axis; the others replicated.

    Axis 0 of an array of three or more axes is a layer or a row of a kernel that a scan slices: it stays whole.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [a for a in range(len(leaf.shape) > 2, len(leaf.shape)) if leaf.shape[a] % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < SMALLEST:
            return NamedSharding(mesh, PartitionSpec())
        widest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * widest, "fsdp"))

    return jax.tree.map(place, tree)


def by_rules(mesh: Mesh, tree: Any, rules: Sequence[tuple[str, PartitionSpec]]) -> Any:
    """The spec of the first regular expression that is found in a leaf's path ("a/b/c"); replicated if none is."""

    def place(path: Any, _: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a global batch, as arrays sharded along axis 0."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings: what a checkpoint restores to."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
