"""Tiny models of every kind, with random weights that are drawn in numpy: nothing compiles to make one."""

import math

import jax
import numpy as np
from flax import nnx

from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig, ViTConfig

VQGAN = MaskGitVqganConfig(
    image_size=16, width=8, multipliers=(1, 2), blocks=1, code_dim=8, vocab_size=64, norm_groups=4
)
VIT = ViTConfig(width=16, depth=2, heads=2, patch=8)
SIZES = {"encoder": VIT, "decoder": VIT, "tokens": 4, "code_dim": 4, "image_size": 16}
CONFIGS = {
    "maskgit_vqgan": VQGAN,
    "titok_vq": TiTokConfig(**SIZES, vocab_size=32, l2_norm=True),
    "titok_vae": TiTokConfig(**SIZES, vocab_size=None),
    "titok_stage2": TiTokConfig(
        **SIZES | {"decoder": ViTConfig(width=16, depth=2, heads=2, patch=2)},
        vocab_size=32,
        legacy=True,
        teacher_vocab_size=64,
        pixel_decoder=MaskGitVqganConfig(
            image_size=16, width=4, multipliers=(1, 1), blocks=1, code_dim=8, vocab_size=64, norm_groups=4
        ),
    ),
    "tatitok_text": TiTokConfig(**SIZES, vocab_size=32, text=(3, 6)),
}


def random_module(config):
    """The model of a config with random weights."""
    return random_weights(lambda: config.build(rngs=nnx.Rngs(0)))


def random_weights(build):
    """A module whose weights keep the size of what passes through, so that different images get different ids."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(build))

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if name == "kernel":
            inputs = leaf.shape[:-1] if len(leaf.shape) == 4 else leaf.shape[-2:-1]
            if path[0].key == "encoder" and len(leaf.shape) < 4:  # brightness alone would drown the rest
                noise = 3 * (noise - noise.mean(-2, keepdims=True))
            return noise / np.float32(math.sqrt(math.prod(inputs)))
        if name in ("codebook", "latent_tokens"):
            return noise
        return np.float32(name == "scale") + np.float32(0.2) * noise

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def images(n, h=16, w=16, seed=0):
    """Tiles of 4 x 4 pixels in random colours, uint8 [n, h, w, 3]."""
    tiles = np.random.default_rng(seed).integers(0, 256, (n, -(-h // 4), -(-w // 4), 3), np.uint8)
    return tiles.repeat(4, 1).repeat(4, 2)[:, :h, :w]


def conditions(config, batch):
    """What decode needs besides the codes."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(batch, *shape)).astype(np.float32) for name, shape in config.spec.conditions}
