"""An autoencoder trains through every quantizer of the table."""

import dataclasses
import functools

import numpy as np
import pytest
import schemes

from zoo.quantize.table import SCHEMES, scheme
from zoo.quantize_study import Settings, photos, run

CODES = 64
SHORT = Settings(steps=400, batch=64)
STEPS = {"ibq": 1000, "simvq": 1000, "lfq": 1000}  # until all codes are in use
ALL_USED = ("vq_ema", "simvq", "ibq", "fsq", "lfq")
MIN_PERPLEXITY = {"binary": 1.5}  # its codebooks have two codes
QUICK = (*ALL_USED, "vq", "vq_diveq", "product", "residual", "multiscale", "bsq", "binary", "gaussian")
TRAINED = [scheme.name for scheme in SCHEMES if scheme.trains]


@pytest.fixture(scope="module")
def data():
    return photos()


@pytest.fixture(scope="module")
def rows(data):
    """A function of a scheme's name, which trains it once."""

    @functools.cache
    def trained(name):
        return run(scheme(name), CODES, data, dataclasses.replace(SHORT, steps=STEPS.get(name, SHORT.steps)))

    return trained


@pytest.mark.parametrize("name", schemes.rows(TRAINED, quick=QUICK))
def test_trains(rows, data, name):
    row = rows(name)
    assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    assert row["end"] < row["start"]
    assert row["last"] < 0.5 * row["first"]
    variance = np.mean(data.heldout**2) * data.deviation**2
    assert row["mse"] < 0.4 * variance
    if "perplexity" in row:
        assert row["perplexity"] > MIN_PERPLEXITY.get(name, CODES / 8)


@pytest.mark.parametrize("name", [*schemes.rows(ALL_USED), *schemes.rows(["ibq_euclidean"])])
def test_nearly_all_codes_are_used(rows, name):
    assert rows(name)["usage"] > 0.9
