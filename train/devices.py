"""The devices of a run, and how arrays are placed on them.

With several hosts every process runs the same program on the same data; only the first one writes
and prints.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.config import Config, HostOptions
from train.errors import ConfigError

__all__ = ["Devices", "find_devices", "is_first_process", "join_hosts", "place", "shared_text"]

LONGEST_TEXT = 1024  # bytes


@dataclasses.dataclass(frozen=True)
class Devices:
    """Data parallelism over all devices.

    Attributes:
      replicated: a copy on every device: parameters, optimizer state, images in memory.
      rows: split over the devices along the first axis: the rows of a batch.
      dtype: of the computation.
    """

    replicated: NamedSharding
    rows: NamedSharding
    dtype: jnp.dtype


def join_hosts(options: HostOptions) -> None:
    """Joins the other processes if asked to. Call it before anything else touches a device.

    Raises:
      ConfigError: if the others cannot be found or reached.
    """
    if not options.join or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(options.coordinator, options.count, options.rank)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"hosts={options}: cannot join the other processes ({error}). Give coordinator, count "
            "and rank where they are not found."
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Places arrays, of which every process has all values, on the devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place_one(array: Any) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place_one, tree)


def shared_text(text: str) -> str:
    """The first process's text, on all of them."""
    if jax.process_count() == 1:
        return text
    sent = np.frombuffer(text.encode().ljust(LONGEST_TEXT), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))).decode().rstrip()


def find_devices(config: Config) -> Devices:
    """Puts all devices into a one-dimensional mesh.

    Raises:
      ConfigError: if the batch cannot be split evenly over them.
    """
    count = jax.device_count()
    if config.batch_size % count:
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be split over {count} devices; take a multiple."
        )
    # Auto, as jax.make_mesh's default differs between versions of JAX.
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    on_cpu = jax.default_backend() == "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "float32" if on_cpu else "bfloat16"
    return Devices(
        replicated=NamedSharding(mesh, PartitionSpec()),
        rows=NamedSharding(mesh, PartitionSpec("data")),
        dtype=jnp.dtype(precision),
    )
