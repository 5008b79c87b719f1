"""The devices of a run, and how arrays are placed on them.

With several hosts every process runs the same program on the same data; only the first one writes
and prints.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.config import Config, HostOptions
from train.data import LabelledImages
from train.errors import ConfigError

__all__ = [
    "Devices",
    "ask_first",
    "find_devices",
    "is_first_process",
    "join_hosts",
    "place",
    "place_images",
    "same_everywhere",
]

LONGEST_TEXT = 8192  # bytes, above the longest path


@dataclasses.dataclass(frozen=True)
class Devices:
    """Data parallelism over all devices.

    Attributes:
      replicated: a copy on every device: parameters, optimizer state.
      rows: split over the devices along the first axis: the rows of a batch, images in memory.
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


def place_images(images: LabelledImages, devices: Devices) -> LabelledImages:
    """Divides images over the devices, and places the labels on each.

    Black images fill up the last device's share. They are beyond the last label, so no batch has
    them. A program that takes the rows of a batch sends that batch between devices, nothing more.
    """
    missing = -len(images) % devices.rows.num_devices
    filled = images.images
    if missing:
        filled = np.pad(filled, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return LabelledImages(place(filled, devices.rows), place(images.labels, devices.replicated))


def ask_first(make: Callable[[], str]) -> str:
    """Returns, on all processes, the text that the first one makes.

    Raises:
      ConfigError: on all processes, if `make` raises it. The others would wait forever else.
    """
    if jax.process_count() == 1:
        return make()
    text, failed = "", False
    if is_first_process():
        try:
            text = make()
        except ConfigError as error:
            text, failed = str(error), True
    sent = bytes([failed]) + text.encode()[:LONGEST_TEXT].ljust(LONGEST_TEXT)
    failure, *answer = multihost_utils.broadcast_one_to_all(np.frombuffer(sent, np.uint8)).tolist()
    text = bytes(answer).decode(errors="ignore").rstrip()
    if failure:
        raise ConfigError(text)
    return text


def same_everywhere(data: bytes) -> bool:
    """Whether all processes have the same bytes, of which there must be equally many."""
    if jax.process_count() == 1:
        return True
    own = np.frombuffer(data, np.uint8)
    return bool((multihost_utils.process_allgather(own) == own).all())


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
