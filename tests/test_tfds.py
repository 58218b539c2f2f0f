"""Training from a prepared tensorflow-datasets folder where TensorFlow cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import io
import sys
from importlib.machinery import PathFinder


class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in ("tensorflow", "tf_keras") else super().find_spec(name, *rest)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden  # TensorFlow is not there, installed or not

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zoo.data.loader import DataConfig
from zoo.data.sources import open_source
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import MeshConfig, Optimizer, TrainConfig, train


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": image}))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 2)}

    def _generate_examples(self, first, count):
        for i in range(first, first + count):
            file = io.BytesIO()  # an array would be encoded by TensorFlow
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 32, 3), np.uint8)).save(file, "PNG")
            yield i, {"image": file.getvalue()}


builder = Tiny(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
assert len(open_source(str(builder.data_path))) == 12
vit = ViTConfig(width=16, depth=1, heads=2, patch=16)
model = TiTokConfig(encoder=vit, decoder=vit, tokens=4, code_dim=4, vocab_size=16, image_size=32, narrow=True)
config = TrainConfig(
    recipe=Reconstruction(model=model),
    data=DataConfig(path=str(builder.data_path), eval_path=f"{builder.data_path}:test", batch_size=4),
    optim=Optimizer(warmup=1),
    mesh=MeshConfig(data=1),
    steps=5,
    log_every=1,
    picture_every=0,
)
metrics = train(config, sys.argv[2])
assert metrics["n"] == 2, metrics
assert "tensorflow" not in sys.modules
"""


def test_five_steps_from_tfds_without_tensorflow(tmp_path):
    run = tmp_path / "run"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "data"), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 5
    assert (run / "checkpoints" / "5").is_dir() and (run / "release" / "config.json").is_file()
