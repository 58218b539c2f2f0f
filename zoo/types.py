"""What the layers exchange: Spec, Codes, Quantized, and the protocols that models and quantizers follow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What a tokenizer takes and gives.

    Attributes:
        modality: "image", "audio" or "text".
        input_shape: the training size, (h, w, 3) or (samples, channels), even where other sizes work.
        input_range: lowest and highest value in the module's own range. Tokenizer always takes [-1, 1].
        tokens: positions t of one item at `input_shape`.
        vocab_size: size of ONE codebook (a tuple where they differ); None for continuous tokenizers.
        num_codebooks: the q of ids [b, t, q].
        latent_dim: d of latents [b, t, d]; set for continuous tokenizers only.
        size_multiple: accepted heights and widths (or sample counts) are the multiples of this; None: only
            `input_shape`.
        sample_rate: Hz, audio only.
        rate: tokens per second, audio only.
        causal: encodes and decodes chunk by chunk.
        elastic: any prefix of the tokens decodes.
        conditions: names of the arrays that decode needs besides the codes, with their shapes without batch.
    """

    modality: str
    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    tokens: int
    vocab_size: int | tuple[int, ...] | None = None
    num_codebooks: int = 1
    latent_dim: int | None = None
    size_multiple: int | None = None
    sample_rate: int | None = None
    rate: float | None = None
    causal: bool = False
    elastic: bool = False
    conditions: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def continuous(self) -> bool:
        return self.vocab_size is None

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """The size of each of the `num_codebooks` codebooks; empty for continuous tokenizers."""
        if self.vocab_size is None:
            return ()
        if isinstance(self.vocab_size, int):
            return (self.vocab_size,) * self.num_codebooks
        return self.vocab_size

    def bits_per_item(self, tokens: int | None = None) -> float | None:
        """Bits of the ids of one item with `tokens` positions (default: `self.tokens`).

        Every id counts log2(vocab_size), as if all were equally likely. None for continuous tokenizers.
        """
        if self.continuous:
            return None
        return (self.tokens if tokens is None else tokens) * sum(map(math.log2, self.vocab_sizes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes:
    """One batch of tokens. Exactly one of `ids` and `latents` is set.

    Attributes:
        ids: int32 [b, t, q]; q is the codebook axis, 1 for a single codebook.
        latents: float32 [b, t, d] of a continuous tokenizer.
        mask: bool [b, t], False past an item's end.
        size: int32 [b, 2] (height, width) or [b, 1] (samples): what decode restores.
    """

    ids: Int[Array, "b t q"] | None = None
    latents: Float[Array, "b t d"] | None = None
    mask: Bool[Array, "b t"] | None = None
    size: Int[Array, "b s"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a quantizer returns.

    Attributes:
        z: [..., d] quantized vectors; gradients pass as the estimator says (straight-through by default).
        ids: int32 [..., q], None for continuous latents.
        losses: scalars by name, unweighted. The weights live in the recipe.
        metrics: scalars by name, for the log only.
        stats: sums over the batch, e.g. "counts" [q, vocab]; added over accumulation steps and devices. A quantizer
            made of others nests theirs.
        samples: vectors of the batch that `update` may replace dead codes with, nested likewise; concatenated over
            accumulation steps.
    """

    z: Float[Array, "*b d"]
    ids: Int[Array, "*b q"] | None = None
    losses: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Quantizer(Protocol):
    """A map from vectors to codes, in float32 whatever the model's dtype (float64 under x64).

    `update` and `initialize` are pure: they return new values of the state that has no gradient, for
    zoo.quantize.assign. They are empty where there is none.
    """

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Codes of each of the q codebooks; empty for continuous latents."""
        ...

    def __call__(
        self,
        z: Float[Array, "*b d"],
        *,
        mask: Bool[Array, "*b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Quantized: ...

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]: ...

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[Any, Any]: ...

    def initialize(self, z: Float[Array, "*b d"], **options: Any) -> dict[Any, Any]: ...


@runtime_checkable
class TokenizerModule(Protocol):
    """Pure maths: an nnx.Module in the reference's own input range. key=None is deterministic everywhere."""

    spec: Spec

    def encode(
        self, x: Array, *, mask: Array | None = None, key: PRNGKeyArray | None = None, **options: Any
    ) -> Codes: ...

    def decode(self, codes: Codes, *, key: PRNGKeyArray | None = None, **options: Any) -> Array: ...

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None, **conditions: Any) -> tuple[Array, Quantized]: ...


@runtime_checkable
class StreamingModule(Protocol):
    """A causal TokenizerModule: chunk by chunk equals the whole. The state is a pytree."""

    def init_state(self, batch: int) -> Any: ...

    def encode_chunk(self, state: Any, x: Array) -> tuple[Any, Codes]: ...

    def decode_chunk(self, state: Any, ids: Int[Array, "b t q"]) -> tuple[Any, Array]: ...
