"""Every scheme of the library in one table, over which tests, benchmark, training harness and docs run.

A new quantizer is one file and one row here. The rows make a quantizer of about `codes` codes in each codebook.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from zoo.quantize.additive import AdditiveVQ
from zoo.quantize.bernoulli import BinaryLatents
from zoo.quantize.binary import Entropy
from zoo.quantize.bsq import BSQ
from zoo.quantize.dual import SharedIdsVQ
from zoo.quantize.ema import EMAVQ, AffineVQ, EncodecVQ, MimiVQ
from zoo.quantize.estimators import DiVeQ, Gumbel, IndexBackpropagation, RotationTrick
from zoo.quantize.fsq import FSQ
from zoo.quantize.gaussian import DiagonalGaussian, SigmaGaussian, Standardized
from zoo.quantize.latent import LatentQuantizer
from zoo.quantize.lfq import LFQ
from zoo.quantize.multiscale import MultiScale
from zoo.quantize.product import Heads, Product
from zoo.quantize.projected import Projected, RandomProjection, SoftClamp
from zoo.quantize.regularizers import CodeEntropy
from zoo.quantize.residual import QuantizerDropout, Residual, residual_fsq, residual_lfq
from zoo.quantize.simvq import SimVQ
from zoo.quantize.split import Split
from zoo.quantize.vq import VQ

DIM, GROUPS, LAYERS = 16, 4, 4
Peer = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to quantize.

    Attributes:
        name: for commands and tables.
        make: (codes, rngs) -> quantizer; `codes` is a power of two from 2^4 to 2^18.
        width: codes -> channels of z.
        use: when to take it, in a sentence.
        paper: arXiv number.
        weights: in training, of those of its losses that are named.
        peer: codes -> class and arguments of the same scheme in vector-quantize-pytorch.
        trains: it is a quantizer that an autoencoder trains through.
    """

    name: str
    make: Callable[[int, nnx.Rngs], Any]
    width: Callable[[int], int] = lambda codes: DIM
    use: str
    paper: str
    weights: dict[str, float] = dataclasses.field(default_factory=lambda: {"commitment": 1.0})
    peer: Callable[[int], Peer] | None = None
    trains: bool = True


def bits(codes: int) -> int:
    """log2 of a power of two."""
    return codes.bit_length() - 1


def levels(codes: int) -> list[int]:
    """FSQ's levels for about as many codes (arXiv:2309.15505, table 1, and beyond)."""
    known = {4: [5, 3], 5: [8, 4], 6: [8, 8], 7: [5, 5, 5], 8: [8, 6, 5], 9: [8, 8, 8], 10: [8, 5, 5, 5]}
    known |= {11: [8, 8, 6, 5], 12: [7, 5, 5, 5, 5], 13: [8, 8, 8, 4, 4], 14: [8, 8, 8, 6, 5], 15: [8, 8, 8, 8, 8]}
    known |= {16: [8, 8, 8, 5, 5, 5], 17: [8, 8, 8, 8, 6, 5], 18: [8, 8, 8, 8, 8, 8]}
    return known[bits(codes)]


def _ema(codes: int, dim: int, rngs: nnx.Rngs, **options: Any) -> EMAVQ:
    return EMAVQ(codes, dim, dead_below=1.0, rngs=rngs, **options)


def _vq_peer(**options: Any) -> Callable[[int], Peer]:
    common = {"dim": DIM, "rotation_trick": False, "decay": 0.99}
    return lambda codes: ("VectorQuantize", common | {"codebook_size": codes} | options)


def _residual_peer(name: str, **options: Any) -> Callable[[int], Peer]:
    common = {"dim": DIM, "num_quantizers": LAYERS, "rotation_trick": False, "decay": 0.99}
    return lambda codes: (name, common | {"codebook_size": codes, "threshold_ema_dead_code": 1} | options)


def _wide_residual_fsq(codes: int, rngs: nnx.Rngs) -> SoftClamp:
    return SoftClamp(residual_fsq(levels(codes), 2), [1 + 1 / (level - 1) for level in levels(codes)])


GRADIENT = {"commitment": 1.0, "codebook": 1.0}
INDEX = {"commitment": 0.25, "codebook": 1.0, "sample_entropy": 0.1, "codebook_entropy": -0.1}
ENTROPY = {"commitment": 0.25, "sample_entropy": 0.1, "codebook_entropy": -0.1}

SCHEMES = (
    Scheme(
        name="vq",
        make=lambda codes, rngs: VQ(codes, DIM, rngs=rngs),
        use="the baseline; up to about 1k codes, started by k-means",
        paper="1711.00937",
        weights=GRADIENT,
        peer=_vq_peer(learnable_codebook=True, ema_update=False),
    ),
    Scheme(
        name="vq_l2",
        make=lambda codes, rngs: VQ(codes, DIM, l2_norm=True, rngs=rngs),
        use="image tokenizers of the ViT-VQGAN and LlamaGen kind: unit vectors of few channels",
        paper="2110.04627",
        weights=GRADIENT,
    ),
    Scheme(
        name="vq_ema",
        make=lambda codes, rngs: _ema(codes, DIM, rngs),
        use="audio codecs, and wherever a learned codebook must stay in use: k-means and dead-code replacement",
        paper="1711.00937",
        peer=_vq_peer(threshold_ema_dead_code=1),
    ),
    Scheme(
        name="vq_ema_l2",
        make=lambda codes, rngs: _ema(codes, DIM, rngs, l2_norm=True),
        use="vq_ema on unit vectors",
        paper="2110.04627",
        peer=_vq_peer(use_cosine_sim=True, threshold_ema_dead_code=1),
    ),
    Scheme(
        name="vq_rotation",
        make=lambda codes, rngs: _ema(codes, DIM, rngs, estimator=RotationTrick()),
        use="vq_ema with gradients that know the angle to the code",
        paper="2410.06424",
        peer=_vq_peer(rotation_trick=True, threshold_ema_dead_code=1),
    ),
    Scheme(
        name="vq_diveq",
        make=lambda codes, rngs: _ema(codes, DIM, rngs, learned="gradient", estimator=DiVeQ()),
        use="no auxiliary losses: the reconstruction loss alone trains encoder and codebook",
        paper="2509.26469",
        weights={},
        peer=_vq_peer(rotation_trick=None, directional_reparam=True, threshold_ema_dead_code=1),
    ),
    Scheme(
        name="vq_gumbel",
        make=lambda codes, rngs: VQ(codes, DIM, estimator=Gumbel(), rngs=rngs),
        use="sampled ids in training, for codebooks of up to a few thousand codes",
        paper="1611.01144",
        weights=GRADIENT,
        peer=_vq_peer(stochastic_sample_codes=True, learnable_codebook=True, ema_update=False),
    ),
    Scheme(
        name="vq_affine",
        make=lambda codes, rngs: AffineVQ(codes, DIM, dead_below=1.0, rngs=rngs),
        use="vq_ema where the encoder moves faster than the codes can follow",
        paper="2305.08842",
        peer=_vq_peer(affine_param=True, threshold_ema_dead_code=1),
    ),
    Scheme(
        name="vq_encodec",
        make=lambda codes, rngs: EncodecVQ(codes, DIM, rngs=rngs),
        use="parity with EnCodec, WavTokenizer and SpeechTokenizer only: its dead codes stay dead",
        paper="2210.13438",
    ),
    Scheme(
        name="vq_mimi",
        make=lambda codes, rngs: MimiVQ(codes, DIM, rngs=rngs),
        use="parity with Mimi: dead codes by their share of the mean use",
        paper="2410.00037",
    ),
    Scheme(
        name="vq_projected",
        make=lambda codes, rngs: Projected(VQ(codes, 8, distance="direction", rngs=rngs), DIM, 8, rngs=rngs),
        use="DAC's factorised codes: wide latents, a codebook of 8 channels",
        paper="2306.06546",
        weights=GRADIENT,
    ),
    Scheme(
        name="ibq",
        make=lambda codes, rngs: VQ(
            codes,
            DIM,
            distance="dot",
            estimator=IndexBackpropagation(),
            regularizers=[CodeEntropy(dot=True)],
            rngs=rngs,
        ),
        use="ids and tokenizers of IBQ: all codes get gradients; logits are dot products, as published",
        paper="2412.02692",
        weights=INDEX,
    ),
    Scheme(
        name="ibq_euclidean",
        make=lambda codes, rngs: VQ(
            codes, DIM, estimator=IndexBackpropagation(), regularizers=[CodeEntropy()], rngs=rngs
        ),
        use="large codebooks learned by gradient alone: IBQ with distances for logits, so that no code is out of reach",
        paper="2412.02692",
        weights=INDEX,
    ),
    Scheme(
        name="simvq",
        make=lambda codes, rngs: SimVQ(codes, DIM, rngs=rngs),
        use="large codebooks without collapse and without tuning: one linear layer moves them all",
        paper="2411.02038",
        weights=GRADIENT,
        peer=lambda codes: ("SimVQ", {"dim": DIM, "codebook_size": codes, "rotation_trick": False}),
    ),
    Scheme(
        name="product",
        make=lambda codes, rngs: Product(lambda rngs: _ema(codes, DIM // GROUPS, rngs), GROUPS, rngs=rngs),
        use="many bits per position from small codebooks, one per group of channels",
        paper="Jegou et al. 2011",
        peer=_vq_peer(
            heads=GROUPS, codebook_dim=DIM // GROUPS, separate_codebook_per_head=True, threshold_ema_dead_code=1
        ),
    ),
    Scheme(
        name="heads",
        make=lambda codes, rngs: Heads(_ema(codes, DIM // GROUPS, rngs), GROUPS),
        use="product with one codebook for all groups",
        paper="Jegou et al. 2011",
        peer=_vq_peer(heads=GROUPS, codebook_dim=DIM // GROUPS, threshold_ema_dead_code=1),
    ),
    Scheme(
        name="residual",
        make=lambda codes, rngs: Residual([_ema(codes, DIM, rngs) for _ in range(LAYERS)], dropout=QuantizerDropout()),
        use="audio codecs: any prefix of the layers decodes, so one model has many bitrates",
        paper="2107.03312",
        peer=_residual_peer("ResidualVQ"),
    ),
    Scheme(
        name="residual_shared",
        make=lambda codes, rngs: Residual([_ema(codes, DIM, rngs)], layers=LAYERS),
        use="residual with one codebook for all layers: fewest parameters",
        paper="2203.01941",
        peer=_residual_peer("ResidualVQ", shared_codebook=True),
    ),
    Scheme(
        name="grouped_residual",
        make=lambda codes, rngs: Product(
            lambda rngs: Residual([_ema(codes, DIM // 2, rngs) for _ in range(LAYERS // 2)]), 2, rngs=rngs
        ),
        use="residual in groups of channels: fewer layers in a row for the same bits",
        paper="2305.02765",
        peer=_residual_peer("GroupedResidualVQ", groups=2, num_quantizers=LAYERS // 2),
    ),
    Scheme(
        name="additive",
        make=lambda codes, rngs: AdditiveVQ(codes, DIM, books=LAYERS, beam=4, rngs=rngs),
        use="the lowest error for given bits, where encoding may be slow",
        paper="Babenko and Lempitsky 2014",
        weights=GRADIENT,
    ),
    Scheme(
        name="multiscale",
        make=lambda codes, rngs: MultiScale([_ema(codes, DIM, rngs) for _ in range(3)], [4, 2, 1]),
        use="long audio for language models: coarse tokens at a fraction of the rate",
        paper="2410.14411",
    ),
    Scheme(
        name="split",
        make=lambda codes, rngs: Split(
            [_ema(codes, DIM, rngs), Residual([_ema(codes, DIM, rngs) for _ in range(LAYERS - 1)])]
        ),
        use="one semantic token that is distilled from a teacher, beside residual tokens for the sound",
        paper="2410.00037",
        weights={"0/commitment": 1.0, "1/commitment": 1.0},
    ),
    Scheme(
        name="shared_ids",
        make=lambda codes, rngs: SharedIdsVQ(codes, [DIM // 2, DIM // 2], rngs=rngs),
        use="one id for understanding and for pixels: a semantic and a pixel codebook side by side",
        paper="2412.03069",
        weights=GRADIENT,
    ),
    Scheme(
        name="fsq",
        make=lambda codes, rngs: FSQ(levels(codes), rngs=rngs),
        width=lambda codes: len(levels(codes)),
        use="the first to try: nothing to learn, to tune or to collapse, at 1k to 64k codes",
        paper="2309.15505",
        peer=lambda codes: ("FSQ", {"levels": levels(codes)}),
    ),
    Scheme(
        name="residual_fsq",
        make=_wide_residual_fsq,
        width=lambda codes: len(levels(codes)),
        use="fsq in layers: more bits from the same few channels",
        paper="2411.19842",
        peer=lambda codes: ("ResidualFSQ", {"levels": levels(codes), "num_quantizers": 2}),
    ),
    Scheme(
        name="lfq",
        make=lambda codes, rngs: LFQ(1, bits(codes), rngs=rngs),
        width=bits,
        use="image and video tokenizers with 2^14 to 2^18 codes: no search, entropies keep the codes in use",
        paper="2310.05737",
        weights=ENTROPY,
        peer=lambda codes: ("LFQ", {"codebook_size": codes, "dim": bits(codes), "commitment_loss_weight": 0.25}),
    ),
    Scheme(
        name="lfq_groups",
        make=lambda codes, rngs: LFQ(GROUPS, bits(codes), entropy=Entropy(pooling="pooled", epsilon=1e-5), rngs=rngs),
        width=lambda codes: GROUPS * bits(codes),
        use="WeTok: tens of bits per position, in groups of 8 that a generator can predict one by one",
        paper="2508.05599",
        weights=ENTROPY,
        peer=lambda codes: (
            "LFQ",
            {
                "codebook_size": codes,
                "dim": GROUPS * bits(codes),
                "num_codebooks": GROUPS,
                "commitment_loss_weight": 0.25,
            },
        ),
    ),
    Scheme(
        name="residual_lfq",
        make=lambda codes, rngs: residual_lfq(bits(codes), LAYERS),
        width=bits,
        use="lfq in layers, each at half the scale",
        paper="2310.05737",
        weights=ENTROPY,
        peer=lambda codes: (
            "ResidualLFQ",
            {"dim": bits(codes), "codebook_size": codes, "num_quantizers": LAYERS, "commitment_loss_weight": 0.25},
        ),
    ),
    Scheme(
        name="bsq",
        make=lambda codes, rngs: BSQ(bits(codes)),
        width=bits,
        use="lfq on the sphere: bounded error, entropies of single bits, any number of bits",
        paper="2406.07548",
        weights={"sample_entropy": 0.1, "codebook_entropy": -0.1},
        peer=lambda codes: (
            "LFQ",
            {"codebook_size": codes, "dim": bits(codes), "spherical": True, "commitment_loss_weight": 0.25},
        ),
    ),
    Scheme(
        name="binary",
        make=lambda codes, rngs: BinaryLatents(bits(codes)),
        width=bits,
        use="bit vectors as tokens, for generators that predict bits",
        paper="2506.21022",
    ),
    Scheme(
        name="latent",
        make=lambda codes, rngs: LatentQuantizer(levels(codes)),
        width=lambda codes: len(levels(codes)),
        use="disentangled latents: fsq with learned values per channel",
        paper="2305.18378",
        weights={"commitment": 0.25, "codebook": 0.25},
        peer=lambda codes: ("LatentQuantize", {"levels": levels(codes), "dim": len(levels(codes))}),
    ),
    Scheme(
        name="random_projection",
        make=lambda codes, rngs: RandomProjection(VQ(codes, DIM, l2_norm=True, rngs=rngs), DIM, DIM, rngs=rngs),
        use="labels for self-supervised learning; nothing is trained",
        paper="2202.01855",
        peer=lambda codes: (
            "RandomProjectionQuantizer",
            {"dim": DIM, "num_codebooks": 1, "codebook_dim": DIM, "codebook_size": codes},
        ),
        trains=False,
    ),
    Scheme(
        name="gaussian",
        make=lambda codes, rngs: DiagonalGaussian(),
        width=lambda codes: 2 * DIM,
        use="continuous latents for diffusion and flow models",
        paper="1312.6114",
        weights={"kl": 1e-6},
    ),
    Scheme(
        name="sigma_gaussian",
        make=lambda codes, rngs: SigmaGaussian(),
        use="continuous latents for autoregressive models with a diffusion head: noise that cannot collapse",
        paper="2412.08635",
        weights={"norm": 1e-3},
    ),
    Scheme(
        name="standardized",
        make=lambda codes, rngs: Standardized(),
        use="latents of a trained autoencoder, brought to unit variance",
        paper="2112.10752",
        trains=False,
    ),
)


def scheme(name: str) -> Scheme:
    """The row of a name."""
    return next(row for row in SCHEMES if row.name == name)
