"""An autoencoder trains through every quantizer of the table."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoo.quantize.table import SCHEMES
from zoo.quantize_study import Settings, photos, run

CODES = 64
SHORT = Settings(steps=400, batch=64)
STEPS = {"ibq": 1000, "simvq": 1000, "lfq": 1000}  # until all codes are in use
ALL_USED = ("vq_ema", "simvq", "ibq", "fsq", "lfq")
MIN_PERPLEXITY = {"binary": 1.5}  # its codebooks have two codes
TRAINED = [scheme for scheme in SCHEMES if scheme.trains]


@pytest.fixture(scope="module")
def data():
    return photos()


@pytest.fixture(scope="module")
def rows(data):
    """Of all schemes, as they become ready; two at a time, since most of it is compiling."""

    def train(scheme):
        return run(scheme, CODES, data, dataclasses.replace(SHORT, steps=STEPS.get(scheme.name, SHORT.steps)))

    with ThreadPoolExecutor(2) as pool:
        yield {scheme.name: pool.submit(train, scheme) for scheme in TRAINED}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [scheme.name for scheme in TRAINED])
def test_trains(rows, data, name):
    row = rows[name].result()
    assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    assert row["end"] < row["start"]
    assert row["last"] < 0.5 * row["first"]
    variance = np.mean(data.heldout**2) * data.deviation**2
    assert row["mse"] < 0.4 * variance
    if "perplexity" in row:
        assert row["perplexity"] > MIN_PERPLEXITY.get(name, CODES / 8)


@pytest.mark.parametrize("name", ALL_USED)
def test_nearly_all_codes_are_used(rows, name):
    assert rows[name].result()["usage"] > 0.9
