"""The devices of a run, and how arrays are placed on them.

With several hosts every process runs the same program on the same data; only the first one writes
and prints.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.config import Config, HostOptions
from train.data import LabelledImages
from train.errors import ConfigError, HostError

__all__ = [
    "Devices",
    "ask_first",
    "dtype_of",
    "fail_together",
    "find_devices",
    "is_first_process",
    "join_hosts",
    "place",
    "place_images",
    "same_everywhere",
    "shardings_of",
]

LONGEST_TEXT = 8192  # bytes, above the longest path
# Elements. Most arrays are norms and biases below it, but hold less than a hundredth of the memory:
# dividing them would save nothing, and make each step wait for as many more messages.
SMALLEST_DIVIDED = 4096


@dataclasses.dataclass(frozen=True)
class Devices:
    """Data parallelism over all devices.

    Attributes:
      replicated: a copy on every device.
      rows: split over the devices along the first axis: the rows of a batch, images in memory.
      dtype: of the computation.
      shard_params: whether parameters and optimizer state are divided as well, see `shardings_of`.
    """

    replicated: NamedSharding
    rows: NamedSharding
    dtype: jnp.dtype
    shard_params: bool = False

    def gathered(self, tree: Any) -> Any:
        """Puts arrays that are divided over the devices together, on each, within a program."""
        return jax.lax.with_sharding_constraint(tree, self.replicated)


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
        given = ", ".join(f"hosts.{name}={value}" for name, value in vars(options).items())
        raise ConfigError(
            f"{given}: cannot join the other processes ({error}). Give coordinator, count and rank "
            "where they are not found."
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


def shardings_of(state: Any, devices: Devices) -> Any:
    """Where each array of a training state is placed; arrays of one shape are placed alike.

    With `devices.shard_params`, each is divided along the largest axis that the number of devices
    divides. A step gathers parameters while it uses them. Small arrays, and those without such an
    axis, are copied to every device.

    Args:
      state: a tree of arrays or of their shapes.
      devices: of the run.
    """
    count = devices.rows.num_devices

    def place_of(array: jax.Array) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size % count == 0]
        if not devices.shard_params or not axes or math.prod(array.shape) < SMALLEST_DIVIDED:
            return devices.replicated
        largest = max(axes, key=array.shape.__getitem__)
        spec = PartitionSpec(*[None] * largest, *devices.rows.spec)
        return NamedSharding(devices.rows.mesh, spec)

    return jax.tree.map(place_of, state)


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


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Stops all processes if one of them fails inside, where nothing may wait for the others.

    Those that go on would wait forever for one that stops.

    Raises:
      HostError: in those that did not fail, with the error of the first that did.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        _texts_of_all(str(error) or repr(error))
        raise
    for rank, failure in enumerate(_texts_of_all("")):
        if failure:
            raise HostError(f"Host {rank} failed, so this one stops: {failure}")


def ask_first(make: Callable[[], str]) -> str:
    """Returns, on all processes, the text that the first one makes.

    Raises:
      HostError: on the others, if `make` raises an error.
    """
    if jax.process_count() == 1:
        return make()
    with fail_together():
        text = make() if is_first_process() else ""
    return _texts_of_all(text)[0]


def of_first_process(tree: Any) -> Any:
    """Returns, on all processes, the numbers that the first one has. Waits for all of them.

    Hosts may round differently. Leaves that are no arrays of floating point stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    floating = [
        number
        for number, leaf in enumerate(leaves)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    received = multihost_utils.broadcast_one_to_all([leaves[number] for number in floating])
    for number, leaf in zip(floating, received, strict=True):
        leaves[number] = leaf
    return structure.unflatten(leaves)


def same_everywhere(text: str) -> bool:
    """Whether all processes have the same text."""
    return len(set(_texts_of_all(text))) == 1


def _texts_of_all(text: str) -> list[str]:
    """The text of each process, cut to `LONGEST_TEXT`. Waits for all of them."""
    sent = np.frombuffer(text.encode()[:LONGEST_TEXT].ljust(LONGEST_TEXT), np.uint8)
    received = multihost_utils.process_allgather(sent)
    return [row.tobytes().decode(errors="ignore").rstrip() for row in np.asarray(received)]


def find_devices(config: Config) -> Devices:
    """Puts all devices into a one-dimensional mesh.

    Raises:
      ConfigError: if the batch cannot be split evenly over them.

    Warns:
      UserWarning: if parameters are to be divided, and there is one device.
    """
    count = jax.device_count()
    if config.batch_size % count:
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be split over {count} devices; take a multiple."
        )
    if config.shard_params and count == 1:
        warnings.warn("shard_params=True does nothing: there is only one device.", stacklevel=2)
    # Auto, as jax.make_mesh's default differs between versions of JAX.
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    return Devices(
        replicated=NamedSharding(mesh, PartitionSpec()),
        rows=NamedSharding(mesh, PartitionSpec("data")),
        dtype=dtype_of(config),
        shard_params=config.shard_params,
    )


def dtype_of(config: Config) -> jnp.dtype:
    """Returns the type of the computation, which `auto` leaves to the devices."""
    precision = config.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)
