"""Weights of the target's own, from which it starts: of a file, of a run, or of Orbax."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

import importers
import tlv_jax
from tlv_jax import models
from tlv_jax.layers.paths import array_leaves, is_array
from train.checkpoints import read_arrays, read_best
from train.config import Config
from train.errors import ConfigError, name_some
from train.networks import fixed_size
from train.results import read_normalization
from train.run_folder import is_in_use, is_run_folder, read_settings
from train.starts import TRAININGS
from train.statistics import Statistics
from train.target import Target

__all__ = ["Given", "load_target_weights", "read_weights", "with_weights"]

Leaves = Mapping[str, Any]


class Given(NamedTuple):
    """Weights for a target.

    Attributes:
      leaves: arrays by their paths in the target's variables or module.
      origin: where they are from, in words.
      statistics: by which images for them are normalized; None if that is not known.
    """

    leaves: Leaves
    origin: str
    statistics: Statistics | None


def load_target_weights(config: Config, target: Target) -> Given:
    """Reads the weights that the settings name.

    Args:
      config: the settings, resolved, with `target_weights`.
      target: whose they are to be.

    Raises:
      ConfigError: as `read_weights`.
      TLVError: as `importers.load`, for a file of an architecture.
    """
    path = config.target_weights
    assert path is not None
    if path.is_file() and config.target in models.names():
        return _of_architecture(config, path)
    return read_weights(path, is_nnx=isinstance(target.network.params, nnx.Module))


def _of_architecture(config: Config, path: Path) -> Given:
    size = fixed_size(config.target, config)
    pretrained = importers.load(config.target, path, in_channels=3, image_size=size)
    statistics = Statistics(pretrained.preprocess.mean, pretrained.preprocess.std)
    return Given(array_leaves(pretrained.variables, name=str(path)), str(path), statistics)


def read_weights(path: Path, *, is_nnx: bool) -> Given:
    """Reads the weights of a run, of an Orbax checkpoint, or of a file by the paths in a module.

    Args:
      path: the folder of a run or of a checkpoint; or a file as `tlv-jax transfer` writes it for a
        module of the user's own.
      is_nnx: whether they are of an NNX module, which has no collections such as `params`.

    Raises:
      ConfigError: if there is nothing of that name, it cannot be read, or the run still goes on.
      TLVError: as `importers.read_state_dict`, or if there are no arrays.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder. Give another as weights.")
    if is_run_folder(path):
        return _of_run(path, is_nnx)
    tree = read_arrays(path) if path.is_dir() else importers.read_state_dict(path)
    return Given(_in_variables(array_leaves(tree, name=str(path)), is_nnx), str(path), None)


def _of_run(path: Path, is_nnx: bool) -> Given:
    """The weights that were best on the validation images, of a run's training but its twin."""
    if is_in_use(path):
        raise ConfigError(
            f"The run in {path} is still going on, so its best weights may change. Wait for its "
            "end, or stop it."
        )
    folder = path / "checkpoints"
    found = [name for name in TRAININGS if (folder / name).is_dir()]
    if not found:
        raise ConfigError(f"The run in {path} has no checkpoints yet. Give another.")
    state, step = read_best(folder / found[0], read_settings(path).get("best_by", Config.best_by))
    params = state["params"] if state.get("average") is None else state["average"]
    leaves = _in_variables(array_leaves(params, name=str(path)), is_nnx)
    if jax.tree.leaves(state["model_state"]):
        leaves = {**leaves, **array_leaves(state["model_state"], name=str(path))}
    origin = f"step {step} of {found[0]!r} in {path}"
    return Given(leaves, origin, read_normalization(path))


def _in_variables(leaves: Leaves, is_nnx: bool) -> Leaves:
    """The leaves by their paths in Linen's variables, if they are of the parameters alone."""
    if is_nnx or any(path.startswith("params/") for path in leaves):
        return leaves
    return {f"params/{path}": leaf for path, leaf in leaves.items()}


def with_weights(name: str, target: Target, given: Given, classes: int) -> Target:
    """The target with the weights in place of its own initialization.

    A head for another number of classes is left out. So are running statistics, if the weights
    have none at all.

    Args:
      name: of the target, for messages.
      target: with its own initialization.
      given: the weights.
      classes: number of classes.

    Raises:
      ConfigError: if they are of another network, or not finite.

    Warns:
      FreshHeadWarning: if the head is left out.
      UserWarning: if the running statistics are.
    """
    own = array_leaves(target.network.params, name="target")
    needed, statistics = _needed(target, own)
    if bare := bool(statistics) and statistics.isdisjoint(given.leaves):
        needed -= statistics
    leaves = {path: np.asarray(given.leaves[path]) for path in own if path in given.leaves}
    heads = _other_heads(target.network, own, leaves, classes)
    needed -= set(heads)
    misfits = [path for path in own if path in needed and not _fits(leaves.get(path), own[path])]
    misfits += [path for path in given.leaves if path not in own]
    if misfits:
        found = [
            f"{path} ({_described(given.leaves.get(path))} there, {_described(own.get(path))} in "
            "the target)"
            for path in misfits
        ]
        raise ConfigError(
            f"The weights of {given.origin} are not those of target={name!r}: {name_some(found)}. "
            "Give weights of the same network."
        )
    _refuse_unless_finite(given.origin, leaves)
    if heads:
        warnings.warn(
            f"The weights of {given.origin} are for another number of classes than {classes}: "
            f"{name_some(heads)} keep their own initialization and need training.",
            importers.FreshHeadWarning,
            stacklevel=2,
        )
    if bare:
        warnings.warn(
            f"The weights of {given.origin} are without running statistics, such as "
            f"{min(statistics)}, which stay as they are initialized. Training renews them.",
            stacklevel=2,
        )
    return target._replace(network=_replaced(target, own, {path: leaves[path] for path in needed}))


def _needed(target: Target, own: Leaves) -> tuple[set[str], set[str]]:
    """Paths of all leaves but random keys and their counts; and which of these are not trained."""
    params, state = target.split(target.network.params)
    kept = set(array_leaves(state, name="target")) if jax.tree.leaves(state) else set()
    if not isinstance(target.network.params, nnx.Module):
        return set(own), kept
    return set(array_leaves(params, name="target")) | kept, kept


def _other_heads(network: tlv_jax.Network, own: Leaves, leaves: Leaves, classes: int) -> list[str]:
    """Paths of leaves that differ in their number of outputs alone, which is that of classes.

    They are in the last layer, or in an auxiliary head, which is no layer of the traced network.
    """
    inner = network.layers[:-1]
    others = {path for layer in inner for path in (layer.weight, *dict(layer.vectors).values())}

    def is_head(path: str) -> bool:
        there, here = leaves[path].shape, own[path].shape
        return len(there) == len(here) and there != here == (*there[:-1], classes)

    return [path for path in leaves if path not in others and is_head(path)]


def _fits(leaf: Any, own: Any) -> bool:
    if leaf is None or own is None or leaf.shape != own.shape:
        return False
    return jnp.issubdtype(leaf.dtype, jnp.floating) == jnp.issubdtype(own.dtype, jnp.floating)


def _described(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _refuse_unless_finite(origin: str, leaves: Leaves) -> None:
    for path, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise ConfigError(
                f"The weights of {origin} have NaN or infinite values in {path}. Give others."
            )


def _replaced(target: Target, own: Leaves, chosen: Leaves) -> tlv_jax.Network:
    """The target's network with other leaves, in the order in which `own` lists them."""
    leaves, structure = jax.tree.flatten(target.network.params)
    paths = iter(own)

    def choose(leaf: Any) -> Any:
        path = next(paths)
        return jnp.asarray(chosen[path], leaf.dtype) if path in chosen else leaf

    new = structure.unflatten([choose(leaf) if is_array(leaf) else leaf for leaf in leaves])
    return dataclasses.replace(target.network, params=new)
