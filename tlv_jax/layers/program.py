"""Walk a function's program (its jaxpr) and gather its layers, their graph and their channels.

A parameter is followed from the function's arguments through casts, transposes and the like to the
operation that uses it. A convolution or matrix product makes it a kernel; the operation's dimension
numbers say what its axes mean. Arithmetic with an activation makes it a scale or a bias. Calls
(`jit`, `remat`, custom derivatives) are entered, loops of `jax.lax.scan` unrolled.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.channels import ChannelGraph, ChannelLabels
from tlv_jax.layers.jaxprs import (
    Program,
    last_uses,
    opened,
    programs_within,
    scan_sizes,
    split_arrays,
)
from tlv_jax.layers.paths import array_leaves, split_path
from tlv_jax.layers.trees import find_layers
from tlv_jax.layers.values import ROOTS, Value, combine, is_curved, merge, use_of
from tlv_jax.types import Layer, PyTree


def walk_program(
    fn: Callable[..., Any], params: PyTree, *inputs: Any
) -> tuple[tuple[Layer, ...], ChannelGraph]:
    """The layers of a function in the order of their first use, and their channels."""
    walk = walked(program_of(fn, params, *inputs))
    layers = walk.found()
    if all(layer.kind == "norm" for layer in layers):
        raise ParameterTreeError(
            f"trace: the function convolves or multiplies with none of the {len(walk.leaves)} "
            f"arrays in params ({', '.join(list(walk.leaves)[:3])}, ...). Pass the parameters as "
            "the function's first argument, not inside a closure."
        )
    return layers, walk.channels.graph(layers)


class FunctionProgram(NamedTuple):
    """The program of a function.

    Attributes:
      jaxpr: with its constants.
      leaves: the arrays in `params`, by path.
      arguments: what is known of each array in `params`, and then of each in `inputs`, with it.
    """

    jaxpr: core.ClosedJaxpr
    leaves: Mapping[str, Any]
    arguments: list[Value]


def program_of(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> FunctionProgram:
    """The program that JAX makes of `fn(params, *inputs)`."""
    named = array_leaves(params, name="params")
    arrays, put = split_arrays((params, inputs))

    def call(arrays: Sequence[Any]) -> Any:
        model, arguments = put(arrays)
        return fn(model, *arguments)

    values = [
        Value(leaves=((path, ()),), view=(path, ()), axes=tuple(range(len(leaf.shape))), array=leaf)
        for path, leaf in named.items()
    ]
    values += [Value(active=True, array=array) for array in arrays[len(named) :]]
    return FunctionProgram(jax.make_jaxpr(call)(arrays), named, values)


def walked(program: FunctionProgram) -> "Walk":
    """A walk through the whole program."""
    leaves = program.leaves
    stacked: Mapping[str, int] = {}
    while True:
        # Names and ranks are those of one step: a stacked scale does not look like a scale.
        one_step = {
            path: jax.ShapeDtypeStruct(leaf.shape[stacked.get(path, 0) :], leaf.dtype)
            for path, leaf in leaves.items()
        }
        walk = Walk(leaves, find_layers(one_step, name="params")[0], stacked)
        walk.run(program.jaxpr, program.arguments)
        if walk.taken_off == stacked:
            return walk
        stacked = walk.taken_off


def steps_of(params: Mapping[str, Any], operands: Sequence[Value]) -> int:
    """How many steps of a `scan` are walked: all over stacked parameters, else one for all."""
    stacked = operands[sum(scan_sizes(params)) :]
    return params["length"] if any(value.view for value in stacked) else 1


def _at_step(path: str, index: Iterable[int]) -> str:
    return path + "".join(f"[{step}]" for step in index)


class Walk:
    """A walk through a jaxpr, which gathers the layers that it meets.

    A kernel is known by its use, whatever its name. A norm is known by the name of its scale.
    """

    def __init__(
        self, leaves: Mapping[str, Any], known: Iterable[Layer], stacked: Mapping[str, int]
    ) -> None:
        """Takes the layers of one loop step, and how often each leaf is stacked."""
        self.leaves = leaves
        self.stacked = stacked
        self.taken_off: dict[str, int] = {}  # how often this walk finds each leaf to be stacked
        self.known = {layer.weight: layer for layer in known}
        self.norms = {
            path: layer
            for layer in self.known.values()
            for path in (layer.weight, *dict(layer.vectors).values())
            if layer.kind == "norm"
        }
        self.layers: dict[str, Layer] = {}
        # What later uses add to the layers. The keys of a dict are a set that keeps its order.
        self.inputs: dict[str, dict[str, None]] = defaultdict(dict)
        self.calls: Counter[str] = Counter()
        self.touches: Counter[str] = Counter()  # the operations of each norm, over all calls
        self.sizes: dict[str, tuple[int, ...]] = {}  # of norms
        self.own_statistics: dict[str, bool] = {}  # whether each norm computes its own
        self.epsilons: dict[str, float] = {}  # what is added to each parameter
        self.channels = ChannelLabels()
        self.repeats = 1  # how many steps of the loops around are walked as one

    def found(self) -> tuple[Layer, ...]:
        """The layers in the order of their first use."""
        layers: dict[str, Layer] = {}
        for path, layer in self.layers.items():
            inputs, size = tuple(self.inputs[path]), layer.size
            if layer.kind == "norm":
                size = self.sizes.get(path, size)
            # A norm whose scale is not used was still called.
            calls = self.calls[path] or 1
            layers[path] = dataclasses.replace(
                layer,
                inputs=inputs,
                calls=calls,
                size=size,
                own_statistics=self.own_statistics.get(path),
            )
        return tuple(layers.values())

    def run(self, program: Program, arguments: Sequence[Value]) -> list[Value]:
        """Follows the arguments through the program and returns its results."""
        jaxpr, constants = opened(program)
        environment = dict(zip(jaxpr.invars, arguments, strict=True))
        # Of literals, and of constants that the function closes over, only the array is known.
        known = zip(jaxpr.constvars, constants, strict=False)
        environment.update((variable, Value(array=array)) for variable, array in known)

        def read(atom: Any) -> Value:
            if isinstance(atom, core.Literal):
                return Value(array=atom.val)
            return environment.get(atom, Value())

        ends = last_uses(jaxpr)
        for number, equation in enumerate(jaxpr.eqns):
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            environment.update(zip(equation.outvars, results, strict=True))
            for variable in ends[number]:  # in a walk that computes, they hold arrays
                environment.pop(variable, None)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Follows one operation; enters those that run a program of their own."""
        params = equation.params
        match equation.primitive.name:
            case "scan":
                return self._scan(params, operands)
            case "while":
                # Its steps are not known, so one stands for all; the condition has no layers.
                (body,) = programs_within(params)["body_jaxpr"]
                return self.run(body, operands[params["cond_nconsts"] :])
            case "cond":
                programs = programs_within(params)["branches"]
                branches = [self.run(each, operands[1:]) for each in programs]
                return [merge(values) for values in zip(*branches, strict=True)]
            case "conv_general_dilated" | "dot_general":
                used = self._kernel(equation, operands)
                if used is not None:
                    return [used]
        # The program that a call runs: `jit`, `remat`, custom derivatives and the like.
        inner = next(iter(programs_within(params).values()), [])
        if inner and len(opened(inner[0])[0].invars) == len(operands):
            return self.run(inner[0], operands)
        if any(operand.active for operand in operands):
            touched = self._touch(equation, operands)
            labels = self.channels.after(equation, operands)
            return [dataclasses.replace(touched, labels=each) for each in labels]
        self._note_epsilon(equation, operands)
        return [combine(equation, operands)] * len(equation.outvars)

    def _scan(self, params: Mapping[str, Any], operands: list[Value]) -> list[Value]:
        """Unrolls a loop over stacked parameters; walks any other once."""
        length, around = params["length"], self.repeats
        first, carries = scan_sizes(params)
        (body,) = programs_within(params)["jaxpr"]
        consts, carry = operands[:first], operands[first : first + carries]
        stacked = operands[first + carries :]
        steps = steps_of(params, operands)
        self.repeats = around * max(length // max(steps, 1), 1)
        results: list[list[Value]] = []
        for step in reversed(range(steps)) if params["reverse"] else range(steps):
            sliced = [self._take_step(value, step) for value in stacked]
            out = self.run(body, [*consts, *carry, *sliced])
            carry = out[:carries]
            results.append(out[carries:])
        self.repeats = around
        return [*carry, *(merge(values) for values in zip(*results, strict=True))]

    def _take_step(self, value: Value, step: int) -> Value:
        """One step's slice of what `scan` loops over."""
        # Only along its first axes a parameter can be filled step by step.
        if value.view is None or value.axes[0] != 0:
            return dataclasses.replace(value, view=None)
        path, index = value.view
        self.taken_off[path] = max(self.taken_off.get(path, 0), len(index) + 1)
        return dataclasses.replace(
            value,
            leaves=tuple((path, (*index, step)) for path, index in value.leaves),
            view=(path, (*index, step)),
            axes=tuple(None if axis is None else axis - 1 for axis in value.axes[1:]),
        )

    def _kernel(self, equation: Any, operands: list[Value]) -> Value | None:
        """The result of a layer: of one parameter's kernel with one activation; else None."""
        sides = [side for side in (0, 1) if operands[side].view]
        if len(sides) != 1 or not operands[1 - sides[0]].active:
            return None
        kernel, activation = operands[sides[0]], operands[1 - sides[0]]
        use = use_of(equation, sides[0])
        if use is None or kernel.view is None:
            return None
        # An axis that the parameter does not have could not be resized.
        axes = tuple(kernel.axes[axis] for axis in use.layer.axes)
        if None in axes:
            return None
        weight, index = kernel.view
        known = self.known.get(weight)
        # Attention's kernels are not known by name: they could be those of convs.
        path = _at_step(known.path if known else weight.removesuffix("/kernel"), index)
        vectors = known.vectors if known else self._bias(weight, index, use.layer.shape[-1])
        layer = dataclasses.replace(
            use.layer,
            path=path,
            weight=weight,
            axes=axes,
            index=index,
            # A bias that is not stacked as its kernel is belongs to no step.
            vectors=tuple(pair for pair in vectors if self.stacked.get(pair[1], 0) == len(index)),
        )
        self.layers.setdefault(path, layer)
        self.inputs[path].update(dict.fromkeys(activation.feeds))
        self.calls[path] += self.repeats
        sizes = equation.invars[1 - sides[0]].aval.shape, equation.outvars[0].aval.shape
        labels = self.channels.written(path, use, activation.labels, *sizes)
        if activation.curved:
            self.channels.activated.add(path)
        return Value(active=True, feeds=(path,), labels=labels)

    def _bias(self, weight: str, index: Sequence[int], outputs: int) -> list[tuple[str, str]]:
        """The bias beside a kernel that is not known by name, such as attention's."""
        name = split_path(weight)[1]
        path = weight.removesuffix(name) + "bias"
        # Several kernels of other names may stand beside one bias.
        if name != "kernel" or path not in self.leaves:
            return []
        return [("bias", path)] * (math.prod(self.leaves[path].shape[len(index) :]) == outputs)

    def _note_epsilon(self, equation: Any, operands: Sequence[Value]) -> None:
        """Notes a number that is added to a parameter."""
        if equation.primitive.name != "add":
            return
        for value, other in (operands, reversed(operands)):
            number: Any = other.array
            # Under `jit`, a walk that computes has no numbers.
            if value.view is None or other.leaves or number is None or isinstance(number, Tracer):
                continue
            if np.size(number) == 1:
                self.epsilons[value.view[0]] = float(np.reshape(number, ()))

    def _touch(self, equation: Any, operands: Sequence[Value]) -> Value:
        """Arithmetic on an activation. With a norm's parameters it makes that norm a layer."""
        name, around = equation.primitive.name, merge(operands)
        statistics = self._statistics(name, operands)
        feeds, met = around.feeds, False
        for leaf, index in around.leaves:
            norm = self.norms.get(leaf)
            if norm is None or len(index) != self.stacked.get(norm.weight, 0):
                continue
            met, path = True, _at_step(norm.path, index)
            self.layers.setdefault(path, dataclasses.replace(norm, path=path, index=index))
            # The norm is met before where its statistics are the first operand.
            self.inputs[path].update(dict.fromkeys(each for each in feeds if each != path))
            if leaf == norm.weight:  # it multiplies by its scale once a call
                self.calls[path] += self.repeats
                self._give_statistics(path, statistics)
                self.own_statistics[path] = around.rooted
            self.channels.normed(path, norm.shape[0], operands)
            feeds = (path,)
        if not met and name in ("mul", "div"):
            inside = self._inside_norm(operands, feeds)
            met, feeds = inside != feeds, inside
        if met:
            self.touches[feeds[0]] += 1
            self._note_size(feeds[0], equation.outvars[0].aval.shape)
        curved = is_curved(equation, operands)
        return Value(
            active=True,
            feeds=feeds,
            curved=curved,
            rooted=not met and (around.rooted or (name in ROOTS and bool(around.feeds))),
            statistics=statistics,
        )

    def _note_size(self, path: str, shape: tuple[int, ...]) -> None:
        """Notes the spatial size of a norm, which is known after its last operation."""
        channels = self.layers[path].shape[0]
        axes = [axis for axis, size in enumerate(shape) if axis and size == channels]
        if axes:
            self.sizes[path] = (*shape[1 : axes[-1]], *shape[axes[-1] + 1 :])

    def _statistics(self, name: str, operands: Sequence[Value]) -> tuple[tuple[str, str], ...]:
        """The parameters that one activation was centred with, and then divided by."""
        active = [value for value in operands if value.active]
        if len(active) > 1:
            return ()
        leaves = [leaf for value in operands if not value.active for leaf in value.leaves]
        shapes = {path: self.leaves[path].shape for path, index in leaves if not index}
        vectors = [path for path, shape in shapes.items() if shape and path not in self.norms]
        found = active[0].statistics
        if not vectors:
            return found
        if len(vectors) > 1:
            return ()
        if name == "sub" and operands[0].active:
            # A debiased average also depends on the number of batches so far.
            counts = [("count", path) for path, shape in shapes.items() if shape == ()]
            return (("mean", vectors[0]), *counts[:1])
        centred = found and found[-1][0] != "var"
        # Libraries divide by the deviation, or multiply by its inverse, the scale in it or not.
        return (*found, ("var", vectors[0])) if centred and name in ("mul", "div") else ()

    def _give_statistics(self, path: str, statistics: Sequence[tuple[str, str]]) -> None:
        """Gives a norm running statistics from elsewhere, such as an Equinox `State`."""
        norm, names = self.layers[path], dict(statistics)
        if "var" not in names or "mean" in dict(norm.vectors):
            return
        if all(math.prod(self.leaves[names[n]].shape) == norm.shape[0] for n in ("mean", "var")):
            vectors = tuple(sorted((*norm.vectors, *statistics)))
            self.layers[path] = dataclasses.replace(norm, vectors=vectors)

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
            inputs = self.inputs[norm.path]
            if not inputs:
                inputs.update(dict.fromkeys(other.feeds))
            if inputs.keys() >= set(other.feeds):
                return factor.feeds
        return feeds
