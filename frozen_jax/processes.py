"""Several processes as one run: joining them, and what only the first of them does. Next: `main.py`.

Every process runs the same program on its own devices; a computation over the mesh is one over all of them. Files and
messages to the user come from the first process alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from frozen_jax.errors import UserError
from frozen_jax.preemption import Stopped
from frozen_jax.sharding import AnyMesh, replicated

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
MULTISLICE = "MEGASCALE_COORDINATOR_ADDRESS"  # set where TPU slices are joined

LOST_AFTER_S = 60
"""A process that has not been heard of for so long ends all others, wherever they wait for it."""
LOST = 42
"""Exit status of a process that ended because another one of its run was gone: to be started again."""
VOTE_EVERY = 4
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")  # all else comes from the others

Tree = TypeVar("Tree")


class Vote:
    """Whether any process says yes, learnt by all at the same step and without waiting for each other.

    A count over all devices is begun at every VOTE_EVERY-th step and read at the one after, when it is long done.
    """

    def __init__(self, mesh: AnyMesh) -> None:
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._count = jax.jit(jnp.sum, out_shardings=replicated(mesh))
        self._begun: jax.Array | None = None

    def any_said(self, step: int, yes: bool) -> bool:
        """Returns whether a process said yes up to VOTE_EVERY steps ago; one process alone has its own answer at once.

        All processes must ask at the same steps.
        """
        if jax.process_count() == 1:
            return yes
        if step % VOTE_EVERY:
            return False
        before = self._begun
        mine = np.full(jax.local_device_count(), yes, np.int32)
        votes = jax.make_array_from_process_local_data(self._sharding, mine, (jax.device_count(),))
        self._begun = self._count(votes)
        return before is not None and bool(jax.device_get(before))


def join_processes(*, wanted: bool) -> None:
    """Connects this process to the others of its run, if it has any; call it before anything asks for devices.

    On Cloud TPU, GKE and Slurm JAX finds the others by itself. Elsewhere three variables of the environment say where
    the first process listens, how many there are, and which one this is: JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).

    Args:
        wanted: `--distributed`; without it, and without an address in the environment, this process is alone.

    Raises:
        UserError: nothing says where the others are, or a slice of several machines was started without `wanted`.
    """
    if wanted or COORDINATOR in os.environ or MULTISLICE in os.environ:
        count, index = _read_number(COUNT), _read_number(INDEX)
        jax.config.update("jax_enable_preemption_service", False)  # its handler would take SIGTERM from ours
        try:
            jax.distributed.initialize(num_processes=count, process_id=index, heartbeat_timeout_seconds=LOST_AFTER_S)
        except ValueError as error:  # what the surroundings do not tell
            raise UserError(
                f"JAX cannot find the other processes of this run: {error} It finds them by itself on Cloud TPU, GKE "
                f"and Slurm; elsewhere set {COORDINATOR}, {COUNT} and {INDEX}, as launch/local_multihost.sh does, or "
                "start a single process, without --distributed"
            ) from error
    elif jax.process_count() > 1:
        # A TPU slice connects its machines by itself; checkpoints and preemption need JAX's own service besides.
        raise UserError(
            f"this is one of {jax.process_count()} machines of a slice, and they save checkpoints together: "
            "start the same command on all of them with --distributed"
        )


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Ends one of several processes at once if the body raises; a single process raises as always.

    At a normal end JAX waits for the other processes, which in the midst of a computation wait for this one.
    """
    try:
        yield
    except Stopped:  # all end together
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        status = 1
        if isinstance(error, UserError) and "--traceback" not in sys.argv:
            print(f"error: {error}", file=sys.stderr)
        elif _comes_from_others(error):
            reason = str(error).splitlines()[0]
            print(
                f"error: another process of this run is gone, or cannot be reached ({reason}): start the same command "
                f"again on all machines, and it goes on from its newest checkpoint; exit status {LOST}",
                file=sys.stderr,
            )
            status = LOST
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _comes_from_others(error: BaseException) -> bool:
    """Whether a computation over all processes failed; one that Python begins itself is a ValueError, on a CPU."""
    if is_lost_wait(error):
        return True
    if isinstance(error, ValueError):
        return str(error).startswith("UNKNOWN: Gloo")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN_FAULTS)


def is_lost_wait(error: BaseException) -> bool:
    """Whether Orbax has waited in vain for the other processes; its own error has no number, a file system's has."""
    return isinstance(error, TimeoutError) and error.errno is None and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here; `name` says where, if one does not."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch_whole(tree: Tree) -> Tree:
    """Returns arrays that spread over several processes as whole arrays on this host; every process must call it."""
    if jax.process_count() == 1:
        return tree
    fetched: Any = multihost_utils.process_allgather(tree, tiled=True)
    whole: Tree = fetched
    return whole


def gather_bytes(own: bytes) -> list[bytes]:
    """Returns what each process gives, in the order of the processes; every process must call it."""
    if jax.process_count() == 1:
        return [own]
    sizes = multihost_utils.process_allgather(np.array(len(own), np.int32)).tolist()
    room = 1 << max(sizes).bit_length()  # few sizes: each is compiled once
    padded = np.frombuffer(own.ljust(room, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def deal(pieces: Sequence[int], compute: Callable[[int], bytes]) -> Iterator[bytes]:
    """Computes pieces of work, each by one process in turn; yields the results of all, in order, in every process.

    A piece is computed as it would be by a single process, so the results are the same to the last bit.
    """
    index, count = jax.process_index(), jax.process_count()
    for start in range(0, len(pieces), count):
        turn = pieces[start : start + count]
        own = compute(turn[index]) if index < len(turn) else b""
        yield from gather_bytes(own)[: len(turn)]


def _read_number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}; it must be a whole number, 0 or more")
    return int(text)
