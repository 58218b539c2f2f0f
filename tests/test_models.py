"""Every model: shapes at full size, lowering for accelerators, independent items, gradients, precision, structure."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIGS, VIT, conditions, images, random_module, random_weights

from zoo import presets
from zoo.errors import InputError
from zoo.nn.attention import attention
from zoo.nn.stack import Stack
from zoo.types import Codes, TokenizerModule

FULL = {preset.name: preset.config for preset in presets.all_presets()}
BATCH = 8


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """The programs here are many and tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def split(name):
    return nnx.split(random_module(CONFIGS[name]))


@functools.cache
def program(name, dtype=None):
    """(state, x, codes or None) -> latents, codes, image; one program for all tests of a model."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: CONFIGS[name].build(dtype=dtype, rngs=nnx.Rngs(0))))

    @jax.jit
    def run(state, x, codes):
        module = nnx.merge(graph, state)
        more = conditions(CONFIGS[name], x.shape[0])
        return module.latents(x), module.encode(x), module.decode(codes, **more)

    return run


def pixels(n=BATCH, seed=0):
    return images(n, seed=seed) / np.float32(255)


def given_codes(name, seed=0):
    spec, rng = CONFIGS[name].spec, np.random.default_rng(seed)
    if spec.continuous:
        return Codes(latents=rng.normal(size=(BATCH, spec.tokens, spec.latent_dim)).astype(np.float32))
    return Codes(ids=rng.integers(0, spec.vocab_size, (BATCH, spec.tokens, 1), np.int32))


def tree_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- shapes and lowering


@pytest.mark.parametrize("name", [*FULL, "titok_vae", "tatitok_text"])
def test_encode_and_decode_lower_for_tpu_and_cuda_with_the_specs_shapes(name):
    """At full size, from shapes alone; jax.export traces as eval_shape does, and then lowers."""
    config = FULL.get(name) or CONFIGS[name]
    spec = config.spec
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
    x = jax.ShapeDtypeStruct((2, *spec.input_shape), jnp.float32)
    more = {k: jax.ShapeDtypeStruct((2, *shape), jnp.float32) for k, shape in spec.conditions}
    export = functools.partial(jax.export.export, platforms=("tpu", "cuda"))
    encode = export(jax.jit(lambda state, x: nnx.merge(graph, state).encode(x)))(state, x)
    codes = jax.tree.unflatten(encode.out_tree, encode.out_avals)
    values = codes.latents if spec.continuous else codes.ids
    assert values.shape == (2, spec.tokens, spec.latent_dim if spec.continuous else spec.num_codebooks)
    assert values.dtype == (jnp.float32 if spec.continuous else jnp.int32)
    assert codes.mask.shape == (2, spec.tokens) and codes.mask.dtype == bool and codes.size.shape == (2, 2)
    codes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), codes)
    decode = export(jax.jit(lambda state, c, more: nnx.merge(graph, state).decode(c, **more)))(state, codes, more)
    assert [a.shape for a in decode.out_avals] == [x.shape]
    assert "stablehlo" in encode.mlir_module() and "stablehlo" in decode.mlir_module()
    image, quantized = jax.eval_shape(lambda state, x, more: nnx.merge(graph, state)(x, **more), state, x, more)
    assert image.shape == x.shape and all(loss.shape == () for loss in quantized.losses.values())
    if not spec.continuous:
        assert quantized.stats["counts"].shape == (1, spec.vocab_size)


def test_stage_one_gives_logits_over_the_teachers_codes():
    config = dataclasses.replace(CONFIGS["titok_stage2"], pixel_decoder=None)
    out, _ = jax.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))(jnp.zeros((2, 16, 16, 3))))
    assert out.shape == (2, 8, 8, config.teacher_vocab_size)


# -- structure


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_are_trees_without_random_state(name):
    graph, state = split(name)
    module = nnx.merge(graph, state)
    assert isinstance(module, TokenizerModule) and module.spec == CONFIGS[name].spec
    nnx.split(module, graph=False)  # refuses shared references
    variables = [variable for _, variable in nnx.to_flat_state(nnx.state(module))]
    assert variables and not [v for v in variables if isinstance(v, nnx.RngState)]


def test_shared_references_would_be_seen():
    class Shared(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.zeros(2))
            self.b = self.a

    with pytest.raises(ValueError):
        nnx.split(Shared(), graph=False)


@pytest.mark.parametrize("narrow", [False, True])
def test_initial_weights_are_those_published(narrow):
    """Normal(0.02) kernels and width^-1/2 tables; `narrow` has variance-preserving kernels and positions of 1."""
    config = dataclasses.replace(CONFIGS["titok_vq"], narrow=narrow)

    @jax.jit
    def build():
        state = nnx.to_pure_dict(nnx.state(config.build(rngs=nnx.Rngs(0))))
        return state["encoder"]["blocks"]["block"]["mlp"]["up"], state["decoder"]["positions"], state["quantize"]

    up, positions, quantize = build()
    np.testing.assert_allclose(up["kernel"].std(), VIT.width**-0.5 if narrow else 0.02, rtol=0.1)
    np.testing.assert_allclose(positions.std(), 1 if narrow else VIT.width**-0.5, rtol=0.3)
    assert not np.array_equal(*up["kernel"])  # each layer draws its own
    assert not np.asarray(up["bias"]).any()
    assert 0.9 / 32 < np.abs(quantize["codebook"]).max() <= 1 / 32


def test_the_decoder_of_tatitok_starts_as_torchs_layers():
    config = dataclasses.replace(CONFIGS["tatitok_text"], encoder=VIT, decoder=VIT)
    state = nnx.to_pure_dict(nnx.state(nnx.jit(lambda: config.build(rngs=nnx.Rngs(0)))()))
    up = state["decoder"]["blocks"]["block"]["mlp"]["up"]
    bound = VIT.width**-0.5
    for values in (up["kernel"], up["bias"]):
        assert 0.8 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.15)
    assert not state["decoder"]["blocks"]["block"]["attn"]["out"]["bias"].any()  # zero in nn.MultiheadAttention
    assert state["decoder"]["head"]["conv"]["bias"].all()
    other = state["encoder"]["blocks"]["block"]["mlp"]["up"]
    np.testing.assert_allclose(other["kernel"].std(), 0.02, rtol=0.1)
    assert not other["bias"].any()


def test_a_narrow_titok_starts_grey_and_looks_at_the_nearest_patch():
    vit = dataclasses.replace(VIT, width=64, patch=4)
    config = dataclasses.replace(CONFIGS["titok_vq"], encoder=vit, decoder=vit, tokens=8, narrow=True)
    module = nnx.jit(lambda: config.build(rngs=nnx.Rngs(0)))()
    for side in (module.encoder, module.decoder):
        distances = jnp.linalg.norm(side.latent_positions[...][:, None] - side.positions[...][1:], axis=-1)
        assert (distances.argmin(1) == 2 * jnp.arange(8)).all()  # 16 patches
        q, k, _ = jnp.split(side.blocks.block.attn.qkv.kernel[...], 3, -1)
        assert (q == k).all()
    x = pixels()
    y = module.decode_latents(module.quantize.continuous(module.latents(x)))
    assert abs(y.mean() - 0.5) < 0.1 and y.std() < 0.3
    with pytest.raises(InputError, match="narrow"):
        dataclasses.replace(config, legacy=True)


# -- what they compute


@pytest.mark.parametrize("name", CONFIGS)
def test_items_of_a_batch_do_not_see_each_other(name):
    """Changing the others changes nothing; and they are not all the same to begin with."""
    run, (_, state) = program(name), split(name)
    x, y, a, b = pixels(), pixels(seed=1), given_codes(name), given_codes(name, 1)
    y[1], codes = x[1], jax.tree.map(lambda a, b: np.concatenate([b[:1], a[1:2], b[2:]]), a, b)
    first, second = run(state, x, a), run(state, y, codes)
    assert first[2].shape == x.shape
    tree_equal(*(jax.tree.map(lambda v: v[1], out) for out in (first, second)))
    for out in (first, second):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
        assert not np.allclose(out[0][0], out[0][1]) and not np.allclose(out[2][0], out[2][1])
    np.testing.assert_array_equal(first[1].size, [[16, 16]] * BATCH)
    assert np.asarray(first[1].mask).all()


@pytest.mark.parametrize(
    "name", ["maskgit_vqgan", "titok_vae", "titok_stage2", "tatitok_text"]
)  # titok_vq is in the last
def test_gradients_are_finite_and_reach_every_layer_of_every_leaf(name):
    module = random_module(CONFIGS[name])
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    more, target = conditions(CONFIGS[name], BATCH), pixels(seed=2)

    @jax.jit
    @jax.grad
    def gradients(params):
        image, quantized = nnx.merge(graph, params, rest)(pixels(), **more)
        return jnp.mean((image - target) ** 2) + 0.1 * sum(quantized.losses.values())

    for path, variable in nnx.to_flat_state(gradients(params)):
        gradient = np.asarray(variable[...])
        assert np.isfinite(gradient).all(), path
        layers = gradient if "blocks" in path else gradient[None]
        assert all(np.abs(layer).max() > 0 for layer in layers), path


@pytest.mark.parametrize("name", ["maskgit_vqgan", "titok_vq"])
def test_bfloat16_trunk(name):
    """Parameters and quantizer stay float32. Ids may differ only where the latents' error can turn the decision."""
    _, state = split(name)
    half_module = nnx.eval_shape(lambda: CONFIGS[name].build(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half_module))} == {jnp.dtype(jnp.float32)}
    full, half = (program(name, dtype)(state, pixels(), given_codes(name)) for dtype in (None, jnp.bfloat16))
    assert half[0].dtype == jnp.bfloat16
    same = np.ravel(full[1].ids) == np.ravel(half[1].ids)
    z, z_half = (np.asarray(out[0], np.float32).reshape(same.size, -1) for out in (full, half))
    codes = np.asarray(state["quantize"]["codebook"][...])
    if getattr(CONFIGS[name], "l2_norm", False):
        z, z_half, codes = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (z, z_half, codes))
    two = np.sort(np.linalg.norm(z[:, None] - codes, axis=-1))[:, :2]
    decided = two[:, 1] - two[:, 0] > 2 * np.linalg.norm(z - z_half, axis=-1) + 1e-5
    print(f"{name}: {same.mean():.1%} of {same.size} ids equal in bfloat16, {decided.mean():.1%} decided")
    assert same[decided].all() and decided.mean() > 0.5
    assert same.mean() > 0.9
    error = np.asarray(half[2], np.float32) - full[2]
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.std(full[2])


# -- blocks


class Layer(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x, mask):
        return x + jnp.where(mask, jnp.tanh(self.linear(x)), 0)


def test_stack_is_a_loop_over_its_layers():
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    mask = np.arange(16) % 3 > 0

    def run(state, graph):
        def loss(state):
            out = nnx.merge(graph, state)(x, mask)
            return jnp.sum(jnp.sin(out)), out

        return jax.grad(loss, has_aux=True)(state)

    outs = {}
    for remat in (False, True):
        stack = random_weights(
            lambda remat=remat: Stack(lambda rngs: Layer(rngs=rngs), 3, remat=remat, rngs=nnx.Rngs(0))
        )
        graph, state = nnx.split(stack)
        outs[remat] = jax.jit(run, static_argnums=1)(state, graph)
        assert ("remat" in str(jax.make_jaxpr(stack)(x, mask))) == remat
    h = x
    one_layer = jax.jit(lambda graph, state, h: nnx.merge(graph, state)(h, mask), static_argnums=0)
    for i in range(3):
        h = one_layer(*nnx.split(stack.layer(i)), h)
    np.testing.assert_allclose(outs[False][1], h, atol=2e-6 * np.abs(h).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), outs[False], outs[True])


def softmax_attention(q, k, v, mask):
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_every_precision(masked):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, t, 2, 8)) for t in (4, 6, 6))
    mask = rng.random((2, 1, 4, 6)) < 0.5 if masked else np.ones((1, 1, 1, 6), bool)
    mask[..., 0] = True  # every query sees something
    expected = softmax_attention(q, k, v, mask)
    run = jax.jit(attention)
    given = mask if masked else None
    np.testing.assert_allclose(run(*(np.float32(a) for a in (q, k, v)), given), expected, atol=1e-6)
    half = run(*(jnp.asarray(a, jnp.bfloat16) for a in (q, k, v)), given)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), expected, atol=0.03)
    with jax.enable_x64(True):
        out = run(q, k, v, given)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, atol=1e-14)


def test_attention_without_anything_to_see_is_finite_in_every_precision():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 4, 2, 8))
    mask = np.tril(np.ones((4, 4), bool), -1)[None, None]  # the first query sees nothing
    single = jax.jit(attention)(*[np.float32(q)] * 3, mask)
    with jax.enable_x64(True):
        double = jax.jit(attention)(q, q, q, mask)
    assert np.isfinite(single).all()
    np.testing.assert_allclose(single, double, atol=1e-6)
