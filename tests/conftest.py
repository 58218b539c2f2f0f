"""Before jax is imported: the CPU, eight fake devices, no network, and a compilation cache for this session only."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

_cache = tempfile.mkdtemp(prefix="zoo-xla-")  # a program that several tests build compiles once
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

LONGEST = ("test_train.py", "test_recipes.py", "test_parity.py")  # minutes each: a worker that gets one last is alone


def pytest_collection_modifyitems(items):
    """The longest files first; scripts/test.sh tells the workers to keep this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
