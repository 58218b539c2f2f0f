"""Where arrays live: processes, meshes, and the sharding of every leaf of a state. Decided here, never inside a model.

    with processes():                      # one process stays alone; several find each other
        mesh = make_mesh(data, fsdp)       # over the devices of all of them

Axes are Auto: under jax's default, Explicit, the codebook gather and two-axis patchify raise.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.errors import InputError

AXES = ("data", "fsdp")
SMALLEST = 2**14  # values; smaller arrays are replicated
END_TIMEOUT = 60  # seconds that a process which failed waits at its end before all others are ended too
VARIABLES = ("ZOO_COORDINATOR", "ZOO_PROCESSES", "ZOO_PROCESS")


@contextlib.contextmanager
def processes(timeout: int = 300) -> Iterator[None]:
    """Joins this process to the others of a run; inside, `jax.devices()` are those of all of them.

    The environment says who they are: ZOO_COORDINATOR (host:port of process 0, any free port), ZOO_PROCESSES (how many)
    and ZOO_PROCESS (0, 1, ...); without these, what jax detects: a TPU pod, SLURM with more than one task, Open MPI.
    One process stays alone. Enter it before anything touches a device.

    Args:
        timeout: seconds to wait for the others.

    Raises:
        InputError: settings that are half given or wrong, or processes that do not come.
    """
    given = any(os.environ.get(name) for name in VARIABLES)
    found = _given(os.environ) if given else _detected(timeout)
    if found is None:
        yield
        return
    address, count, process = found
    _meet(address, count, process, timeout)
    jax.distributed.initialize(
        address,
        count,
        process,
        cluster_detection_method="deactivate" if given else None,  # it may give this process one device of several
        initialization_timeout=timeout,
        shutdown_timeout_seconds=END_TIMEOUT,
    )
    try:
        yield
    except SystemExit:  # after SIGTERM
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()  # waits for the others; after an error nobody may wait for this process


def _given(environ: Any) -> tuple[str, int, int] | None:
    """(address, count, process) of VARIABLES, at least one of which is set, or None where one process is asked for."""
    values = {name: environ[name] for name in VARIABLES if environ.get(name)}
    hint = "give all three: ZOO_COORDINATOR=host:port ZOO_PROCESSES=N ZOO_PROCESS=0..N-1"
    if missing := [name for name in VARIABLES if name not in values]:
        raise InputError(f"{', '.join(values)} set without {', '.join(missing)}; {hint}")
    address, count, process = values.values()
    if not (re.fullmatch(r"\S+:\d+", address) and count.isdecimal() and process.isdecimal()):
        raise InputError(f"{' '.join(f'{k}={v}' for k, v in values.items())}; {hint}")
    if not int(process) < int(count):
        raise InputError(f"ZOO_PROCESS={process} of ZOO_PROCESSES={count}; {hint}")
    return (address, int(count), int(process)) if int(count) > 1 else None


def _detected(timeout: int) -> tuple[str, int, int] | None:
    """(address, count, process) of the cluster that jax finds itself in, or None where this process is alone."""
    from jax._src.clusters import ClusterEnv  # jax has no public way to look without starting a coordinator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inside Kubernetes it asks for a package
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    address, count, process, _ = found
    return (address, count, process) if address and count and process is not None and count > 1 else None


def _meet(address: str, count: int, process: int, timeout: float) -> None:
    """Returns once all processes are there: process 0 listens on `address`, the others say their number.

    jax's own start aborts the program where one is missing, without saying which.
    """
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + timeout
    if process == 0:
        return _gather(int(port), count, end, timeout)
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as link:
                link.sendall(f"{process}/{count}\n".encode())
                if link.recv(1) == b"!":  # and not its own word: a port of its own may be given to it
                    return
        except OSError:  # not there yet, or it has given up
            pass
        time.sleep(0.2)
    raise InputError(
        f"process {process}: process 0 was not ready at {address} within {timeout} s; start all {count} processes "
        "and check the address and the firewall"
    )


def _gather(port: int, count: int, end: float, timeout: float) -> None:
    waiting = {f"{i}/{count}".encode(): i for i in range(1, count)}
    links = []
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=socket.has_dualstack_ipv6())
    except OSError as error:
        raise InputError(f"process 0 cannot listen on port {port} ({error.strerror}); give another port") from error
    with server:
        while waiting:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
            except TimeoutError as error:
                missing = ", ".join(str(i) for i in waiting.values())
                raise InputError(
                    f"process 0: of {count} processes these did not come to port {port} within {timeout} s: {missing}; "
                    "start them with the same address and count"
                ) from error
            if waiting.pop(_hello(link), None) is not None:
                links.append(link)
    for link in links:
        link.sendall(b"!")
        link.close()


def _hello(link: socket.socket) -> bytes:
    """The line that a process sends, or nothing from a stranger."""
    link.settimeout(2)
    try:
        return link.makefile("rb").readline(64).strip()
    except OSError:
        return b""


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A (data, fsdp) mesh over the first data * fsdp devices; -1: as many as there are.

    Of several processes each gives equally many devices, and these stand side by side: a process's rows of a batch are
    consecutive, and fsdp stays inside a process where it fits.

    Raises:
        InputError: more devices than there are, or a size that does not divide them.
    """
    devices = jax.devices()
    if fsdp < 1 or (data < 1 and data != -1):
        raise InputError(f"mesh {data} x {fsdp}; give positive sizes, or -1 for data")
    if data == -1:
        data = len(devices) // fsdp
    if not 1 <= data * fsdp <= len(devices):
        raise InputError(
            f"mesh of {max(data, 1)} x {fsdp} devices; there are {len(devices)}: lower mesh.data or mesh.fsdp"
        )
    if (hosts := jax.process_count()) == 1:
        return jax.make_mesh((data, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices[: data * fsdp])
    each, rest = divmod(data * fsdp, hosts)
    if rest:
        raise InputError(f"mesh of {data} x {fsdp} devices over {hosts} processes; give a multiple of {hosts}")
    chosen = [[d for d in devices if d.process_index == p][:each] for p in range(hosts)]
    return Mesh(np.array(chosen).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def own_device() -> Mesh:
    """A 1 x 1 mesh of this process's first device."""
    return jax.make_mesh((1, 1), AXES, (AxisType.Auto,) * 2, devices=jax.local_devices()[:1])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Every leaf whole on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def fsdp(mesh: Mesh, tree: Any) -> Any:
    """Large leaves split over the fsdp axis along their largest divisible axis; the others replicated.

    Axis 0 of an array of three or more axes is a layer or a row of a kernel that a scan slices: it stays whole.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [a for a in range(len(leaf.shape) > 2, len(leaf.shape)) if leaf.shape[a] % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < SMALLEST:
            return NamedSharding(mesh, PartitionSpec())
        widest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * widest, "fsdp"))

    return jax.tree.map(place, tree)


def by_rules(mesh: Mesh, tree: Any, rules: Sequence[tuple[str, PartitionSpec]]) -> Any:
    """The spec of the first regular expression that is found in a leaf's path ("a/b/c"); replicated if none is."""

    def place(path: Any, _: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a global batch, as arrays sharded along axis 0."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings: what a checkpoint restores to."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
