"""Data parallelism: the parameters on every device, each with its own part of the batch."""

import dataclasses
import sys

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speech.allocator import keep_freed_memory
from speech.batches import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a program that trains is asked about devices: its options have these among them."""

    devices: int = 1
    """Devices, of each process, that share the utterances of a batch; virtual ones on a CPU."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for training with several processes."""
    num_processes: int | None = None
    """How many processes there are. Clusters that JAX knows say so by themselves."""
    process_id: int | None = None
    """Which of them this is, from 0. Clusters that JAX knows say so by themselves."""

    def mesh(self) -> Mesh:
        """Returns the devices to train on.

        Raises:
          SystemExit: they are not there.
        """
        processes = self.coordinator, self.num_processes, self.process_id
        try:
            return make_mesh(self.devices, *processes)
        except ValueError as error:
            sys.exit(f"--devices: {error}")


def make_mesh(
    devices: int, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Mesh:
    """Joins the other processes, if there are any, and lines up `devices` devices of each.

    From here on this process keeps the memory that it frees: XLA's threads begin here.
    Nothing may have asked JAX for a device before.

    Raises:
      ValueError: a process has fewer devices, or it is not known which processes there are.
    """
    if devices < 1:
        raise ValueError(f"expected at least 1 device, got {devices}")
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", devices)  # Of other kinds there are as many as it is.
    processes = coordinator, num_processes, process_id
    if any(given is not None for given in processes):
        jax.distributed.initialize(*processes)
    chosen = []
    for process in range(jax.process_count()):
        found = jax.local_devices(process)
        if len(found) < devices:
            raise ValueError(f"expected {devices} devices in process {process}, got {len(found)}")
        chosen += found[:devices]
    return Mesh(np.array(chosen), ("data",))


def replicate(mesh: Mesh, *modules: nnx.Module) -> None:
    """Puts the parameters and all other state of the modules on every device."""
    state = nnx.state(modules)
    nnx.update(modules, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))


def take_home(module: nnx.Module) -> None:
    """Leaves a replicated module on the first device of this process alone."""
    state = jax.device_get(nnx.state(module))
    nnx.update(module, jax.device_put(state, jax.local_devices()[0]))


def own_part(batch: Batch) -> Batch:
    """Returns what this process feeds of a batch that every process has as a whole."""
    parts = [np.split(array, jax.process_count()) for array in batch]
    return Batch(*(part[jax.process_index()] for part in parts))


def spread(mesh: Mesh, own: Batch) -> Batch:
    """Puts this process's utterances on its devices, as many on each; with all others, a batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def place(own: np.ndarray) -> jax.Array:
        shape = (len(own) * jax.process_count(), *own.shape[1:])
        return jax.make_array_from_process_local_data(sharding, own, shape)

    return Batch(*map(place, own))


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Lets no process past before all have come there."""
    multihost_utils.sync_global_devices(where)
