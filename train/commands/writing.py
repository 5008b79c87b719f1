"""Write the network that a command has made."""

import importlib.util
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from importers.exporting import write_arrays, write_safetensors, write_torch
from tlv_jax.layers.paths import array_leaves
from train.errors import ConfigError

__all__ = ["check_out", "write"]

SUFFIXES = (".safetensors", ".pth", ".pt")


def check_out(out: Path | None, dst: str) -> None:
    """Checks that a target can be written to this file, before anything is computed.

    Args:
      out: the file; None for none.
      dst: the target, an architecture or MODULE:NAME.

    Raises:
      ConfigError: for another ending, a folder that is missing, or a file of torch's that cannot be
        made.
    """
    if out is None:
        return
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"out={str(out)!r}: expected a name that ends in {_or(SUFFIXES)}.")
    if out.suffix != ".safetensors" and ":" in dst:
        raise ConfigError(
            f"out={str(out)!r} is a file of torch's, which has no network like dst={dst!r}. Name a "
            ".safetensors file."
        )
    if out.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"out={str(out)!r} needs torch, which is not installed. Run pip install "
            "'tlv-jax[torch]', or name a .safetensors file, which torch can load too."
        )
    if out.is_dir() or not out.parent.is_dir():
        found = "is a folder" if out.is_dir() else f"lies in {out.parent}, which is no folder"
        raise ConfigError(f"out={str(out)!r} {found}. Name a file in a folder that is there.")


def write(out: Path, dst: str, variables: Any) -> int:
    """Writes a target; returns the number of its arrays.

    Args:
      out: the file, once `check_out` has passed it.
      dst: the target. An architecture is written with torchvision's names and layouts, a module of
        the user's own with the paths of its parameters, such as `params/conv1/kernel`.
      variables: of the target, as its network's `params`.

    Raises:
      OSError: if the file cannot be written.
    """
    leaves = array_leaves(variables, name="dst")
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items() if _is_weight(leaf)}
    if ":" in dst:
        write_arrays(out, arrays)
    else:
        save = write_safetensors if out.suffix == ".safetensors" else write_torch
        save(out, dst, variables["params"], variables.get("batch_stats"))
    return len(arrays)


def _is_weight(leaf: Any) -> bool:
    """Whether it is not a random key or its counter, such as those of an NNX module's dropout."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
