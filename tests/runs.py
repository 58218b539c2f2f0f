"""What tests of training runs share: a folder of pictures, a config file, the lines of a run."""

import json
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image


def ten_pictures(folder):
    """Fills a folder with smooth pictures of 48 x 40 pixels."""
    rng = np.random.default_rng(0)
    for i in range(10):
        small = rng.integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def write_config(folder, config):
    """A config file whose get_config() returns `config`."""
    path = folder / "config_under_test.py"
    path.write_text(
        textwrap.dedent(f"""
        from zoo.data.loader import DataConfig
        from zoo.models.titok import TiTokConfig, ViTConfig
        from zoo.optim import Optimizer
        from zoo.recipes.reconstruction import Reconstruction
        from zoo.train import MeshConfig, TrainConfig

        def get_config():
            return {config!r}
        """)
    )
    return path


def lines(workdir):
    """step -> metrics; the last line of a step counts."""
    found = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in found}
