"""Distances between sets of images, against cases with a known answer."""

import numpy as np
import pytest

from zoo.errors import DataError
from zoo.metrics import fid
from zoo.metrics.fid import FeatureStatistics, InceptionScore, frechet_distance, kernel_distance


def statistics(x, batch=None):
    out = FeatureStatistics()
    for start in range(0, len(x), batch or len(x)):
        out.add(x[start : start + (batch or len(x))])
    return out


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3


def test_batches_equal_the_whole(features):
    mean, covariance = statistics(features, 7).moments()
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.T), rtol=1e-10)


def test_frechet_distance_of_known_gaussians(features):
    a = statistics(features)
    assert abs(frechet_distance(a, a)) < 1e-9
    shifted = statistics(features + np.arange(6))
    np.testing.assert_allclose(frechet_distance(a, shifted), np.sum(np.arange(6) ** 2), rtol=1e-9)
    scaled = statistics(3 * features)  # commuting covariances: sum of (s - 3 s)^2 over standard deviations
    mean, covariance = a.moments()
    np.testing.assert_allclose(frechet_distance(a, scaled), 4 * (mean @ mean + np.trace(covariance)), rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(scaled, shifted), frechet_distance(shifted, scaled), rtol=1e-9)


def test_frechet_distance_with_fewer_images_than_channels():
    rng = np.random.default_rng(1)
    a, b = statistics(rng.normal(size=(3, 8))), statistics(rng.normal(size=(3, 8)))
    assert 0 < frechet_distance(a, b) < 100


def test_inception_score_of_sure_and_unsure_classifiers():
    score = InceptionScore()
    for _ in range(3):
        score.add(100 * np.eye(10, dtype=np.float32))
    np.testing.assert_allclose(score.value(), 10, rtol=1e-9)
    flat = InceptionScore()
    flat.add(np.zeros((4, 10)))
    np.testing.assert_allclose(flat.value(), 1, rtol=1e-9)


def test_kernel_distance_tells_sets_apart_and_is_unbiased(features):
    same = [kernel_distance(*np.split(np.random.default_rng(i).permutation(features)[:100], 2)) for i in range(40)]
    other = kernel_distance(features[:50], features[50:100] + 1)
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(40) + 1e-9
    assert min(same) < 0 < other and other > max(same)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        statistics(np.zeros((1, 3))).moments()
    with pytest.raises(DataError, match="at least 1 image"):
        InceptionScore().value()
    with pytest.raises(DataError, match="got 5 and 1"):
        kernel_distance(np.zeros((5, 3)), np.zeros((1, 3)))


def test_the_kernel_distance_is_the_same_in_parts(monkeypatch):
    a, b = np.random.default_rng(0).normal(size=(2, 10, 4))
    whole = kernel_distance(a, b[:7])
    monkeypatch.setattr(fid, "ROWS", 3)
    np.testing.assert_allclose(kernel_distance(a, b[:7]), whole, rtol=1e-12)
