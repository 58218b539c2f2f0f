"""What a run leaves behind while it goes: config.json, metrics.jsonl, TensorBoard, pictures, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from zoo.checkpoint import write_json
from zoo.config import to_json
from zoo.errors import CheckpointError
from zoo.metrics.image import psnr
from zoo.pictures import grid, save_png, to_uint8
from zoo.tokenizer import Tokenizer


class RunLog:
    """Writes below `workdir`, from process 0 only. Enter it for the progress bar and TensorBoard.

    Raises:
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, config: Any):
        self.workdir, self.config = workdir, config
        self.active = jax.process_index() == 0
        self._file = workdir / "metrics.jsonl"
        self._clock = (0, time.perf_counter())
        if not self.active:
            return
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._note_changes(workdir / "config.json", to_json(config))
            write_json(workdir / "config.json", to_json(config))
        except OSError as error:
            raise CheckpointError(f"cannot write {workdir}: {error.strerror}; give another --workdir") from error

    def _note_changes(self, path: Path, config: dict[str, Any]) -> None:
        """Says on stderr in which values a resumed run differs from its start."""
        if path.is_file():
            old, new = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(config)))
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    print(f"note: {key} was {old.get(key)}, now {new.get(key)}", file=sys.stderr)

    def truncate(self, step: int) -> None:
        """Drops a half-written last line, which a killed run may leave, and starts the clock at `step`."""
        self._clock = (step, time.perf_counter())
        if self.active and self._file.is_file():
            text = self._file.read_bytes()
            if text and not text.endswith(b"\n"):
                self._file.write_bytes(text[: text.rfind(b"\n") + 1])

    def __enter__(self) -> RunLog:
        if self.active:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.workdir / "tensorboard"))
            self._bar = tqdm(
                total=self.config.steps,
                initial=self._clock[0],
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self.active:
            self._bar.close()
            self._board.close()

    def write(self, step: int, values: list[dict[str, float]], lr: Any, corrupt: int) -> None:
        """Logs the last of `values`, the metrics of the steps since the line before."""
        then, at = self._clock
        self._clock = (step, time.perf_counter())
        if not self.active or not values:
            return
        rate = (step - then) * self.config.data.batch_size / max(self._clock[1] - at, 1e-9)
        line = {"step": step, **values[-1], "lr": float(lr(step - 1)), "images_per_second": round(rate, 2)}
        line |= {"corrupt": corrupt} if corrupt else {}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, step)
        self._bar.update(step - self._bar.n)
        shown = {k: f"{line[k]:.4g}" for k in ("loss", "psnr", "perplexity") if k in line}
        self._bar.set_postfix(shown)

    def picture(self, step: int, tokenizer: Tokenizer, images: np.ndarray) -> None:
        """workdir/pictures/STEP.png: held-out images and what the averaged model makes of them."""
        if not self.active:
            return
        rebuilt = to_uint8(np.asarray(tokenizer.decode(tokenizer.encode(images))))
        folder = self.workdir / "pictures"
        folder.mkdir(exist_ok=True)
        scores = psnr(images, rebuilt)
        rows = [[a, b] for a, b in zip(images, rebuilt, strict=True)]
        labels = [["", f"{score:.1f} dB"] for score in scores]
        scale = max(1, 192 // images.shape[1])
        sheet = grid(rows, columns=["original", f"step {step}"], labels=labels, scale=scale)
        save_png(sheet, folder / f"{step:08d}.png")

    def corrupt(self, names: dict[str, str]) -> None:
        """workdir/corrupt.json: the items that could not be read and were replaced."""
        if self.active and names:
            print(
                f"{len(names)} unreadable items were replaced; see {self.workdir / 'corrupt.json'}",
                file=sys.stderr,
            )
            write_json(self.workdir / "corrupt.json", names)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
