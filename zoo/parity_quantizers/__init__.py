"""Parity of quantizers: forward values, ids, losses, gradients, and the state after training steps."""

from zoo.parity_quantizers.codebooks import encodec_kmeans, encodec_steps, mimi_step
from zoo.parity_quantizers.reference import UnknownArgument
from zoo.parity_quantizers.run import quantizer

QUANTIZERS = {
    "quantizer": quantizer,
    "vq_ema_step": encodec_steps,
    "vq_kmeans_init": encodec_kmeans,
    "rvq_train_step": mimi_step,
}
__all__ = ["QUANTIZERS", "UnknownArgument"]
