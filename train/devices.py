"""Which devices a run uses, and how arrays are laid over them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.config import Config, ConfigError

__all__ = ["Devices", "find_devices"]


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


def find_devices(config: Config) -> Devices:
    """Lays a one-dimensional mesh over all devices.

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
