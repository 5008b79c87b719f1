"""Call a function, and replace on the way what its layers write.

The walk that finds the layers is taken once more, with the arrays: each operation of the program is
computed as it is met, so the layers are those that `tlv_jax.trace` names.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tlv_jax.errors import OptionError
from tlv_jax.layers.jaxprs import computing, programs_within
from tlv_jax.layers.program import Walk, program_of, steps_of, walked
from tlv_jax.layers.values import Use, Value, use_of
from tlv_jax.types import Array, PyTree

# They run their program once, on their own operands.
CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)


HandedOn = Callable[[str, Array, bool], None]


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """One call of a conv or dense layer, before it is computed.

    Attributes:
      reads: what the kernel is applied to, in the layout that the program has for it.
      read_axes: the axes of `reads` that hold channels: one, or those that a product sums over.
      written_axes: the axes of what is written that hold channels, likewise.
      kernel: `[*spatial, I, O]`, as the operation has it: the function may change the parameter.
      params: of the operation: strides, padding and dilations of a convolution.
      compute: `kernel [*spatial, I, O] -> Array`, the convolution or product itself: before a bias,
        a norm or an activation function.
    """

    reads: Array
    read_axes: tuple[int, ...]
    written_axes: tuple[int, ...]
    kernel: Array
    params: Mapping[str, Any]
    compute: Callable[[Array], Array]

    @property
    def writes(self) -> Array:
        """What the layer writes with its own kernel."""
        return self.compute(self.kernel)


@dataclasses.dataclass(frozen=True)
class NormCall:
    """One call of a norm.

    Attributes:
      writes: the normalized values, scaled and shifted.
      axis: of `writes` that holds channels.
      epsilon: what is added to its running variance; None where none is found.
    """

    writes: Array
    axis: int
    epsilon: float | None


def intervene(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    paths: Collection[str],
    see: Callable[[str, KernelCall], Array],
    see_norm: Callable[[str, NormCall], Array] | None = None,
    handed_on: HandedOn | None = None,
) -> None:
    """Calls the function, and lets what layers write be replaced on the way.

    Args:
      fn: the function that was traced.
      params: as it was traced with, with arrays in it.
      *inputs: the function's other arguments.
      paths: of convs and dense layers.
      see: is called with each call of these layers and the layer's path, in order of execution.
        What it returns is written instead, in all but results of loops that are not the values
        that a loop carries: these are computed as the function has them.
      see_norm: the same for all norms, after their last operation.
      handed_on: is called with the path of a layer of `paths`, each value that the layer alone
        feeds, of the shape that it writes, and whether this is what it writes, after a bias or norm
        that follows. The last value is what it hands on: after its activation function, before a
        pooling or a sum.

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
                f"paths: the function uses no conv or dense layer {path!r}. Its layers are "
                f"{', '.join(kernels[:3])}, ...: pass paths of tlv_jax.trace(...).layers."
            )
    _Watch(found, paths, see, see_norm, handed_on).run(program.jaxpr, program.arguments)


class _Watch(Walk):
    """A walk that computes what it meets, but for programs that are walked and not run so.

    One step of a loop stands for all, and of branches only one is run. The operation around them is
    computed as a whole.
    """

    def __init__(
        self,
        found: Walk,
        paths: Collection[str],
        see: Callable[[str, KernelCall], Array],
        see_norm: Callable[[str, NormCall], Array] | None,
        handed_on: HandedOn | None,
    ) -> None:
        super().__init__(found.leaves, found.known.values(), found.stacked)
        self.whole, self.paths = found, paths
        self.see, self.see_norm, self.handed_on = see, see_norm, handed_on
        self.inside: str | None = None  # the outermost operation whose program is not run so
        self.completed: str | None = None  # the norm whose last operation this is
        self.shapes: dict[str, tuple[int, ...]] = {}  # of what layers with a kernel have written

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        if self.inside is not None:
            return super()._equation(equation, operands)
        entered = _runs_as_walked(equation, operands)
        self.inside = None if entered else equation.primitive.name
        self.completed = None
        results = super()._equation(equation, operands)
        self.inside = None
        if entered and all(value.array is not None for value in results):
            return results
        arrays = computing(equation)(*(value.array for value in operands))
        results = [
            value
            if entered and value.array is not None
            else dataclasses.replace(value, array=array)
            for value, array in zip(results, arrays, strict=True)
        ]
        if self.completed is not None and self.see_norm is not None:
            results = [self._normed(self.see_norm, self.completed, results[0])]
        with_parameters = self.completed is not None or self._is_shifted(operands)
        for value in results:
            self._hand_on(value, normed=with_parameters)
        return results

    def _is_shifted(self, operands: Sequence[Value]) -> bool:
        """Whether parameters of the channels, as of a bias, are added or multiplied."""
        given = [value for value in operands if not value.active]
        paths = {path for value in given for path, _ in value.leaves}
        return len(given) == len(operands) - 1 and any(self.leaves[path].size > 1 for path in paths)

    def _take_step(self, value: Value, step: int) -> Value:
        taken = super()._take_step(value, step)
        return taken if value.array is None else dataclasses.replace(taken, array=value.array[step])

    def _kernel(self, equation: Any, operands: list[Value]) -> Value | None:
        used = super()._kernel(equation, operands)
        if used is None or used.feeds[0] not in self.paths:
            return used
        (path,) = used.feeds
        if self.inside is not None:
            raise OptionError(
                f"Layer {path!r} runs inside `{self.inside}`, and what it reads there cannot be "
                "had outside. Only a scan over stacked parameters is taken apart: loop over "
                "those, or leave this layer out."
            )
        kernel = min(range(2), key=lambda side: operands[side].active)
        use = use_of(equation, kernel)
        assert use is not None  # the layer was found by it
        used = dataclasses.replace(used, array=self.see(path, _call(equation, operands, use)))
        self.shapes[path] = used.array.shape
        self._hand_on(used, normed=True)
        return used

    def _touch(self, equation: Any, operands: Sequence[Value]) -> Value:
        before = self.touches.total()
        value = super()._touch(equation, operands)
        if self.inside is None and self.touches.total() > before:
            (path,) = value.feeds
            calls = max(self.whole.calls[path], 1)
            if self.touches[path] % (self.whole.touches[path] // calls) == 0:
                self.completed = path
        return value

    def _normed(self, see_norm: Callable[[str, NormCall], Array], path: str, value: Value) -> Value:
        channels = self.layers[path].shape[0]
        labelled = () if value.labels is None else value.labels.shape
        axes = [axis for axis, size in enumerate(labelled) if size == channels]
        axes = axes or [axis for axis, size in enumerate(value.array.shape) if size == channels]
        variance = dict(self.whole.layers[path].vectors).get("var", "")
        call = NormCall(value.array, axes[-1], self.whole.epsilons.get(variance))
        return dataclasses.replace(value, array=see_norm(path, call))

    def _hand_on(self, value: Value, *, normed: bool) -> None:
        """Notes a value that one layer alone feeds."""
        if self.handed_on is None or len(value.feeds) != 1 or value.array is None:
            return
        (path,) = value.feeds
        if path not in self.shapes and len(self.whole.inputs[path]) == 1:
            (path,) = self.whole.inputs[path]  # of a norm: the layer before it
        alike = self.shapes.get(path) == value.array.shape
        if alike and jnp.issubdtype(value.array.dtype, jnp.floating):
            self.handed_on(path, value.array, normed)


def _call(equation: Any, operands: Sequence[Value], use: Use) -> KernelCall:
    kernel, activation = sorted(operands, key=lambda operand: operand.active)
    axes, stored = use.layer.axes, kernel.array

    def compute(new: Array) -> Array:
        turned = new.reshape([stored.shape[axis] for axis in axes]).transpose(np.argsort(axes))
        arrays = [
            turned.astype(stored.dtype) if each is kernel else each.array for each in operands
        ]
        (written,) = computing(equation)(*arrays)
        return written

    return KernelCall(
        reads=activation.array,
        read_axes=use.reads,
        written_axes=use.writes,
        kernel=stored.transpose(axes).reshape(use.layer.shape),
        params=equation.params,
        compute=compute,
    )


def _runs_as_walked(equation: Any, operands: Sequence[Value]) -> bool:
    """Whether the program within an operation, if there is one, runs as it is walked."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return steps_of(params, operands) == params["length"]
    return name in CALLS or not programs_within(params)
