"""Batches of images. The position in the data is a function of the step, on any number of processes."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.data.labels import Labels
from zoo.data.sources import Resilient, Source, holdout, open_source
from zoo.data.transforms import eval_transform, resize_shorter, train_transform
from zoo.errors import DataError, InputError

if TYPE_CHECKING:
    import grain


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are cut into batches.

    Attributes:
        path: what to train on; see `zoo.data.sources.open_source`.
        eval_path: what to evaluate on; None: a part of `path` is held out.
        holdout: share of the items held out.
        image_size: pixels of the square crops.
        batch_size: global, over all processes.
        scale: the shorter edge becomes image_size times a draw from this range before the crop.
        crop: "random", or "center" as in the evaluation.
        flip: mirrors half of the crops.
        diversify: turns crops and changes their colours, for collections of few sources;
            see `zoo.data.transforms.diversify_photo`.
        labels: an .npz with more about the items, or None; see `zoo.data.labels.Labels`.
        max_corrupt: share of unreadable items above which a run fails.
        threads: that read and crop; 0 does it between the steps.
        cache_mb: MiB of decoded images kept in memory; 0 decodes every time.
        seed: of order, crops and mirrors.
    """

    path: str = "bundled"
    eval_path: str | None = None
    holdout: float = 0.05
    image_size: int = 256
    batch_size: int = 64
    scale: tuple[float, float] = (1.0, 1.0)
    crop: Literal["random", "center"] = "random"
    flip: bool = True
    diversify: bool = False
    labels: str | None = None
    max_corrupt: float = 0.05
    threads: int = 2
    cache_mb: int = 1024
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.scale[0] <= self.scale[1]:
            raise InputError(f"data.scale is {self.scale}; give (low, high) with 1 <= low <= high")
        if self.crop == "center" and self.scale != (1.0, 1.0):
            raise InputError(f"data.scale {self.scale} moves the crop and data.crop is 'center'; set scale to 1 1")
        if min(self.image_size, self.batch_size) < 1:
            raise InputError(f"data.image_size {self.image_size} and batch_size {self.batch_size} must be 1 or more")


def open_sources(config: DataConfig) -> tuple[Resilient, Source]:
    """Opens what a config names: (train, held out). Unreadable training items are replaced and counted.

    Raises:
        DataError: a path is missing or holds no images.
    """
    train = open_source(config.path)
    if config.eval_path is None:
        train, heldout = holdout(train, config.holdout)
    else:
        heldout = open_source(config.eval_path)
    return Resilient(train, config.max_corrupt), heldout


class _Prepared:
    """Decoded images with their shorter edge at the largest training size, kept in memory up to a budget.

    Decoding a photo costs far more than cropping it. An image beyond the budget is prepared again each time
    by the same arithmetic, so that the budget never changes a batch.
    """

    def __init__(self, source: Source, size: int, budget: int):
        self._source, self._size, self._free = source, size, budget
        self._lock = threading.Lock()
        self._cache: dict[int, tuple[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
        """Name and image."""
        if index in self._cache:
            return self._cache[index]
        item = self._source[index]
        prepared = item["name"], resize_shorter(item["image"], self._size)
        with self._lock:
            if prepared[1].nbytes <= self._free and index not in self._cache:
                self._cache[index] = prepared
                self._free -= prepared[1].nbytes
        return prepared


class _Shuffled:
    """Endless: each epoch of positions is a new permutation of the items.

    Grain's own shuffle walks a cipher over 2^16 numbers, which for a folder of 24 photos costs 2 ms an item,
    more than its crop does.
    """

    def __init__(self, items: _Prepared, seed: int):
        self._items = items
        count = len(items)
        self._order = functools.lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(count)
        )

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
        epoch, place = divmod(index, len(self._items))
        return self._items[int(self._order(epoch)[place])]


def _open_labels(config: DataConfig, source: Source) -> Labels | None:
    if config.labels is None:
        return None
    labels = Labels(config.labels, source.names)
    if "ids" in labels and (config.crop == "random" or config.flip or config.diversify):
        raise InputError(
            f"the ids in {config.labels} are of whole centre crops; train on those: --data.crop center --data.no-flip "
            "--data.no-diversify"
        )
    return labels


class _Rows:
    """`count` consecutive rows, from `first` on, of every batch of `batch_size` items."""

    def __init__(self, items: Any, batch_size: int, first: int, count: int):
        self._items, self._batch_size, self._first, self._count = items, batch_size, first, count

    def __len__(self) -> int:
        return len(self._items) // self._batch_size * self._count

    def __getitem__(self, index: int) -> Any:
        batch, row = divmod(index, self._count)
        return self._items[batch * self._batch_size + self._first + row]


def train_batches(
    source: Source, config: DataConfig, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Endless shuffled training batches.

    Batch i depends on the source, `config` and i alone, whether reached by iterating or by starting there.
    Every epoch has a new order and new crops. The global batch is that of one process: process p has its p-th part of
    consecutive rows.

    Args:
        source: usually the first of `open_sources`.
        config: sizes, augmentation, seed.
        start_step: the first batch.
        process_index: this process.
        process_count: how many there are; divides config.batch_size.

    Returns:
        An iterator of {"image": uint8 [batch_size / process_count, image_size, image_size, 3]}, with what the labels
        add. Its `close()` ends its threads; they also end with the program.

    Raises:
        DataError: on iterating, if too many items are unreadable; at once, if the batch does not divide or the labels
            miss an item.
        InputError: the labels hold ids and the crops would differ from those that were encoded.
    """
    import grain

    if config.batch_size % process_count:
        raise DataError(f"batch_size {config.batch_size} over {process_count} processes; give a multiple of them")
    low, high = config.scale
    largest = round(config.image_size * high)

    labels = _open_labels(config, source)

    def crop(item: tuple[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        name, image = item
        if config.crop == "center":
            image = eval_transform(image, config.image_size)
        how = {"scale": (low, high), "flip": config.flip, "diversify": config.diversify}
        cropped = {"image": train_transform(image, config.image_size, rng, **how)}
        return cropped if labels is None else cropped | labels[name]

    items = _Shuffled(_Prepared(source, largest, config.cache_mb << 20), config.seed)
    # random_map comes before the choice of rows: its random numbers belong to the global position
    crops: Any = grain.MapDataset.source(items).seed(config.seed).random_map(crop)
    rows = config.batch_size // process_count
    mine = _Rows(crops, config.batch_size, rows * process_index, rows)
    data: Any = grain.MapDataset.source(mine).batch(rows)[start_step:]
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
    batches: Any = iter(data.to_iter_dataset(options))
    return batches


def eval_batches(
    source: Source, size: int, batch_size: int, corrupt: dict[str, str] | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """All images in order, with the published evaluation preprocessing; the last batch may be smaller.

    Args:
        source: what to read.
        size: pixels of the square.
        batch_size: images in a batch.
        corrupt: if given, unreadable items are skipped and noted here, name -> reason.

    Yields:
        Names and uint8 [n, size, size, 3].

    Raises:
        InputError: an unreadable item, if `corrupt` is not given.
    """
    names, images = [], []
    for i, name in enumerate(source.names):
        try:
            images.append(eval_transform(source[i]["image"], size))
        except InputError as error:
            if corrupt is None:
                raise
            corrupt[name] = str(error)
            continue
        names.append(name)
        if len(names) == batch_size:
            yield names, np.stack(images)
            names, images = [], []
    if names:
        yield names, np.stack(images)
