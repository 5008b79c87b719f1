"""Compute what chosen layers of a function read and write.

The walk that finds the layers is taken once more, with the arrays: each operation of the program is
computed as it is met, so the layers are those that `tlv_jax.trace` names.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from tlv_jax.errors import OptionError
from tlv_jax.layers.jaxprs import computing, programs_within
from tlv_jax.layers.program import Walk, program_of, steps_of, walked
from tlv_jax.layers.values import Value, use_of
from tlv_jax.types import Array, PyTree

# They run their program once, on their own operands.
CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("reads", "writes"),
    meta_fields=("read_axes", "written_axes"),
)
@dataclasses.dataclass(frozen=True)
class LayerCall:
    """What a layer reads and writes in one call. A pytree, whose axes are static.

    Attributes:
      reads: what the kernel is applied to, in the layout that the program has for it.
      writes: the convolution or product itself: before a bias, a norm or an activation function.
      read_axes: the axes of `reads` that hold channels: one, or those that a product sums over.
      written_axes: the axes of `writes` that hold channels, likewise.
    """

    reads: Array
    writes: Array
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
    program = program_of(fn, params, *inputs)
    found = walked(program)
    kernels = [layer.path for layer in found.found() if layer.kind != "norm"]
    for path in paths:
        if path not in kernels:
            raise OptionError(
                f"activations: no conv or dense layer that the function uses has the path {path!r} "
                f"in paths. Its layers are {', '.join(kernels[:3])}, ...: pass paths of "
                "tlv_jax.trace(fn, params, *inputs).layers."
            )
    walk = _Watch(found, paths)
    walk.run(program.jaxpr, program.arguments)
    return {path: tuple(calls) for path, calls in walk.seen.items()}


class _Watch(Walk):
    """A walk that computes what it meets, but for programs that are walked and not run so.

    One step of a loop stands for all, and of branches only one is run. The operation around them is
    computed as a whole.
    """

    def __init__(self, found: Walk, paths: Collection[str]) -> None:
        super().__init__(found.leaves, found.known.values(), found.stacked)
        self.seen: dict[str, list[LayerCall]] = {path: [] for path in paths}
        self.inside: str | None = None  # the outermost operation whose program is not run so

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        if self.inside is not None:
            return super()._equation(equation, operands)
        entered = _runs_as_walked(equation, operands)
        self.inside = None if entered else equation.primitive.name
        results = super()._equation(equation, operands)
        self.inside = None
        if entered and all(value.array is not None for value in results):
            return results
        arrays = computing(equation)(*(value.array for value in operands))
        return [
            value
            if entered and value.array is not None
            else dataclasses.replace(value, array=array)
            for value, array in zip(results, arrays, strict=True)
        ]

    def _take_step(self, value: Value, step: int) -> Value:
        taken = super()._take_step(value, step)
        return taken if value.array is None else dataclasses.replace(taken, array=value.array[step])

    def _kernel(self, equation: Any, operands: list[Value]) -> Value | None:
        used = super()._kernel(equation, operands)
        if used is None or used.feeds[0] not in self.seen:
            return used
        (path,) = used.feeds
        kernel, activation = sorted(range(2), key=lambda side: operands[side].active)
        if self.inside is not None:
            raise OptionError(
                f"activations: layer {path!r} runs inside `{self.inside}`, and what it reads there "
                "cannot be had outside; of loops, only a scan over stacked parameters is taken "
                "apart. Leave it out of paths."
            )
        (written,) = computing(equation)(*(value.array for value in operands))
        use = use_of(equation, kernel)
        assert use is not None  # the layer was found by it
        call = LayerCall(operands[activation].array, written, use.reads, use.writes)
        self.seen[path].append(call)
        return dataclasses.replace(used, array=written)


def _runs_as_walked(equation: Any, operands: Sequence[Value]) -> bool:
    """Whether the program within an operation, if there is one, runs as it is walked."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return steps_of(params, operands) == params["length"]
    return name in CALLS or not programs_within(params)
