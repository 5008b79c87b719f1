"""Walk a function's program (its jaxpr) and gather its layers, their graph and their channels.

A parameter is followed from the function's arguments through casts, transposes and the like to the
operation that uses it. A convolution or matrix product makes it a kernel; the operation's dimension
numbers say what its axes mean. Arithmetic with an activation makes it a scale or a bias. Calls
(`jit`, `remat`, custom derivatives) are entered, loops of `jax.lax.scan` unrolled.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.channels import ChannelGraph, ChannelLabels
from tlv_jax.layers.paths import array_leaves, is_array, leaf_path, split_path
from tlv_jax.layers.trees import find_layers
from tlv_jax.layers.values import (
    Kernel,
    Value,
    View,
    axes_after,
    conv_kernel,
    dot_kernel,
    feeds_of,
)
from tlv_jax.types import Layer, PyTree


def walk_program(
    fn: Callable[..., Any], params: PyTree, *inputs: Any
) -> tuple[tuple[Layer, ...], ChannelGraph]:
    """Finds the layers of a function in the order of their first use, and their channels.

    Nothing is computed. See `tlv_jax.trace`.
    """
    named = array_leaves(params, name="params")
    given = [leaf for leaf in jax.tree.leaves(inputs) if is_array(leaf)]

    def call(arrays: Sequence[Any], given: Sequence[Any]) -> Any:
        return fn(_with_arrays(params, arrays), *_with_arrays(inputs, given))

    closed = jax.make_jaxpr(call)(list(named.values()), given)
    views = [
        Value(leaves=(path,), view=View(path, tuple(range(len(leaf.shape)))))
        for path, leaf in named.items()
    ]
    activations = [Value(active=True)] * (len(closed.jaxpr.invars) - len(views))
    walk = _Walk(named, find_layers(params, name="params")[0], {})
    walk.run(closed.jaxpr, [*views, *activations])
    if walk.taken_off:
        # Walk again with the layers of one step: a stacked scale does not look like a scale.
        shapes = _one_step(params, walk.taken_off)
        walk = _Walk(named, find_layers(shapes, name="params")[0], walk.taken_off)
        walk.run(closed.jaxpr, [*views, *activations])
    if not any(layer.kind != "norm" for layer in walk.layers.values()):
        raise ParameterTreeError(
            f"trace: the function convolves or multiplies with none of the {len(named)} arrays in "
            f"params ({', '.join(list(named)[:3])}, ...). Pass the parameters as the function's "
            "first argument, not inside a closure."
        )
    graph = walk.channels.graph(walk.layers)
    layers = (
        dataclasses.replace(layer, size=graph[path].size) if path in graph else layer
        for path, layer in walk.layers.items()
    )
    return tuple(layers), graph


def _with_arrays(tree: PyTree, arrays: Iterable[Any]) -> PyTree:
    """The tree with other arrays; leaves that are none stay."""
    remaining = iter(arrays)
    return jax.tree.map(lambda leaf: next(remaining) if is_array(leaf) else leaf, tree)


def _one_step(params: PyTree, taken_off: Mapping[str, int]) -> PyTree:
    """The tree as shapes, without the leading axes that loops run over."""

    def shape(keys: tuple[Any, ...], leaf: Any) -> Any:
        axes = taken_off.get(leaf_path(keys), 0)
        return jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype) if axes else leaf

    return jax.tree_util.tree_map_with_path(shape, params)


class _Walk:
    """Walks a jaxpr and gathers the layers that it meets in `layers`, by path."""

    def __init__(
        self, leaves: Mapping[str, Any], known: Iterable[Layer], stacked: Mapping[str, int]
    ) -> None:
        """Takes the layers of one loop step, and how often each leaf is stacked."""
        self.leaves = leaves
        self.stacked = stacked
        self.taken_off: dict[str, int] = {}
        self.known = {layer.weight: layer for layer in known}
        self.norms = {
            path: (layer, path == layer.weight)
            for layer in known
            for path in (layer.weight, *(path for _, path in layer.vectors))
            if layer.kind == "norm"
        }
        self.layers: dict[str, Layer] = {}
        self.channels = ChannelLabels()
        self.scaled: set[str] = set()
        self.repeats = 1

    def run(self, jaxpr: core.Jaxpr, arguments: Sequence[Value]) -> list[Value]:
        """Follows the arguments through the program and returns its results."""
        environment = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            return Value() if isinstance(atom, core.Literal) else environment.get(atom, Value())

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            environment.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        name = equation.primitive.name
        count = len(equation.outvars)
        if name == "scan":
            return self._scan(equation, operands)
        if name == "while":
            return self._while(equation, operands)
        if name == "cond":
            branches = [
                self.run(branch.jaxpr, operands[1:]) for branch in equation.params["branches"]
            ]
            return [_merge(values) for values in zip(*branches, strict=True)]
        inner = _inner_jaxpr(equation)
        if inner is not None and len(inner.invars) == len(operands):
            return self.run(inner, operands)
        if name in ("conv_general_dilated", "dot_general"):
            used = self._kernel(equation, operands)
            if used is not None:
                return [used]
        if any(operand.active for operand in operands):
            touched = self._touch(equation, operands)
            labels = self.channels.after(equation, operands)
            return [dataclasses.replace(touched, labels=each) for each in labels]
        return [_combine(equation, operands)] * count

    def _scan(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Unrolls a loop over stacked parameters; walks any other once."""
        body = equation.params["jaxpr"].jaxpr
        consts, carries = equation.params["num_consts"], equation.params["num_carry"]
        stacked = operands[consts + carries :]
        length, around = equation.params["length"], self.repeats
        steps = length if any(value.view for value in stacked) else 1
        self.repeats = around * max(length // max(steps, 1), 1)
        carry = operands[consts : consts + carries]
        results: list[list[Value]] = []
        for step in reversed(range(steps)) if equation.params["reverse"] else range(steps):
            sliced = [self._take_step(value, step) for value in stacked]
            out = self.run(body, [*operands[:consts], *carry, *sliced])
            carry = out[:carries]
            results.append(out[carries:])
        self.repeats = around
        outputs = [_merge(values) for values in zip(*results, strict=True)]
        return [*carry, *outputs]

    def _take_step(self, value: Value, step: int) -> Value:
        """One step's slice of what `scan` loops over."""
        if value.view is None or value.view.axes[0] != 0:
            return dataclasses.replace(value, view=None)
        axes = tuple(None if axis is None else axis - 1 for axis in value.view.axes[1:])
        view = View(value.view.leaf, axes, (*value.view.index, step))
        self.taken_off[view.leaf] = max(self.taken_off.get(view.leaf, 0), len(view.index))
        leaves = []
        for path in value.leaves:
            leaves.append(f"{path}[{step}]")
            if path in self.norms:
                norm, is_scale = self.norms[path]
                norm = dataclasses.replace(norm, path=f"{norm.path}[{step}]", index=view.index)
                self.norms[leaves[-1]] = norm, is_scale
        return dataclasses.replace(value, view=view, leaves=tuple(leaves))

    def _while(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Walks the body of a loop once; its condition has no layers."""
        condition = equation.params["cond_nconsts"]
        return self.run(equation.params["body_jaxpr"].jaxpr, operands[condition:])

    def _kernel(self, equation: Any, operands: list[Value]) -> Value | None:
        """Records the layer if one operand is a parameter's kernel and the other an activation."""
        sides = [side for side in (0, 1) if operands[side].view and not operands[side].active]
        if len(sides) != 1 or not operands[1 - sides[0]].active:
            return None
        side, view = sides[0], operands[sides[0]].view
        assert view is not None
        shapes = [variable.aval.shape for variable in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            if side != 1:
                return None
            kernel = conv_kernel(equation.params, shapes[1])
        else:
            kernel = dot_kernel(equation.params["dimension_numbers"], side, shapes[side])
        if kernel is None or any(view.axes[axis] is None for axis in kernel.axes):
            return None
        activation = operands[1 - side]
        used = self._record(view, kernel, activation.feeds)
        labels = self.channels.written(equation, kernel, used.feeds[0], activation, 1 - side)
        return dataclasses.replace(used, labels=labels)

    def _record(self, view: View, kernel: Kernel, feeds: tuple[str, ...]) -> Value:
        known = self.known.get(view.leaf)
        steps = "".join(f"[{step}]" for step in view.index)
        # Attention's kernels are not known by name: they could be those of convs.
        path = (known.path if known else view.leaf.removesuffix("/kernel")) + steps
        if path in self.layers:
            layer = self.layers[path]
            feeds = tuple(dict.fromkeys((*layer.inputs, *feeds)))
            calls = layer.calls + self.repeats
            self.layers[path] = dataclasses.replace(layer, calls=calls, inputs=feeds)
        else:
            self.layers[path] = Layer(
                path=path,
                kind=kernel.kind,
                weight=view.leaf,
                shape=kernel.shape,
                axes=tuple(view.axes[axis] for axis in kernel.axes),  # type: ignore[misc]
                index=view.index,
                vectors=tuple(
                    (name, path)
                    for name, path in (known.vectors if known else self._bias(view, kernel))
                    if self.stacked.get(path, 0) == len(view.index)
                ),
                groups=kernel.groups,
                strides=kernel.strides,
                inputs=feeds,
                calls=self.repeats,
            )
        return Value(active=True, feeds=(path,))

    def _bias(self, view: View, kernel: Kernel) -> list[tuple[str, str]]:
        """The bias beside a kernel that is not known by name, such as attention's."""
        module, name = split_path(view.leaf)
        path = f"{module}/bias" if module else "bias"
        # Several kernels of other names may stand beside one bias.
        if name != "kernel" or path not in self.leaves:
            return []
        size = math.prod(self.leaves[path].shape[len(view.index) :])
        return [("bias", path)] if size == kernel.shape[-1] else []

    def _touch(self, equation: Any, operands: Sequence[Value]) -> Value:
        """Arithmetic on an activation. With a norm's parameters it makes that norm a layer."""
        feeds = feeds_of(operands)
        statistics = self._statistics(equation.primitive.name, operands)
        norms = []
        for path in dict.fromkeys(path for value in operands for path in value.leaves):
            layer, is_scale = self.norms.get(path, (None, False))
            if layer is None or len(layer.index) != self.stacked.get(layer.weight, 0):
                continue
            # The norm is met before where its statistics are the first operand.
            self._feed_norm(self.layers.get(layer.path, layer), feeds)
            if is_scale:
                self._count_norm(layer.path)
                self._give_statistics(layer.path, statistics)
            self.channels.normed(layer.path, layer.shape[0], operands)
            feeds = (layer.path,)
            norms.append(layer.path)
        if not norms and equation.primitive.name in ("mul", "div"):
            feeds = self._inside_norm(operands, feeds)
        return Value(active=True, feeds=feeds, statistics=statistics)

    def _statistics(self, name: str, operands: Sequence[Value]) -> tuple[tuple[str, str], ...]:
        """The parameters that one activation was centred with, and then divided by."""
        active = [value for value in operands if value.active]
        if len(active) > 1:
            return ()
        paths = [path for value in operands if not value.active for path in value.leaves]
        arrays = {path: self.leaves[path] for path in paths if path in self.leaves}
        vectors = [path for path, leaf in arrays.items() if leaf.shape and path not in self.norms]
        found = active[0].statistics
        if not vectors:
            return found
        if len(vectors) == 1 and name == "sub" and operands[0].active:
            # A debiased average also depends on the number of batches so far.
            counts = [("count", path) for path, leaf in arrays.items() if leaf.shape == ()]
            return (("mean", vectors[0]), *counts[:1])
        if len(vectors) == 1 and name in ("mul", "div") and found and found[-1][0] != "var":
            return (*found, ("var", vectors[0]))
        return ()

    def _give_statistics(self, path: str, statistics: Sequence[tuple[str, str]]) -> None:
        """Gives a norm running statistics from elsewhere, such as an Equinox `State`."""
        norm, names = self.layers[path], dict(statistics)
        if "var" not in names or "mean" in dict(norm.vectors):
            return
        if all(math.prod(self.leaves[names[n]].shape) == norm.shape[0] for n in ("mean", "var")):
            vectors = tuple(sorted((*norm.vectors, *statistics)))
            self.layers[path] = dataclasses.replace(norm, vectors=vectors)

    def _feed_norm(self, norm: Layer, feeds: Sequence[str]) -> None:
        inputs = dict.fromkeys((*norm.inputs, *feeds))
        inputs.pop(norm.path, None)
        self.layers[norm.path] = dataclasses.replace(norm, inputs=tuple(inputs))

    def _count_norm(self, path: str) -> None:
        """Counts a call of a norm; it multiplies by its scale once."""
        calls = self.repeats + (self.layers[path].calls if path in self.scaled else 0)
        self.layers[path] = dataclasses.replace(self.layers[path], calls=calls)
        self.scaled.add(path)

    def _inside_norm(self, operands: Sequence[Value], feeds: tuple[str, ...]) -> tuple[str, ...]:
        """Drops from `feeds` what enters a norm in the product of two activations.

        A norm may multiply its scale by the deviation first, and the activation by both after that.
        A sum of a norm's input and output is a residual instead.
        """
        for factor, other in (operands, reversed(operands)):
            norm = self.layers.get(factor.feeds[0]) if len(factor.feeds) == 1 else None
            if norm is None or norm.kind != "norm" or norm.path in other.feeds:
                continue
            # Statistics may be arguments of the function: no layer feeds them.
            if not norm.inputs:
                self._feed_norm(norm, other.feeds)
            if set(other.feeds) <= set(self.layers[norm.path].inputs):
                return factor.feeds
        return feeds


def _combine(equation: Any, operands: list[Value]) -> Value:
    """A value of parameters only. It stays a view if its elements are still those of one."""
    leaves = tuple(dict.fromkeys(path for value in operands for path in value.leaves))
    shape = equation.outvars[0].aval.shape
    for variable, value in zip(equation.invars, operands, strict=True):
        if value.view is not None:
            axes = axes_after(equation, value.view.axes, variable.aval.shape, shape)
            if axes is not None:
                return Value(leaves=leaves, view=dataclasses.replace(value.view, axes=axes))
    return Value(leaves=leaves)


def _merge(values: Sequence[Value]) -> Value:
    """One value in place of several branches or steps."""
    return Value(
        active=any(value.active for value in values),
        leaves=tuple(dict.fromkeys(path for value in values for path in value.leaves)),
        feeds=feeds_of(values),
    )


def _inner_jaxpr(equation: Any) -> core.Jaxpr | None:
    """The program that a call runs: `jit`, `remat`, custom derivatives and the like."""
    for value in equation.params.values():
        if isinstance(value, core.ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, core.Jaxpr):
            return value
    return None
