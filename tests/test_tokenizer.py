"""What users hold: ranges, lists of sizes, compilation, and one line for everything it does not accept."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIGS, conditions, images, random_module

from zoo import sharding
from zoo.errors import InputError
from zoo.models.titok import TiTok
from zoo.tokenizer import Tokenizer
from zoo.types import Codes, Spec


def make(name, **options):
    return Tokenizer(random_module(CONFIGS[name]), name=name, family=name.partition("_")[0], **options)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """The programs here are many and tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def titok(tokenizers):
    return tokenizers["titok_vq"]


@pytest.fixture(scope="module")
def vqgan(tokenizers):
    return tokenizers["maskgit_vqgan"]


def refused(message, call, *args, **options):
    with pytest.raises(InputError, match=message) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)


# -- encode and decode


@pytest.mark.parametrize("name", ["titok_vq", "maskgit_vqgan"])
def test_uint8_and_float_are_the_same_image(tokenizers, name):
    tokenizer, x = tokenizers[name], images(3)
    ids = tokenizer.encode(x).ids
    assert ids.dtype == np.int32 and ids.shape == (3, tokenizer.spec.tokens, 1)
    assert len({tuple(row.ravel().tolist()) for row in np.asarray(ids)}) == 3  # or the comparisons mean nothing
    np.testing.assert_array_equal(tokenizer.encode(np.float32(x) / 127.5 - 1).ids, ids)
    np.testing.assert_array_equal(tokenizer.encode(x / 127.5 - 1).ids, ids)  # float64


def test_the_modules_own_range_is_applied_inside(titok):
    x = images(3)
    graph, state = nnx.split(titok.module)

    @jax.jit
    def by_hand(state, x):
        module = nnx.merge(graph, state)
        codes = module.encode(x)
        return codes, module.decode(codes)

    codes, decoded = by_hand(state, np.float32(x) / 255)
    np.testing.assert_array_equal(titok.encode(x).ids, codes.ids)
    np.testing.assert_allclose(titok.decode(codes), decoded * 2 - 1, atol=1e-5)


@pytest.mark.parametrize("name", ["titok_vq", "maskgit_vqgan"])
def test_a_batch_is_its_items_one_by_one(tokenizers, name):
    tokenizer, x = tokenizers[name], images(3)
    codes = tokenizer.encode(x)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == x.shape and decoded.dtype == np.float32
    for i in range(3):
        one = tokenizer.encode(x[i : i + 1])
        np.testing.assert_array_equal(one.ids[0], codes.ids[i])
        np.testing.assert_allclose(tokenizer.decode(one)[0], decoded[i], atol=1e-5)


def test_a_list_of_sizes_is_padded_and_restored(vqgan):
    """One compiled program per size; order, ids, mask and sizes as if each image were alone."""
    x = [images(1)[0], images(1, 8, 12)[0], images(1, seed=1)[0]]
    alone = [vqgan.encode(image[None]) for image in x]
    codes = vqgan.encode(x)
    assert codes.ids.shape == (3, 64, 1)
    np.testing.assert_array_equal(codes.mask.sum(1), [64, 24, 64])
    np.testing.assert_array_equal(codes.size, [[16, 16], [8, 12], [16, 16]])
    assert (np.asarray(codes.ids)[1, 24:] == -1).all()
    decoded = vqgan.decode(codes)
    for i, one in enumerate(alone):
        np.testing.assert_array_equal(codes.ids[i][: one.ids.shape[1]], one.ids[0])
        assert decoded[i].shape == x[i].shape
        np.testing.assert_allclose(decoded[i], vqgan.decode(one)[0], atol=1e-5)
    small = jax.tree.map(lambda a: a[1:2], codes)  # one item of the list, still padded to the longest
    np.testing.assert_allclose(vqgan.decode(small), vqgan.decode(alone[1]), atol=1e-5)


def test_bare_ids_decode(vqgan, titok):
    for tokenizer in (vqgan, titok):
        codes = tokenizer.encode(images(3))
        np.testing.assert_array_equal(tokenizer.decode(np.asarray(codes.ids)), tokenizer.decode(codes))
    wide = vqgan.encode(images(1, 8, 12))
    np.testing.assert_array_equal(vqgan.decode(wide.ids, size=(8, 12)), vqgan.decode(wide))


def test_continuous_tokens(tokenizers):
    vae, x = tokenizers["titok_vae"], images(3)
    codes = vae.encode(x)
    assert codes.ids is None and codes.latents.shape == (3, 4, 4)
    sampled = [vae.encode(x, key=jax.random.key(i)).latents for i in (0, 0, 1)]
    np.testing.assert_array_equal(sampled[0], sampled[1])
    assert not np.array_equal(sampled[0], sampled[2]) and not np.array_equal(sampled[0], codes.latents)
    np.testing.assert_array_equal(vae.decode(np.asarray(codes.latents)), vae.decode(codes))
    refused("codes without latents; .* decodes latents", vae.decode, Codes(ids=np.zeros((1, 4, 1), np.int32)))
    refused(r"latents of shape \[2, 4, 3\]", vae.decode, np.zeros((2, 4, 3)))
    refused("latents with NaN", vae.decode, np.full((1, 4, 4), np.nan))


def test_text_is_asked_for(tokenizers):
    tokenizer = tokenizers["tatitok_text"]
    codes = tokenizer.encode(images(2))
    text = conditions(tokenizer.module.config, 2)["text"]
    a, b = tokenizer.decode(codes, text=text), tokenizer.decode(codes, text=-text)
    assert a.shape == (2, 16, 16, 3) and not np.allclose(a, b, atol=1e-3)
    refused(r"no text given; .* decodes with text=, a float array \[2, 3, 6\]", tokenizer.decode, codes)
    refused(r"text of shape \[1, 3, 6\]; .*\[2, 3, 6\]", tokenizer.decode, codes, text=text[:1])
    refused(r"text of shape \[\]", tokenizer.decode, codes, text="a cat")
    refused("text with NaN", tokenizer.decode, codes, text=text * np.nan)


def test_compiled_once_per_shape_and_dtype(monkeypatch):
    traces = []

    def counted(self, *args, method, **options):
        traces.append(method.__name__)
        return method(self, *args, **options)

    for method in (TiTok.encode, TiTok.decode):
        monkeypatch.setattr(
            TiTok, method.__name__, lambda self, *a, method=method, **k: counted(self, *a, method=method, **k)
        )
    tokenizer = make("titok_vq")
    for seed in range(3):
        codes = tokenizer.encode(images(2, seed=seed))
        tokenizer.decode(codes)
        tokenizer.encode(list(images(2, seed=seed)))
    assert traces == ["encode", "decode"]
    tokenizer.encode(images(2) / 127.5 - 1)
    tokenizer.encode(images(3))
    assert traces == ["encode", "decode", "encode", "encode"]


def test_on_a_mesh(titok):
    many = make("titok_vq", mesh=sharding.make_mesh(3))
    x = images(3)
    codes = many.encode(x)
    assert len(codes.ids.sharding.device_set) == 3
    np.testing.assert_array_equal(codes.ids, titok.encode(x).ids)
    np.testing.assert_array_equal(many.encode(x[:1]).ids, codes.ids[:1])  # does not divide: one device


# -- what is refused


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.full((1, 16, 16, 3), np.nan, np.float32), "768 NaN or infinite values"),
        (np.full((1, 16, 16, 3), np.inf, np.float32), "768 NaN or infinite values"),
        (images(1).astype(np.float32), r"images in \[\d, 2\d\d\]; accepted: uint8, or float32 in \[-1, 1\]"),
        (images(1).astype(np.int64), "dtype int64; accepted: uint8, or float32"),
        (images(1) > 127, "dtype bool"),
        (images(1)[0], r"shape \[16, 16, 3\]; accepted: \[batch, height, width, 3\]"),
        (images(1)[..., :1], r"shape \[1, 16, 16, 1\]"),
        (images(1)[:0], "an empty batch"),
        ([], "an empty list"),
        ([images(1)[0, ..., 0]], r"shape \[1, 16, 16\]"),
        ("photo.jpg", r"shape \[\]; accepted"),
    ],
)
def test_bad_images(titok, x, text):
    refused(text, titok.encode, x)


def test_bad_sizes_name_the_accepted_ones(titok, vqgan):
    refused("images of 16x20; titok_vq takes 16x16 only", titok.encode, images(1, 16, 20))
    refused("images of 15x16; maskgit_vqgan takes multiples of 2", vqgan.encode, images(1, 15, 16))
    refused("images of 0x16; maskgit_vqgan takes multiples of 2", vqgan.encode, images(1, 0, 16))
    refused("images of 9x8", vqgan.encode, [images(1)[0], images(1, 9, 8)[0]])


@pytest.mark.parametrize("options", [{"lengths": [3]}, {"sample_rate": 16000}])
def test_options_of_audio_are_refused(titok, options):
    refused("lengths and sample_rate are for audio", titok.encode, images(1), **options)


def test_only_causal_models_stream(titok):
    refused("titok_vq is not causal", titok.stream)


def with_id(value):
    ids = np.zeros((2, 4, 1), np.int64)
    ids[1, 2, 0] = value
    return ids


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (with_id(32), "id 32 at item 1, token 2, codebook 0; accepted: 0 to 31"),
        (with_id(2**40), f"id {2**40} at item 1, token 2"),
        (with_id(-1), "id -1 at item 1, token 2, codebook 0; accepted: 0 to 31"),
        (np.zeros((2, 5, 1), int), r"ids of shape \[2, 5, 1\]; accepted: \[batch, 4, 1\]"),
        (np.zeros((2, 4), int), r"ids of shape \[2, 4\]"),
        (np.zeros((2, 4, 2), int), r"ids of shape \[2, 4, 2\]"),
        (np.zeros((0, 4, 1), int), r"ids of shape \[0, 4, 1\]"),
        (np.zeros((1, 4, 1)), "ids of dtype float64; accepted: integers"),
        (Codes(latents=np.zeros((1, 4, 4))), "codes without ids"),
        (Codes(ids=with_id(0), mask=np.ones((2, 3), bool)), r"mask of shape \[2, 3\]; accepted: \[2, 4\]"),
        (Codes(ids=with_id(0), size=np.ones((1, 2), int)), r"size of shape \[1, 2\]; accepted: \[2, 2\]"),
    ],
)
def test_bad_codes(titok, ids, text):
    refused(text, titok.decode, ids)


def test_masked_positions_may_hold_anything(titok):
    mask = np.ones((2, 4), bool)
    mask[1, 2] = False
    titok.decode(Codes(ids=with_id(-1), mask=mask))
    refused("id -1", titok.decode, Codes(ids=with_id(-1), mask=~mask))


def test_codes_that_do_not_fit_their_size(vqgan):
    refused("5 tokens; without a size, the image is square", vqgan.decode, np.zeros((1, 5, 1), int))
    size = np.array([[8, 12]])
    refused("16 tokens; 8x12 pixels are 24", vqgan.decode, Codes(ids=np.zeros((1, 16, 1), int), size=size))
    refused(
        "size 9x12; maskgit_vqgan gives multiples",
        vqgan.decode,
        Codes(ids=np.zeros((1, 24, 1), int), size=size + [1, 0]),
    )
    refused("ids of shape", vqgan.decode, np.zeros((1, 0, 1), int))


def test_stage_one_has_no_images():
    config = dataclasses.replace(CONFIGS["titok_stage2"], pixel_decoder=None)
    tokenizer = Tokenizer(random_module(config), name="stage1", family="titok")
    refused("stage-1 TiTok without a pixel decoder", tokenizer.decode, np.zeros((1, 4, 1), int))


# -- the spec


def test_bits_per_item(titok, tokenizers):
    assert titok.spec.bits_per_item() == 4 * 5
    assert titok.spec.bits_per_item(3) == 15
    assert tokenizers["titok_vae"].spec.bits_per_item() is None
    mixed = Spec(
        modality="audio", input_shape=(8, 1), input_range=(-1, 1), tokens=3, vocab_size=(4, 8), num_codebooks=2
    )
    assert mixed.bits_per_item() == 3 * (2 + 3) and mixed.vocab_sizes == (4, 8)
    same = dataclasses.replace(mixed, vocab_size=4)
    assert same.bits_per_item() == 3 * 4 and same.vocab_sizes == (4, 4)


def test_repr_says_what_it_is(tokenizers):
    assert repr(tokenizers["titok_vq"]) == "Tokenizer(titok_vq: image 16x16x3 -> 4 tokens, 32 codes, 20 bits)"
    assert "continuous, 4 channels" in repr(tokenizers["titok_vae"])
