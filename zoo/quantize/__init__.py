"""The quantizer library: vectors [..., d] to ids [..., q] and back. See zoo.types.Quantizer.

    quantizer = FSQ([8, 5, 5, 5], rngs=nnx.Rngs(0))      # or any other of zoo.quantize.table.SCHEMES
    out = quantizer(z)                                   # out.z, out.ids, out.losses, out.stats
    z = quantizer.lookup(out.ids)                        # bit-equal to out.z

Which one when: docs/quantizers.md.
"""

from zoo.quantize.additive import AdditiveVQ
from zoo.quantize.bernoulli import BinaryLatents
from zoo.quantize.binary import Entropy
from zoo.quantize.bsq import BSQ
from zoo.quantize.common import CodebookState, assign
from zoo.quantize.dual import SharedIdsVQ
from zoo.quantize.ema import EMAVQ, AffineVQ, EncodecVQ, MimiVQ
from zoo.quantize.estimators import DiVeQ, Gumbel, IndexBackpropagation, RotationTrick, StraightThrough
from zoo.quantize.fsq import FSQ
from zoo.quantize.gaussian import DiagonalGaussian, SigmaGaussian, Standardized
from zoo.quantize.latent import LatentQuantizer
from zoo.quantize.lfq import LFQ
from zoo.quantize.multiscale import MultiScale
from zoo.quantize.product import Heads, Product
from zoo.quantize.projected import Projected, RandomProjection, SoftClamp
from zoo.quantize.regularizers import CodeEntropy, CrossEntropyCommitment, Diversity, Orthogonality
from zoo.quantize.residual import QuantizerDropout, Residual, residual_fsq, residual_lfq
from zoo.quantize.simvq import SimVQ
from zoo.quantize.split import Split
from zoo.quantize.vq import VQ

__all__ = [
    "BSQ", "EMAVQ", "FSQ", "LFQ", "VQ", "AdditiveVQ", "AffineVQ", "BinaryLatents", "CodeEntropy", "CodebookState",
    "CrossEntropyCommitment", "DiVeQ", "DiagonalGaussian", "Diversity", "EncodecVQ", "Entropy", "Gumbel", "Heads",
    "IndexBackpropagation", "LatentQuantizer", "MimiVQ", "MultiScale", "Orthogonality", "Product", "Projected",
    "QuantizerDropout", "RandomProjection", "Residual", "RotationTrick", "SharedIdsVQ", "SigmaGaussian", "SimVQ",
    "SoftClamp", "Split", "Standardized", "StraightThrough", "assign", "residual_fsq", "residual_lfq",
]  # fmt: skip
