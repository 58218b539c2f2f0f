"""The PyTorch networks that `zoo bench pairs` measures against, with random weights, in float32 and without gradients.

They are what a PyTorch user would write from library parts: nn.TransformerEncoderLayer (which in evaluation takes its
fused path) and the blocks of diffusers' VQModel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.errors import InputError
from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig, ViTConfig

# pyright: reportMissingImports=false
# (torch and diffusers are an extra)


@dataclasses.dataclass(frozen=True)
class Peer:
    """Attributes:
    name: for the table.
    parameters: of encoder, quantizer and decoder.
    encode: images [b, h, w, 3] to ids.
    decode: ids to what the pair decodes to.
    """

    name: str
    parameters: int
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[np.ndarray], Any]


def start(threads: int) -> dict[str, str]:
    """Makes torch use `threads` threads; returns its version and that of diffusers by name.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise InputError(
            f"the pairs need {error.name}, which is not installed: pip install 'tokenizer-zoo[torch]'"
        ) from error
    torch.set_num_threads(threads)
    return {"torch": torch.__version__, "diffusers": diffusers.__version__}


def titok(config: TiTokConfig) -> Peer:
    """A ViT encoder and decoder of a legacy TiTok's size: images to ids, ids to logits over the teacher's codes."""
    import torch
    from torch import nn

    assert config.legacy and config.vocab_size
    enc, dec, n, c = config.encoder, config.decoder, config.tokens, config.code_dim
    positions = config.grid(enc) ** 2 + 1
    nets = nn.ModuleDict(
        {
            "patches": nn.Conv2d(3, enc.width, enc.patch, enc.patch),
            "encoder": _vit(enc),
            "project": nn.Linear(enc.width, c),
            "embed": nn.Linear(c, dec.width),
            "decoder": _vit(dec),
            "up": nn.Linear(dec.width, 2 * dec.width),
            "out": nn.Linear(2 * dec.width, config.teacher_vocab_size),
        }
    ).eval()
    shapes = {"class": (1, enc.width), "latents": (n, enc.width), "encoder": (positions + n, enc.width)}
    shapes |= {"masks": (2, dec.width), "decoder": (positions + n, dec.width), "codebook": (config.vocab_size, c)}
    tables = nn.ParameterDict({name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})

    def codebook() -> Any:
        return nn.functional.normalize(tables["codebook"], dim=-1)

    def tokens_of(x: Any) -> Any:
        h = nets["patches"](x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        ends = [tables[name].expand(h.shape[0], -1, -1) for name in ("class", "latents")]
        h = nets["encoder"](torch.cat([ends[0], h, ends[1]], 1) + tables["encoder"], slice(-n, None))
        h = h.reshape(h.shape[0], h.shape[2], h.shape[1]).transpose(1, 2)
        z = nn.functional.normalize(nets["project"](h), dim=-1)
        return (z @ codebook().T).argmax(-1)

    def logits_of(ids: Any) -> Any:
        masks = tables["masks"][1:].expand(ids.shape[0], positions, -1)
        h = torch.cat([masks, nets["embed"](codebook()[ids])], 1) + tables["decoder"]
        return nets["out"](torch.tanh(nets["up"](nets["decoder"](h, slice(1, positions)))))

    count = sum(p.numel() for part in (nets, tables) for p in part.parameters())
    return Peer("torch.nn.TransformerEncoderLayer", count, _plain(tokens_of), _plain(logits_of))


def _vit(vit: ViTConfig) -> Any:
    """norm, pre-norm blocks, some of the positions, norm."""
    from torch import nn

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_pre, self.ln_post = nn.LayerNorm(vit.width), nn.LayerNorm(vit.width)
            how = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            self.blocks = nn.Sequential(
                *(nn.TransformerEncoderLayer(vit.width, vit.heads, 4 * vit.width, **how) for _ in range(vit.depth))
            )

        def forward(self, x: Any, positions: slice) -> Any:
            return self.ln_post(self.blocks(self.ln_pre(x))[:, positions])

    return ViT()


def maskgit_vqgan(config: MaskGitVqganConfig) -> Peer:
    """diffusers' VQModel with as many residual blocks of the same widths, no attention, the same codebook.

    What its config does not offer: it halves by strided 3x3 convolutions instead of averages, its convolutions all have
    biases, its shortcuts take the block's input, and its decoder has one block more per level, which is taken out here.
    """
    from diffusers.models.autoencoders.vq_model import VQModel

    levels = len(config.multipliers)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.width * m for m in config.multipliers),
        layers_per_block=config.blocks,
        latent_channels=config.code_dim,
        num_vq_embeddings=config.vocab_size,
        vq_embed_dim=config.code_dim,
        norm_num_groups=config.norm_groups,
        sample_size=config.image_size,
        mid_block_add_attention=False,
    ).eval()
    blocks: Any = model.decoder.up_blocks
    for block in blocks:
        del block.resnets[-1]

    def encode(x: Any) -> Any:
        return model.quantize(model.encode(x.permute(0, 3, 1, 2)).latents)[2][2]

    def decode(ids: Any) -> Any:
        grid = config.image_size // config.stride
        shape = (ids.shape[0], grid, grid, config.code_dim)
        z = model.quantize.get_codebook_entry(ids.flatten(), shape)
        return model.decode(z, force_not_quantize=True, return_dict=False)[0]  # pyright: ignore[reportArgumentType]

    return Peer("diffusers.VQModel", model.num_parameters(), _plain(encode), _plain(decode))


def _plain(function: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """Takes a numpy array, which torch then shares, and records nothing for gradients."""

    def call(x: np.ndarray) -> Any:
        import torch

        with torch.inference_mode():
            return function(torch.from_numpy(x))

    return call
