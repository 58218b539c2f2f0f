"""Equal blocks as one: parameters with a leading layer axis and one scan.

At 605 M parameters 48 separate blocks compile their gradient in 120 s, a scanned stack in 4 s.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array


class Stack(nnx.Module):
    """`depth` blocks of equal shape, applied one after the other.

    `block` is one block whose every parameter has a leading axis of length `depth`.

    Args:
        make: builds one block from an nnx.Rngs.
        depth: number of blocks.
        remat: recompute a block's activations in the backward pass instead of keeping them.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, remat: bool = False, rngs: nnx.Rngs):
        graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        keys = jax.random.split(rngs.params(), depth)
        self.block = nnx.merge(graph, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))
        self.depth = depth
        self.remat = remat

    def __call__(self, x: Array, *args) -> Array:
        """Applies all blocks to x; `args` go to each block unchanged."""
        graph, params = nnx.split(self.block)

        def body(x, layer):
            return nnx.merge(graph, layer)(x, *args), None

        return jax.lax.scan(jax.checkpoint(body) if self.remat else body, x, params)[0]

    def layer(self, index: int) -> nnx.Module:
        """One block with its own parameters, to look at or to run alone."""
        graph, params = nnx.split(self.block)
        return nnx.merge(graph, jax.tree.map(lambda p: p[index], params))
