"""Compute what chosen layers of a function read, write and hand on."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax

from tlv_jax.layers.interventions import KernelCall, intervene
from tlv_jax.types import Array, PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("reads", "writes", "normed", "hands_on"),
    meta_fields=("read_axes", "written_axes"),
)
@dataclasses.dataclass(frozen=True)
class LayerCall:
    """What a layer reads and writes in one call. A pytree, whose axes are static.

    Attributes:
      reads: what the kernel is applied to, in the layout that the program has for it.
      writes: the convolution or product itself: before a bias, a norm or an activation function.
      normed: `writes` after a bias or norm that follows.
      hands_on: the last value of this shape that the layer alone feeds: after its bias, norm and
        activation function, before a pooling or a sum.
      read_axes: the axes of `reads` that hold channels: one, or those that a product sums over.
      written_axes: the axes of the three others that hold channels, likewise.
    """

    reads: Array
    writes: Array
    normed: Array
    hands_on: Array
    read_axes: tuple[int, ...]
    written_axes: tuple[int, ...]


def activations(
    fn: Callable[..., Any], params: PyTree, *inputs: Any, paths: Collection[str]
) -> dict[str, tuple[LayerCall, ...]]:
    """Computes what layers read and write when the function is called.

        network = tlv_jax.trace(model.apply, variables, images)
        watch = functools.partial(activations, network.fn, paths=["params/conv1"])
        (call,) = jax.jit(watch)(variables, images)["params/conv1"]

    Meant to be called within `jax.jit`, which drops what is not asked for. Outside, all of the
    function's operations are computed one by one. Derivatives are those of the operations: the
    rules of custom derivatives are not used.

    Args:
      fn: the function that was traced.
      params: as it was traced with, with arrays in it.
      *inputs: the function's other arguments, arrays. Their batch may have another size.
      paths: of convs and dense layers, as `trace` names them.

    Returns:
      The calls of each layer in order of execution, by path. Layers of blocks that `jax.lax.scan`
      loops over have a path, and so a call, for each step.

    Raises:
      OptionError: if a path is not that of a conv or dense layer that the function uses, or the
        layer runs in a branch, or in a loop other than a scan over stacked parameters.
      ParameterTreeError: if `params` holds no array.
    """
    seen: dict[str, list[LayerCall]] = {path: [] for path in paths}

    def see(path: str, call: KernelCall) -> Array:
        written = call.writes
        axes = call.read_axes, call.written_axes
        seen[path].append(LayerCall(call.reads, written, written, written, *axes))
        return written

    def handed_on(path: str, value: Array, normed: bool) -> None:
        last = seen[path][-1]
        before = value if normed else last.normed
        seen[path][-1] = dataclasses.replace(last, normed=before, hands_on=value)

    intervene(fn, params, *inputs, paths=paths, see=see, handed_on=handed_on)
    return {path: tuple(calls) for path, calls in seen.items()}
