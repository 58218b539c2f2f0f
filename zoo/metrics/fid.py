"""Distances between two sets of images, from features and logits of a classifier. All in float64, in numpy.

Frechet distance: Heusel et al. 2017, arXiv:1706.08500; Inception Score: Salimans et al. 2016, arXiv:1606.03498; kernel
distance: Binkowski et al. 2018, arXiv:1801.01401. The names FID and IS belong to the features of one network, the
Inception-v3 of 2015-12-05; with others the numbers do not compare.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from zoo.errors import DataError

ROWS = 1024  # of a kernel matrix that are in memory at once


class FeatureStatistics:
    """Mean and covariance of features that come in batches; memory does not grow with their number."""

    def __init__(self):
        self.count, self._sum, self._outer = 0, np.float64(0), np.float64(0)

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Takes a batch in."""
        x = np.asarray(features, np.float64)
        self.count += len(x)
        self._sum = self._sum + x.sum(0)
        self._outer = self._outer + x.T @ x

    def moments(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """The mean, and the covariance over n - 1.

        Raises:
            DataError: fewer than two items.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.count}")
        mean = self._sum / self.count
        return np.asarray(mean), (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), with the root of the symmetric S_a^1/2 S_b S_a^1/2."""
    (mean_a, cov_a), (mean_b, cov_b) = a.moments(), b.moments()
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


class InceptionScore:
    """exp of the mean KL between p(class | image) and p(class), over all images at once, without splits."""

    EPS = 1e-16

    def __init__(self):
        self.count, self._probability, self._negentropy = 0, np.float64(0), 0.0

    def add(self, logits: Float[np.ndarray, "n k"]) -> None:
        """Takes a batch in."""
        x = np.asarray(logits, np.float64)
        p = np.exp(x - x.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        self.count += len(x)
        self._probability = self._probability + p.sum(0)
        self._negentropy += float(np.sum(p * np.log(p + self.EPS)))

    def value(self) -> float:
        """The score, at least 1.

        Raises:
            DataError: no image.
        """
        if not self.count:
            raise DataError("an Inception Score needs at least 1 image, got 0")
        p = self._probability / self.count
        return float(np.exp(self._negentropy / self.count - np.sum(p * np.log(p + self.EPS))))


def kernel_distance(a: Shaped[np.ndarray, "n d"], b: Shaped[np.ndarray, "m d"]) -> float:
    """The unbiased squared MMD under the kernel (x . y / d + 1)^3; may be slightly negative for equal sets.

    Raises:
        DataError: fewer than two items in a set.
    """
    if min(len(a), len(b)) < 2:
        raise DataError(f"a kernel distance needs at least 2 images in each set, got {len(a)} and {len(b)}")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def total(x: np.ndarray, y: np.ndarray) -> float:
        rows = range(0, len(x), ROWS)
        return sum(((x[i : i + ROWS] @ y.T / x.shape[1] + 1) ** 3).sum() for i in rows)

    def within(x: np.ndarray) -> float:
        same = ((np.sum(x * x, 1) / x.shape[1] + 1) ** 3).sum()
        return (total(x, x) - same) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))
