"""Around a quantizer: projections to its width and back, a soft clamp, fixed random projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import CodebookState, Module, full_precision, l2_normalize
from zoo.types import Quantized


class Wrapper(Module):
    """A quantizer of `inside(z)` whose codes go through `outside`. All else is the inner quantizer's."""

    def __init__(self, quantizer: Any):
        self.quantizer = quantizer

    def inside(self, z: Float[Array, "*b d"]) -> Float[Array, "*b c"]:
        return z

    def outside(self, q: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return q

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.quantizer.vocab_sizes

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        return self.around(self.quantizer(self.inside(full_precision(z)), mask=mask, key=key))

    def around(self, out: Quantized) -> Quantized:
        """What the inner quantizer gave, as seen from outside."""
        stats = {"quantizer": out.stats} | {k: v for k, v in out.stats.items() if k == "counts"}
        return dataclasses.replace(out, z=self.outside(out.z), stats=stats, samples={"quantizer": out.samples})

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        return self.outside(self.quantizer.lookup(ids))

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        return {"quantizer": self.quantizer.update(stats["quantizer"], samples["quantizer"])}

    def initialize(self, z: Float[Array, "*b d"], **options: Any) -> dict[str, Any]:
        return {"quantizer": self.quantizer.initialize(self.inside(full_precision(z)), **options)}


class Projected(Wrapper):
    """Linear layers from `dim` channels to the quantizer's `inner` and back: a low-dimensional codebook uses its codes
    better (ViT-VQGAN, arXiv:2110.04627, section 3.2). In float32.

    Args:
        quantizer: of vectors of `inner` channels.
        dim: channels outside.
        inner: channels inside.
        norm: a LayerNorm after the projection in.
        cosine: the projection in multiplies unit vectors by unit columns, and by this number, without bias.
        use_bias: of the other projections.
    """

    def __init__(
        self,
        quantizer: Any,
        dim: int,
        inner: int,
        *,
        norm: bool = False,
        cosine: float | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        super().__init__(quantizer)
        self.project_in = nnx.Linear(dim, inner, use_bias=use_bias and cosine is None, rngs=rngs)
        self.project_out = nnx.Linear(inner, dim, use_bias=use_bias, rngs=rngs)
        self.norm = nnx.LayerNorm(inner, epsilon=1e-5, use_fast_variance=False, rngs=rngs) if norm else None
        self.cosine = cosine

    def inside(self, z: Float[Array, "*b d"]) -> Float[Array, "*b c"]:
        if self.cosine is not None:
            return l2_normalize(z) @ l2_normalize(self.project_in.kernel[...].T).T * self.cosine
        z = self.project_in(z)
        return self.norm(z) if self.norm else z

    def outside(self, q: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return self.project_out(q)


class SoftClamp(Wrapper):
    """tanh(z / limit) * limit before the quantizer.

    Args:
        quantizer: any.
        limit: one number, or one per channel.
    """

    def __init__(self, quantizer: Any, limit: float | Sequence[float]):
        super().__init__(quantizer)
        self.limit = limit if isinstance(limit, float | int) else tuple(limit)

    def inside(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        limit = jnp.asarray(self.limit, z.dtype)
        return jnp.tanh(z / limit) * limit


class RandomProjection(Wrapper):
    """Labels for self-supervised learning from a fixed random projection and codebook (Chiu et al. 2022, BEST-RQ,
    arXiv:2202.01855, section 3). Nothing learns and no gradient passes.

    z is normalised over its channels (zero mean, unit variance), projected, and quantized: in the paper by the nearest
    code of a random codebook after l2-normalising both, `VQ(..., l2_norm=True)`, or a `Product` of them.

    Args:
        quantizer: of vectors of `inner` channels, left as it is.
        dim: channels outside.
        inner: channels inside.
    """

    def __init__(self, quantizer: Any, dim: int, inner: int, *, rngs: nnx.Rngs):
        super().__init__(quantizer)
        self.projection = CodebookState(jax.random.normal(rngs.params(), (dim, inner)) * (2 / (dim + inner)) ** 0.5)

    def inside(self, z: Float[Array, "*b d"]) -> Float[Array, "*b c"]:
        mean = jnp.mean(z, -1, keepdims=True)
        variance = jnp.mean((z - mean) ** 2, -1, keepdims=True)
        return jax.lax.stop_gradient((z - mean) * jax.lax.rsqrt(variance + 1e-5) @ self.projection[...])

    def outside(self, q: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return jax.lax.stop_gradient(q)
