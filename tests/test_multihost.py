"""Several processes: how they find each other, and `zoo train` in two real ones on loopback."""

import dataclasses
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from runs import lines, ten_pictures, write_config

from zoo import sharding
from zoo.checkpoint import Checkpoints, load_release, read_release_config
from zoo.data.loader import DataConfig
from zoo.errors import InputError
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.optim import Optimizer
from zoo.pretrained import load, save
from zoo.recipes.reconstruction import Reconstruction
from zoo.tokenizer import Tokenizer
from zoo.train import MeshConfig, TrainConfig

VIT = ViTConfig(width=128, depth=1, heads=2, patch=16)  # wide enough for fsdp to split its kernels
MODEL = TiTokConfig(encoder=VIT, decoder=VIT, tokens=4, code_dim=4, vocab_size=16, image_size=32, narrow=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run over a folder of ten pictures."""
    folder = ten_pictures(tmp_path_factory.mktemp("photos"))
    return TrainConfig(
        recipe=Reconstruction(model=MODEL, autoencode_steps=1),
        data=DataConfig(path=str(folder), batch_size=8, image_size=32, holdout=0.2, threads=0),
        optim=Optimizer(lr=1e-3, end_lr=1e-3, warmup=1),
        mesh=MeshConfig(data=1),
        steps=3,
        log_every=1,
        save_every=2,
        picture_every=3,
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(command, *, processes, devices):
    """`command`, `processes` times, with `devices` in each."""
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "ZOO_COORDINATOR": f"localhost:{free_port()}",
        "ZOO_PROCESSES": str(processes),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, command)]
    return [subprocess.Popen(command, env=env | {"ZOO_PROCESS": str(i)}, **pipes) for i in range(processes)]


def finish(running):
    """(stdout, stderr) of each, all of which must have ended well."""
    try:
        texts = [process.communicate(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), texts
    return texts


# -- finding each other


@pytest.fixture
def slurm(monkeypatch):
    """Task 1 of 2."""
    names = {"JOB_ID": "4096", "STEP_NODELIST": "node[07-08]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_slurm_is_asked_for_its_tasks(slurm, monkeypatch):
    assert sharding._detected(1) == ("node07:61440", 2, 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert sharding._detected(1) is None


def test_one_process_stays_alone():
    with sharding.processes():
        assert not jax.distributed.is_initialized()


def test_one_process_that_is_asked_for_stays_alone(slurm, monkeypatch):
    for name, value in zip(sharding.VARIABLES, ("localhost:1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with sharding.processes():
        assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", "2", ""), "ZOO_COORDINATOR, ZOO_PROCESSES set without ZOO_PROCESS; give all three"),
        (("", "2", ""), "ZOO_PROCESSES set without ZOO_COORDINATOR, ZOO_PROCESS"),
        (("host", "2", "0"), "ZOO_COORDINATOR=host ZOO_PROCESSES=2 ZOO_PROCESS=0; give all three"),
        (("host:1", "two", "0"), "ZOO_PROCESSES=two"),
        (("host:1", "2", "2"), "ZOO_PROCESS=2 of ZOO_PROCESSES=2"),
    ],
)
def test_half_given_settings_end_in_one_line(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        sharding._given(dict(zip(sharding.VARIABLES, given, strict=True)))


def test_who_is_missing_is_said():
    address = f"localhost:{free_port()}"
    with pytest.raises(InputError, match=f"process 1: process 0 was not ready at {address} within 0.1 s"):
        sharding._meet(address, 3, 1, timeout=0.1)
    second = threading.Thread(target=lambda: pytest.raises(InputError, sharding._meet, address, 3, 2, 1.5))
    second.start()
    stranger = threading.Timer(0.3, lambda: socket.create_connection(("localhost", int(address[10:]))).close())
    stranger.start()
    with pytest.raises(InputError, match=r"of 3 processes these did not come .* within 1 s: 1; start them"):
        sharding._meet(address, 3, 0, timeout=1)
    second.join()
    with socket.create_server(("", int(address[10:]))), pytest.raises(InputError, match="cannot listen on port"):
        sharding._meet(address, 2, 0, timeout=1)


# -- the parts, in two processes

WORKER = """
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zoo import sharding
from zoo.checkpoint import Checkpoints, save_release, to_host
from zoo.errors import InputError
from zoo.train import _Sigterm

folder = Path(sys.argv[1])
with sharding.processes():
    mine, rows = jax.process_index(), np.arange(8.0).reshape(8, 1)
    try:
        sharding.make_mesh(1)
    except InputError as error:
        assert "mesh of 1 x 1 devices over 2 processes; give a multiple of 2" in str(error)
    for data, fsdp in ((2, 1), (2, 2), (1, 4)):  # fewer devices than there are, inside a process, across processes
        mesh = sharding.make_mesh(data, fsdp)
        half = sharding.put_batch(mesh, rows[4 * mine : 4 * mine + 4])
        np.testing.assert_array_equal(to_host(half), rows)
        weights = np.arange(512 * 64, dtype=np.float32).reshape(512, 64)
        where = sharding.fsdp(mesh, {"w": weights})
        state = jax.jit(lambda: {"w": jnp.asarray(weights)}, out_shardings=where)()
        assert state["w"].addressable_shards[0].data.size == weights.size // fsdp
        step = jax.jit(lambda s, b: {"w": s["w"] + jnp.sum(b)}, out_shardings=where)
        state = step(state, half)
        checkpoints = Checkpoints(folder / f"{data}x{fsdp}")
        checkpoints.save(1, state, {"a": 1})
        checkpoints.save(2, step(state, half), {"a": 2})
        checkpoints.wait()
        target = sharding.with_shardings(state, where)
        newest, restored, meta = Checkpoints(folder / f"{data}x{fsdp}").restore_latest(target)
        assert newest in (1, 2), newest
        np.testing.assert_array_equal(to_host(restored["w"]), weights + newest * 28)
    save_release(folder / "release", {"w": state["w"]}, {"family": "f", "config": {}})
    with _Sigterm() as sigterm:
        n = 0
        print("ready", flush=True)
        while not sigterm.stops_after(n):
            half = jax.block_until_ready(step(state, half)) and half
            n += 1
    print("stopped at", n, flush=True)
os._exit(0)  # jaxlib's CPU client was once seen to hang at the interpreter's end
"""


def test_the_parts_in_two_processes(tmp_path):
    running = start(["-c", WORKER, tmp_path], processes=2, devices=2)
    for process in running:
        assert "ready\n" in iter(process.stdout.readline, "")  # after lines of gloo
    running[1].send_signal(signal.SIGTERM)
    texts = finish(running)
    assert re.fullmatch(r"stopped at [1-9]\d*\n", texts[0][0]) and texts[0][0] == texts[1][0]
    weights = np.arange(512 * 64, dtype=np.float32).reshape(512, 64)
    for name in ("2x1", "2x2", "1x4"):  # restored by one process
        mesh = sharding.make_mesh(1, 8)
        target = sharding.with_shardings({"w": weights}, sharding.fsdp(mesh, {"w": weights}))
        step, state, meta = Checkpoints(tmp_path / name).restore_latest(target)
        assert (step, meta) == (2, {"a": 2})
        np.testing.assert_array_equal(state["w"], weights + 56)
    target = sharding.with_shardings({"w": weights}, sharding.replicate(sharding.make_mesh(1), {"w": weights}))
    np.testing.assert_array_equal(load_release(tmp_path / "release", target)["w"], weights + 28)


# -- the command


def train_command(folder, config, workdir):
    return ["-m", "zoo.cli", "train", write_config(folder, config), "--workdir", workdir]


@pytest.mark.long
@pytest.mark.parametrize(("data", "fsdp"), [(4, 1), (1, 4)])
def test_two_processes_train_like_one(config, tmp_path, data, fsdp):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(train_command(tmp_path, dataclasses.replace(config, steps=6), one), processes=1, devices=1))
    config = dataclasses.replace(config, mesh=MeshConfig(data=data, fsdp=fsdp))
    texts = finish(start(train_command(tmp_path, config, two), processes=2, devices=2))
    assert [text.count("release:") for text, _ in texts] == [1, 0]  # process 0 reports
    assert sorted(lines(two)) == [1, 2, 3] and len((two / "metrics.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in (two / "pictures").iterdir()] == ["00000003.png"]
    assert read_release_config(two / "release")["steps"] == 3
    assert Checkpoints(two / "checkpoints").steps() == [2, 3]
    more = dataclasses.replace(config, steps=6, mesh=MeshConfig(data=1))
    texts = finish(start(train_command(tmp_path, more, two), processes=1, devices=1))
    assert read_release_config(two / "release")["steps"] == 6 and "skipped" not in texts[0][1]
    a, b = lines(one), lines(two)
    assert sorted(b) == [1, 2, 3, 4, 5, 6]
    for step in a:  # after three steps Adam has made more of the noise in the quantizer's terms than the rule allows
        for name in ("loss", "l2", "commitment", "grad_norm") if step <= 3 else ("l2",):
            np.testing.assert_allclose(a[step][name], b[step][name], rtol=2e-5, err_msg=f"{step} {name}")


@pytest.mark.long
def test_two_processes_fine_tune(config, tmp_path):
    save(Tokenizer(MODEL.build(rngs=nnx.Rngs(1)), name="t", family="titok"), tmp_path / "start")
    still = Optimizer(lr=0.0, end_lr=0.0, warmup=1)
    config = dataclasses.replace(config, init=str(tmp_path / "start"), optim=still, mesh=MeshConfig(data=1, fsdp=2))
    finish(start(train_command(tmp_path, config, tmp_path / "run"), processes=2, devices=1))
    a, b = load(tmp_path / "start").module, load(tmp_path / "run" / "release").module
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # the average of equal values rounds
    jax.tree.map(same, nnx.to_pure_dict(nnx.state(a)), nnx.to_pure_dict(nnx.state(b)))


@pytest.mark.long
def test_sigterm_to_one_process_stops_both_at_one_step(config, tmp_path):
    longer = dataclasses.replace(config, steps=100_000, save_every=100_000, picture_every=0, mesh=MeshConfig(data=2))
    running = start(train_command(tmp_path, longer, tmp_path / "run"), processes=2, devices=1)
    while all(p.poll() is None for p in running) and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    texts = finish(running)
    assert ["SIGTERM: saved step" in err for _, err in texts] == [True, False]
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [max(lines(tmp_path / "run"))]
