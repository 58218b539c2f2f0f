"""What pictures and the evaluation look at where a tokenizer alone does not turn images into images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.types import Codes


class WithoutText(nnx.Module):
    """A text-aware tokenizer whose text is all zeros."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.config = tokenizer, tokenizer.config
        self.spec = dataclasses.replace(tokenizer.spec, conditions=())

    def encode(self, x: Float[Array, "b h w 3"], **options: Any) -> Codes:
        return self.tokenizer.encode(x, **options)

    def decode(self, codes: Codes, *, key: Any = None) -> Float[Array, "b h w 3"]:
        ids_or_latents = codes.latents if codes.ids is None else codes.ids
        assert ids_or_latents is not None
        text = jnp.zeros((ids_or_latents.shape[0], *self.config.text))
        return self.tokenizer.decode(codes, text=text, key=key)


class ThroughTeacher(nnx.Module):
    """A stage-1 TiTok whose most likely codes its teacher decodes, as the original evaluates that stage."""

    def __init__(self, tokenizer: Any, teacher: Any):
        self.tokenizer, self.teacher, self.config = tokenizer, teacher, tokenizer.config
        self.spec = tokenizer.spec

    def encode(self, x: Float[Array, "b h w 3"], **options: Any) -> Codes:
        return self.tokenizer.encode(x, **options)

    def decode(self, codes: Codes, *, key: Any = None) -> Float[Array, "b h w 3"]:
        logits = self.tokenizer.decode_latents(self.tokenizer.quantize.lookup(codes.ids))
        ids = jnp.argmax(logits, -1).reshape(logits.shape[0], -1, 1).astype(jnp.int32)
        return self.teacher.decode(Codes(ids=ids))
