"""Make a function's convolutions fast on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from tlv_jax.convolutions import faster_convolution
from tlv_jax.errors import OptionError
from tlv_jax.layers.jaxprs import computing, opened, programs_within, split_arrays

__all__ = ["cpu_convolutions"]

Function = TypeVar("Function", bound=Callable[..., Any])


def cpu_convolutions(fn: Function) -> Function:
    """The same function, with convolutions that are fast on a CPU.

        >>> faster = tlv_jax.cpu_convolutions(apply)
        >>> gradients = jax.jit(jax.grad(lambda params: faster(params, images).sum()))(params)
        >>> gradients["stem"].shape
        (3, 3, 3, 8)

    XLA's compiler for CPUs is slow at depthwise and other grouped convolutions, at kernels larger
    than their input, and at the gradients of all of these. Each of them is replaced by a form that
    suits a CPU, wherever the function's program has it: in `jit`, `remat`, `scan`, branches and the
    rules of `jax.custom_vjp` too. Dtypes are kept. Results and gradients differ by rounding only,
    as long as they are finite: in a grouped convolution an infinity may reach other groups.

    Apply it before differentiation, and compile the result: each call traces `fn`.

    Args:
      fn: a pure function of pytrees. Arguments that are not arrays stay as they are.

    Returns:
      The function, which `jax.jit`, `jax.grad` (also of itself) and `jax.vmap` take as they take
      `fn`. JAX refuses forward mode, such as `jax.jvp`, for its depthwise convolutions. Where
      JAX's default backend is not a CPU, `fn` itself.

    Raises:
      OptionError: when called, if `fn` changes its arguments in place, as an NNX module does that
        updates its statistics.
    """
    if jax.default_backend() != "cpu":
        return fn

    @functools.wraps(fn)
    def faster(*args: Any, **kwargs: Any) -> Any:
        arrays, put = split_arrays((args, kwargs))
        results: Callable[..., Any] | None = None

        def call(arrays: list[Any]) -> list[Any]:
            nonlocal results
            positional, named = given = put(arrays)
            output = fn(*positional, **named)
            after, _ = split_arrays(given)
            if [id(array) for array in after] != [id(array) for array in arrays]:
                raise OptionError(
                    f"cpu_convolutions: {getattr(fn, '__name__', fn)!r} changes its arguments in "
                    "place, and the change would be lost. Pass a pure function, which returns "
                    "what it changes: in NNX, the state from nnx.split."
                )
            outputs, results = split_arrays(output)
            return outputs

        program = jax.make_jaxpr(call)(arrays)
        assert results is not None  # make_jaxpr calls it
        rewritten = core.ClosedJaxpr(_rewrite(program.jaxpr), program.consts)
        return results(core.jaxpr_as_fun(rewritten)(*arrays))

    typed: Any = faster
    return typed


def _rewrite(jaxpr: core.Jaxpr, *, rules: bool = True) -> core.Jaxpr:
    """The program with faster convolutions; the very same if it has nothing to replace.

    Args:
      jaxpr: the program.
      rules: whether to rewrite the rules of `jax.custom_vjp` too.
    """
    equations = [_rewrite_equation(equation, rules=rules) for equation in jaxpr.eqns]
    if all(new is old for new, old in zip(equations, jaxpr.eqns, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=equations)


def _rewrite_equation(equation: Any, *, rules: bool) -> Any:
    if equation.primitive.name == "conv_general_dilated":
        avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
        faster = faster_convolution(equation.params, *avals)
        return equation if faster is None else _calling(equation, faster)
    changed = {}
    for name, programs in programs_within(equation.params).items():
        found = [opened(program)[0] for program in programs]
        rewritten = [_rewrite(jaxpr, rules=rules) for jaxpr in found]
        if any(new is not old for new, old in zip(rewritten, found, strict=True)):
            changed[name] = _as_kept(rewritten, equation.params[name])
    faster = equation.replace(params={**equation.params, **changed}) if changed else equation
    match equation.primitive.name:
        case "custom_jvp_call" if changed:
            return _with_jvp(equation, faster)
        case "custom_vjp_call" if rules:
            return _with_vjp(equation, faster)
    return faster


def _as_kept(programs: list[core.Jaxpr], kept: Any) -> Any:
    """The programs in the form in which an equation keeps them: in a tuple, with constants."""
    if isinstance(kept, tuple):
        return tuple(_as_kept([new], old) for new, old in zip(programs, kept, strict=True))
    (program,) = programs
    return core.ClosedJaxpr(program, kept.consts) if isinstance(kept, core.ClosedJaxpr) else program


def _calling(equation: Any, fn: Callable[..., Any]) -> Any:
    """The equation with a call of `fn` in place of its own operation."""
    call = jax.make_jaxpr(jax.jit(fn))(*(atom.aval for atom in equation.invars)).jaxpr.eqns[0]
    return equation.replace(primitive=call.primitive, params=call.params, effects=call.effects)


def _with_jvp(equation: Any, faster: Any) -> Any:
    """A call of a `jax.custom_jvp` function that convolves.

    Its rule computes the function anew, and this result is replaced. The derivative is left as it
    is, since JAX may transpose it.

    Args:
      equation: the call.
      faster: the same, rewritten but for the rule.
    """
    original, primal = computing(equation), computing(faster)
    rebuilt = jax.custom_jvp(primal)

    @rebuilt.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        return primal(*primals), jax.jvp(original, primals, tangents)[1]

    return _calling(equation, rebuilt)


def _with_vjp(equation: Any, faster: Any) -> Any:
    """A call of a `jax.custom_vjp` function, whose rule may convolve too.

    A rule is a Python function, which runs when the function is differentiated. One that convolves
    gets a new one around it. All others stay what they are, and so does the rule of a function that
    holds arrays from outside, takes integers, or asks which of its zeros are known as such.

    Args:
      equation: the call.
      faster: the same, rewritten but for the rule.
    """
    avals = [atom.aval for atom in equation.invars]
    floats = all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals)
    if not floats or equation.params["num_consts"] or equation.params["symbolic_zeros"]:
        return faster
    original = computing(equation)

    def forward(*primals: Any) -> Any:
        return jax.vjp(original, *primals)

    def backward(pull_back: Any, cotangents: Any) -> Any:
        return pull_back(cotangents)

    def derive(primals: Any, cotangents: Any) -> Any:
        return backward(forward(*primals)[1], cotangents)

    try:
        program = jax.make_jaxpr(derive)(avals, [atom.aval for atom in equation.outvars]).jaxpr
    except Exception:  # a rule that refuses is to do so where it is used
        return faster
    # A rule may call the function itself: its own rule is looked at when that is differentiated.
    if _rewrite(program, rules=False) is program:
        return faster
    rebuilt = jax.custom_vjp(computing(faster))
    rebuilt.defvjp(cpu_convolutions(forward), cpu_convolutions(backward))
    return _calling(equation, rebuilt)
