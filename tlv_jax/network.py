"""A network: a function, its parameters, and what tracing found in them."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.errors import (
    NonFiniteSourceError,
    OptionError,
    ParameterTreeError,
    UnknownOrderWarning,
)
from tlv_jax.layers.channels import ChannelGraph
from tlv_jax.layers.optimizers import refuse_optimizer_state, without_averages
from tlv_jax.layers.paths import array_leaves
from tlv_jax.layers.program import walk_program
from tlv_jax.layers.trees import find_layers, refuse_stacks
from tlv_jax.types import Layer, PyTree

NATURAL = "natural order of the paths, not known to be that of execution"


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network as `transfer` takes it. Made by `trace`.

    Attributes:
      fn: the traced function; None for a bare tree.
      params: the tree that was given, of any type.
      layers: convs, dense layers and norms in order of execution, with the graph between them.
      channels: which channels each layer reads and writes, by the layer's path; None for a bare
        tree.
      order: in words, how the order of the layers was found.
    """

    fn: Callable[..., Any] | None
    params: PyTree
    layers: tuple[Layer, ...]
    channels: ChannelGraph | None
    order: str = "order of execution, traced"

    def __repr__(self) -> str:
        kinds = [layer.kind for layer in self.layers]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("conv", "dense", "norm"))
        return f"Network({type(self.params).__name__} of {counts}; {self.order})"


def trace(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Network:
    """Finds the layers of any JAX function, the graph between them, and their channels.

        >>> tlv_jax.trace(apply, params, images[:1])
        Network(dict of 2 conv, 1 dense, 0 norm; order of execution, traced)

    Modules of the libraries are traced by

        network = tlv_jax.trace(model.apply, variables, images)          # Flax Linen
        network = tlv_jax.trace(lambda m, x: m(x), model, images)        # Flax NNX
        network = tlv_jax.trace(lambda m, x: jax.vmap(m)(x), model, images)  # Equinox

    Nothing is computed: an argument may be a `jax.ShapeDtypeStruct`, and one small image is enough.

    Args:
      fn: a function `fn(params, *inputs)`, for example a model's `apply`. Call it as for inference,
        so that norms use their running statistics.
      params: any pytree of parameters, with batch statistics if they are to be transferred. Leaves
        that are not arrays stay as they are.
      *inputs: the function's other arguments, batch axis included; the same holds for them.

    Returns:
      The network. Parameters that `jax.lax.scan` loops over are one layer for each step. Layers
      that the function does not use are not listed.

    Raises:
      ParameterTreeError: if `params` holds no array, or the function uses none of it as a kernel.
    """
    layers, channels = walk_program(fn, params, *inputs)
    return Network(fn, params, layers, channels)


def require_runnable(network: Network | PyTree, name: str) -> Callable[..., Any]:
    """Returns the function of a network, if it can be run with the network's parameters.

    Args:
      network: as a user passed it.
      name: of that argument, for messages.

    Raises:
      OptionError: if it is a bare tree, or a list of networks.
      ParameterTreeError: if its parameters are shapes without values, or traced ones.
    """
    if is_mixture(network):
        raise OptionError(
            f"{name}: expected one network, got a list of {len(network)}. Pass one of them."
        )
    if not isinstance(network, Network) or network.fn is None:
        raise OptionError(
            f"{name}: expected a traced network, got a bare tree, which computes nothing. Pass "
            "tlv_jax.trace(fn, params, images)."
        )
    for path, leaf in array_leaves(network.params, name=name).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ParameterTreeError(
                f"{name}: expected parameters with values, got a jax.ShapeDtypeStruct as leaf "
                f"{path!r}. Trace the network with arrays."
            )
        if isinstance(leaf, Tracer):
            raise ParameterTreeError(
                f"{name}: expected parameters with values, and leaf {path!r} has none inside of "
                "jax.jit and the like. Call this outside."
            )
    return network.fn


def require_finite(network: Network, name: str, *, unread: Iterable[Layer] = ()) -> None:
    """Checks the numbers that a network computes with.

    Args:
      network: that can be run.
      name: of that argument, for messages.
      unread: layers whose kernels and biases do not matter, so that they may be NaN.

    Raises:
      NonFiniteSourceError: if a number is NaN or infinite.
    """
    left_out = {path for each in unread for path in (each.weight, *dict(each.vectors).values())}
    for path, leaf in array_leaves(network.params, name=name).items():
        number = path not in left_out and jnp.issubdtype(leaf.dtype, jnp.floating)
        if number and not np.isfinite(leaf).all():
            raise NonFiniteSourceError(
                f"{name}: leaf {path!r} has values that are NaN or infinite, so what the network "
                "computes may be wrong. Load the checkpoint again."
            )


def params_of(network: Network | PyTree) -> PyTree:
    """The tree of a network, or the bare tree itself."""
    return network.params if isinstance(network, Network) else network


def as_networks(
    src: Network | PyTree, dst: Network | PyTree
) -> tuple[tuple[Network, ...], Network]:
    """The sources (several for a mixture) and the target. Bare trees become networks.

    Warns:
      UnknownOrderWarning: for a bare tree of no known architecture.
    """
    named = [*(("src", each) for each in (src if is_mixture(src) else [src])), ("dst", dst)]
    networks = [each if isinstance(each, Network) else _bare(each, name) for name, each in named]
    unknown = [
        name
        for (name, given), network in zip(named, networks, strict=True)
        # `transfer` hands on what it has warned of itself.
        if network is not given and network.order == NATURAL
    ]
    if unknown:
        warnings.warn(
            f"{' and '.join(unknown)}: a bare tree does not say in which order its layers are "
            "executed. The natural order of its paths is used (`layer2` before `layer10`), which "
            "may be wrong. Pass a network instead: tlv_jax.trace(fn, params, images).",
            UnknownOrderWarning,
            stacklevel=3,
        )
    return tuple(networks[:-1]), networks[-1]


def _bare(tree: PyTree, name: str) -> Network:
    """A bare tree as a network without channels."""
    found, family = find_layers(tree, name=name)
    leaves = array_leaves(tree, name=name)
    refuse_optimizer_state(tree, leaves, found, name=name)
    refuse_stacks(leaves, found, name=name)
    layers = without_averages(found)
    order = NATURAL if family is None else f"execution order of the {family} family"
    return Network(None, tree, layers, None, order)


def is_mixture(src: Any) -> TypeGuard[list[Network]]:
    """Whether `src` is a list of networks. Any other list is a tree.

    Raises:
      ParameterTreeError: for a list of networks and other things.
    """
    networks = [isinstance(entry, Network) for entry in src] if isinstance(src, list) else []
    if any(networks) and not all(networks):
        raise ParameterTreeError(
            "src: expected a list of networks alone, got other things among them. Trace each "
            "source: tlv_jax.trace(fn, params, images)."
        )
    return any(networks)
