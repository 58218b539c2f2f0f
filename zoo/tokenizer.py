"""Tokenizer: what users hold. A module with its spec, and checked, compiled encode and decode.

Modules are pure maths in their reference's own range; this file does everything around them: shapes, dtypes, ranges,
NaN, id bounds, batching of different sizes, compilation once per shape, and matmul precision.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.errors import InputError
from zoo.types import Codes, Spec

RANGE_SLACK = 1e-4  # resized images overshoot [-1, 1] by rounding


class Tokenizer:
    """An image to tokens and back.

    Attributes:
        module: the nnx.Module, for those who want the maths.
        spec: what it takes and gives.
        name: the preset or release it came from.
        family: its family in zoo.presets.
    """

    def __init__(self, module: Any, *, name: str, family: str, mesh: jax.sharding.Mesh | None = None):
        self.module = module
        self.spec: Spec = module.spec
        self.name = name
        self.family = family
        self.mesh = mesh
        self._graph, self._state = nnx.split(module)
        self._encode = jax.jit(self._encode_fn, static_argnames="static")
        self._decode = jax.jit(self._decode_fn, static_argnames="static")

    def __repr__(self) -> str:
        s = self.spec
        what = (
            f"continuous, {s.latent_dim} channels"
            if s.continuous
            else f"{s.vocab_size} codes, {s.bits_per_item():g} bits"
        )
        return f"Tokenizer({self.name}: {s.modality} {'x'.join(map(str, s.input_shape))} -> {s.tokens} tokens, {what})"

    def encode(
        self,
        x: Any,
        lengths: Any = None,
        *,
        sample_rate: int | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> Codes:
        """Items to tokens. Deterministic without a key; matmuls run at highest precision, since others change ids.

        Args:
            x: images, uint8 [b, h, w, 3] or float32 [b, h, w, 3] in [-1, 1], or a list of such images [h, w, 3], of
                different sizes where the model takes them.
            lengths, sample_rate: of audio; images have none.
            key: randomness for models that sample.
            **options: the module's own.

        Returns:
            Codes with ids [b, t, q] or latents [b, t, d]. Of images of different sizes, t is the longest, ids past an
            item's end are -1, and mask is False there.

        Raises:
            InputError: wrong shape, dtype, range or size, or NaN.
        """
        if lengths is not None or sample_rate is not None:
            raise InputError(f"lengths and sample_rate are for audio; {self.name} takes images")
        if isinstance(x, list | tuple):
            return self._encode_list([np.asarray(item) for item in x], key=key, **options)
        x = self._check_images(x)
        static, arrays = _split_options(options)
        with jax.default_matmul_precision("highest"):
            return self._encode(self._state, self._put(x), key, arrays, static=static)

    def decode(self, codes: Codes | Any, *, key: jax.Array | None = None, **options: Any) -> Any:
        """Tokens to images.

        Args:
            codes: what encode gave, or bare ids [b, t, q] (latents [b, t, d] of a continuous tokenizer).
            key: randomness for models that sample.
            **options: the module's own, e.g. text= of a text-aware model.

        Returns:
            float32 [b, h, w, 3], nominally in [-1, 1], not clamped; a list of [h, w, 3] if the sizes differ.

        Raises:
            InputError: ids outside the vocabulary (the first one is named), wrong shape, or a missing condition.
        """
        codes = self.check_codes(codes)
        options |= self._check_conditions(options, batch=jax.tree.leaves(codes)[0].shape[0])
        if self.spec.size_multiple is None or codes.size is None:
            return self._decode_batch(codes, key, options)
        sizes = np.asarray(codes.size)
        groups = {tuple(size): np.flatnonzero((sizes == size).all(1)) for size in sizes.tolist()}
        images: list[Any] = [None] * len(sizes)
        for size, rows in groups.items():
            batch = self._decode_batch(_take(codes, rows), key, options | {"size": size})
            if len(groups) == 1:
                return batch
            for row, image in zip(rows, batch, strict=True):
                images[row] = image
        return images

    def stream(self) -> Any:
        """Chunk-by-chunk encoding and decoding of causal models.

        Raises:
            InputError: the model is not causal.
        """
        raise InputError(f"{self.name} is not causal, so it cannot stream; use encode and decode")

    # -- inside jit

    def _encode_fn(self, state, x, key, options, *, static) -> Codes:
        low, high = self.spec.input_range
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 255 * (high - low) + low
        else:
            x = (x + 1) / 2 * (high - low) + low
        return nnx.merge(self._graph, state).encode(x, key=key, **options, **dict(static))

    def _decode_fn(self, state, codes, key, options, *, static) -> jax.Array:
        low, high = self.spec.input_range
        x = nnx.merge(self._graph, state).decode(codes, key=key, **options, **dict(static))
        return ((x - low) / (high - low) * 2 - 1).astype(jnp.float32)

    # -- outside

    def _decode_batch(self, codes: Codes, key: jax.Array | None, options: dict[str, Any]) -> jax.Array:
        static, arrays = _split_options(options)
        return self._decode(self._state, codes, key, arrays, static=static)

    def _encode_list(self, images: list[np.ndarray], **options: Any) -> Codes:
        """Encodes each size as one batch and pads the tokens to the longest."""
        if not images:
            raise InputError("an empty list of images; give at least one [h, w, 3]")
        rows: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            rows.setdefault((image.shape, image.dtype), []).append(i)
        parts = [self.encode(np.stack([images[i] for i in group]), **options) for group in rows.values()]
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate(list(rows.values())))

        def join(arrays: list[Any], fill: Any) -> jax.Array:
            longest = max(a.shape[1] for a in arrays)
            padded = [
                np.pad(a, [(0, 0), (0, longest - a.shape[1])] + [(0, 0)] * (a.ndim - 2), constant_values=fill)
                for a in map(np.asarray, arrays)
            ]
            return jnp.asarray(np.concatenate(padded)[order])

        return Codes(
            ids=None if parts[0].ids is None else join([p.ids for p in parts], -1),
            latents=None if parts[0].latents is None else join([p.latents for p in parts], 0),
            mask=join([p.mask for p in parts], False),
            size=jnp.asarray(np.concatenate([np.asarray(p.size) for p in parts])[order]),
        )

    def _check_images(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim != 4 or x.shape[-1] != 3:
            raise InputError(f"images of shape {list(x.shape)}; accepted: [batch, height, width, 3]")
        if x.shape[0] == 0:
            raise InputError("an empty batch of images; give at least one")
        multiple, (h, w, _) = self.spec.size_multiple, self.spec.input_shape
        if multiple is None and x.shape[1:3] != (h, w):
            raise InputError(
                f"images of {x.shape[1]}x{x.shape[2]}; {self.name} takes {h}x{w} only: resize and crop first"
            )
        if multiple is not None and (
            x.shape[1] % multiple or x.shape[2] % multiple or not x.shape[1] or not x.shape[2]
        ):
            raise InputError(f"images of {x.shape[1]}x{x.shape[2]}; {self.name} takes multiples of {multiple}")
        if x.dtype == np.uint8:
            return x
        if x.dtype not in (np.float32, np.float64, np.float16, jnp.bfloat16):
            raise InputError(f"images of dtype {x.dtype}; accepted: uint8, or float32 in [-1, 1]")
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise InputError(f"images with {int((~np.isfinite(x)).sum())} NaN or infinite values; accepted: [-1, 1]")
        if np.abs(x).max() > 1 + RANGE_SLACK:
            raise InputError(f"images in [{x.min():.4g}, {x.max():.4g}]; accepted: uint8, or float32 in [-1, 1]")
        return x

    def check_codes(self, codes: Codes | Any) -> Codes:
        """The codes with their ids or latents as arrays; InputError, as `decode` raises it, where they do not fit."""
        spec = self.spec
        if not isinstance(codes, Codes):
            codes = Codes(latents=codes) if spec.continuous else Codes(ids=codes)
        given = codes.latents if spec.continuous else codes.ids
        kind, last = ("latents", spec.latent_dim) if spec.continuous else ("ids", spec.num_codebooks)
        if given is None:
            raise InputError(f"codes without {kind}; {self.name} decodes {kind} [b, t, {last}]")
        values = np.asarray(given)
        fixed = spec.size_multiple is None and not spec.elastic
        if values.ndim != 3 or values.shape[2] != last or not values.size or (fixed and values.shape[1] != spec.tokens):
            raise InputError(
                f"{kind} of shape {list(values.shape)}; accepted: [batch, {spec.tokens if fixed else 'tokens'}, {last}]"
            )
        self._check_mask_and_size(codes, values.shape[:2])
        if spec.continuous:
            if not np.isfinite(values).all():
                raise InputError("latents with NaN or infinite values")
            return Codes(latents=jnp.asarray(values, jnp.float32), mask=codes.mask, size=codes.size)
        if not np.issubdtype(values.dtype, np.integer):
            raise InputError(f"ids of dtype {values.dtype}; accepted: integers")
        bad = (values < 0) | (values >= np.array(spec.vocab_sizes))
        if codes.mask is not None:
            bad &= np.asarray(codes.mask)[..., None]
        if bad.any():
            b, t, q = (int(i[0]) for i in np.nonzero(bad))
            limit = spec.vocab_sizes[q] - 1
            raise InputError(f"id {values[b, t, q]} at item {b}, token {t}, codebook {q}; accepted: 0 to {limit}")
        return Codes(ids=jnp.asarray(values, jnp.int32), mask=codes.mask, size=codes.size)

    def _check_mask_and_size(self, codes: Codes, shape: tuple[int, ...]) -> None:
        if codes.mask is not None and np.shape(codes.mask) != shape:
            raise InputError(f"mask of shape {list(np.shape(codes.mask))}; accepted: {list(shape)}, as the codes")
        if codes.size is None:
            return
        sizes, multiple = np.asarray(codes.size), self.spec.size_multiple
        if sizes.shape != (shape[0], 2):
            raise InputError(f"size of shape {list(sizes.shape)}; accepted: [{shape[0]}, 2], heights and widths")
        if multiple is not None and ((sizes <= 0) | (sizes % multiple > 0)).any():
            h, w = sizes[((sizes <= 0) | (sizes % multiple > 0)).any(1)][0]
            raise InputError(f"size {h}x{w}; {self.name} gives multiples of {multiple}")

    def _check_conditions(self, options: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
        """The arrays that decode needs besides the codes, as float32."""
        checked = {}
        for name, shape in self.spec.conditions:
            what = f"{self.name} decodes with {name}=, a float array {[batch, *shape]}"
            if options.get(name) is None:
                raise InputError(f"no {name} given; {what}")
            if np.shape(options[name]) != (batch, *shape):
                raise InputError(f"{name} of shape {list(np.shape(options[name]))}; {what}")
            checked[name] = np.asarray(options[name], np.float32)
            if not np.isfinite(checked[name]).all():
                raise InputError(f"{name} with NaN or infinite values; {what}")
        return checked

    def _put(self, x: np.ndarray) -> Any:
        """Over the mesh where the batch divides."""
        if self.mesh is None or x.shape[0] % self.mesh.size:
            return x
        spec = jax.sharding.PartitionSpec(self.mesh.axis_names)
        return jax.device_put(x, jax.sharding.NamedSharding(self.mesh, spec))


def _take(codes: Codes, rows: np.ndarray) -> Codes:
    """Some of the items, without the positions past the longest of them."""
    part = jax.tree.map(lambda a: np.asarray(a)[rows], codes)
    if part.mask is None:
        return part
    used = int(part.mask.sum(1).max())
    return jax.tree.map(lambda a: a[:, :used], Codes(ids=part.ids, latents=part.latents, mask=part.mask))


def _split_options(options: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], dict[str, Any]]:
    """Arrays are traced, everything else is compiled in."""
    arrays = {k: jnp.asarray(v) for k, v in options.items() if isinstance(v, np.ndarray | jax.Array)}
    return tuple(sorted((k, v) for k, v in options.items() if k not in arrays)), arrays
