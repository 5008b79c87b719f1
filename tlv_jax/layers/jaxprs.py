"""The arrays of a function's arguments, and the programs (jaxprs) within its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from tlv_jax.layers.paths import is_array
from tlv_jax.types import PyTree

Program = core.ClosedJaxpr | core.Jaxpr


def split_arrays(tree: PyTree) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
    """The arrays of a tree, and a function that puts others in their places.

    The other leaves, such as an activation function or `train=True`, stay as they are.
    """
    leaves, structure = jax.tree.flatten(tree)

    def put(arrays: Sequence[Any]) -> PyTree:
        remaining = iter(arrays)
        return structure.unflatten([next(remaining) if is_array(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if is_array(leaf)], put


def programs_within(params: Mapping[str, Any]) -> dict[str, list[Program]]:
    """The programs that an equation runs, by the name of its parameter.

    Primitives keep them under names of their own, with their constants or without, and `cond` keeps
    several under one.
    """
    programs = {}
    for name, value in params.items():
        several = value if isinstance(value, tuple) else (value,)
        if several and all(isinstance(each, Program) for each in several):
            programs[name] = list(several)
    return programs


def opened(program: Program) -> tuple[core.Jaxpr, Sequence[Any]]:
    """A program and its constants, where it keeps them."""
    if isinstance(program, core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()


def computing(equation: Any) -> Callable[..., list[Any]]:
    """A function of the equation's operands that computes it as JAX does."""
    avals = [atom.aval for atom in equation.invars]
    empty = jax.make_jaxpr(lambda *operands: operands)(*avals).jaxpr
    alone = empty.replace(
        eqns=[equation.replace(invars=empty.invars)],
        outvars=equation.outvars,
        effects=equation.effects,
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))


def last_uses(jaxpr: core.Jaxpr) -> list[list[Any]]:
    """The variables that each equation is the last to use; results of the program are none."""
    ends: list[list[Any]] = [[] for _ in jaxpr.eqns]
    met = {atom for atom in jaxpr.outvars if isinstance(atom, core.Var)}
    for number in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[number]
        for atom in (*equation.invars, *equation.outvars):
            if isinstance(atom, core.Var) and atom not in met:
                met.add(atom)
                ends[number].append(atom)
    return ends


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many constants a `scan` has, and how many values it carries."""
    if "ft_in" in params:  # since JAX 0.11
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]
