"""Write what a run has trained, or what Orbax has saved, for other programs."""

import sys
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from tlv_jax import models
from train.commands.settings import Export
from train.commands.writing import check_out, write
from train.contents import classes_of
from train.errors import ConfigError
from train.modules import build_module, parse_arguments
from train.run_folder import is_run_folder, read_settings
from train.target_weights import read_weights

__all__ = ["export"]

COLLECTIONS = {"params", "batch_stats"}  # of an architecture
OTHERS = {"opt_state", "step"}  # fields of Flax's TrainState


def export(settings: Export) -> int:
    """Writes the weights of a run or a checkpoint; returns the exit status.

    Raises:
      ConfigError: if there are none, or the file cannot be written.
      TLVError: if they are of another architecture.
      OSError: if the file cannot be written.
    """
    if settings.what.is_file():
        raise ConfigError(
            f"{settings.what} is a file, expected the folder of a run or an Orbax checkpoint. "
            "tlv-jax convert reads files."
        )
    run = read_settings(settings.what) if is_run_folder(settings.what) else None
    name = settings.arch or (run["target"] if run else None)
    if name is None:
        raise ConfigError(
            f"{settings.what} is no run folder, so its architecture is not known. Name it with "
            "--arch, or give the folder of a run."
        )
    if ":" not in name:
        models.create(name)  # raises, and suggests close names
    check_out(settings.out, name)
    given = read_weights(settings.what, is_nnx=_is_nnx(name, settings.what, run))
    found: dict[str, Any] = unflatten_dict(dict(given.leaves), sep="/")
    # A module of one's own may have collections of any name.
    others = found.keys() & OTHERS if ":" in name else found.keys() - COLLECTIONS
    count = write(settings.out, name, {key: found[key] for key in found if key not in others})
    print(f"{settings.out}: {count} arrays of {name}, from {given.origin}")
    if others:
        print(f"left out, as no weights: {', '.join(sorted(others))}", file=sys.stderr)
    if given.statistics is not None:
        mean, deviation = given.statistics
        print(f"images are normalized by mean {mean} and standard deviation {deviation}")
    return 0


def _is_nnx(name: str, folder: Path, run: dict[str, Any] | None) -> bool:
    """Whether the weights are of an NNX module. A checkpoint of one's own keeps its paths."""
    if ":" not in name or run is None:
        return ":" in name
    module = build_module(
        name,
        parse_arguments(run["target_args"]),
        num_classes=classes_of(folder),
        image_size=run["image_size"],
        dtype=jnp.float32,
        key=jax.random.key(0),
    )
    return isinstance(module, nnx.Module)
