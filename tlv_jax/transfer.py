"""Carry out a plan on arrays."""

import warnings
from typing import Any

import jax
from jax.core import Tracer

from tlv_jax.errors import PlanMismatchError
from tlv_jax.finiteness import refuse_unless_finite, sums
from tlv_jax.fitting import Leaves, Shardings, fit_in_batches, fit_in_one_program
from tlv_jax.paths import array_leaves, is_array
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import plan_transfer
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.types import Array, PyTree

__all__ = ["apply_transfer", "transfer"]

ALIKE = 0.5  # similarity below which published transfers mostly hurt


def transfer(
    src_params: PyTree,
    dst_params: PyTree,
    *,
    key: Array | None = None,
    plan: TransferPlan | None = None,
) -> PyTree:
    """Initializes one network from the pretrained weights of another: the one-liner.

    Compiles once for a pair of architectures; further calls with other weights and keys compile
    nothing.

    Args:
      src_params: pretrained parameters, any pytree of arrays; a kernel is `[*spatial, I, O]`, or
        `[O, I, *spatial]` if its leaf is named `weight`. A list of such trees is a mixture of
        several sources, of which each target layer takes the one that fits it best.
      dst_params: the target's own initial parameters, likewise. Not written to.
      key: random key; `jax.random.key(0)` if None.
      plan: who gives what to whom; `plan_transfer(src_params, dst_params)` if None.

    Returns:
      A new tree of the structure, shapes and dtypes of `dst_params`. Leaves that the plan leaves
      untouched are those of `dst_params` itself.

    Raises:
      TLVError: as `plan_transfer` and `apply_transfer`.

    Warns:
      SimilarityWarning: without a plan, where `similarity` is below 0.5.
    """
    if plan is None:
        plan = plan_transfer(src_params, dst_params)
        _warn_if_unlike(src_params, dst_params)
    if key is None:
        key = jax.random.key(0)
    return apply_transfer(plan, key, src_params, dst_params)


def _warn_if_unlike(src_params: PyTree, dst_params: PyTree) -> None:
    sources = src_params if isinstance(src_params, list) else [src_params]
    value = max(similarity(source, dst_params) for source in sources)
    if value < ALIKE:
        warnings.warn(
            f"The two networks are unlike: similarity {value:.2f}, below {ALIKE}. Published "
            "transfers of such pairs mostly hurt; train a twin that starts from noise beside it. "
            "A plan of your own is carried out without this warning.",
            SimilarityWarning,
            stacklevel=3,
        )


def apply_transfer(
    plan: TransferPlan,
    key: Array,
    src_params: PyTree,
    dst_params: PyTree,
    *,
    check_finite: bool = True,
) -> PyTree:
    """Applies a plan. Pure; works under `jit` (plan static or closed over) and `vmap` over keys.

    Each layer draws from `fold_in(key, hash of its path)`, so its answer does not depend on which
    other layers are in the plan.

    Where all arrays are at hand on one device, kernels are fitted in batches, those of one source
    together, so that little more memory is taken than for the result. Of the variance rule a few
    programs serve a batch, some of which a second thread compiles; of any other, one is compiled
    for each combination of shapes, and kept for other plans. Where anything is traced or divided
    over several devices, all is one program, in which pairs of equal shapes are one batch.

    Args:
      plan: from `plan_transfer`, for trees of these shapes.
      key: random key, consumed.
      src_params: the source's parameters.
      dst_params: the target's own parameters; not written to.
      check_finite: refuse NaN and infinity in the source. Cannot be checked, and is not, where the
        source is traced.

    Returns:
      A new tree of the structure, shapes and dtypes of `dst_params`.

    Raises:
      PlanMismatchError: if a leaf that the plan names is missing or of another shape.
      NonFiniteSourceError: if a source leaf that the plan reads is not finite.
    """
    target_leaves = array_leaves(dst_params, name="dst_params")
    source = _named(plan.source_leaves, array_leaves(src_params, name="src_params"), "src_params")
    target = _named(plan.target_leaves, target_leaves, "dst_params")
    arrays = [key, *source.values(), *target.values()]
    if any(isinstance(array, Tracer) or _is_divided(array) for array in arrays):
        known = [path for path, leaf in source.items() if not isinstance(leaf, Tracer)]
        fitted = fit_in_one_program(plan, _shardings(target), key, source, target)
        if check_finite and known:
            with jax.ensure_compile_time_eval():  # else traced along with what is
                found = sums([source[path] for path in known])
                refuse_unless_finite(source, zip(known, found, strict=True))
    else:
        fitted = fit_in_batches(plan, key, source, target, check_finite=check_finite)

    leaves, structure = jax.tree.flatten(dst_params)
    paths = iter(target_leaves)
    new = [fitted.get(next(paths), leaf) if is_array(leaf) else leaf for leaf in leaves]
    return structure.unflatten(new)


def _is_divided(array: Any) -> bool:
    return isinstance(array, Array) and len(array.sharding.device_set) > 1


def _shardings(leaves: Leaves) -> Shardings:
    """How the leaves are laid out that lie on several devices."""
    return tuple(
        (path, leaf.sharding)
        for path, leaf in leaves.items()
        if not isinstance(leaf, Tracer) and _is_divided(leaf)
    )


def _named(expected: tuple[tuple[str, tuple[int, ...]], ...], leaves: Leaves, name: str) -> Leaves:
    """The leaves of a tree that a plan names, checked against the shapes that it was made for."""
    for path, shape in expected:
        found = tuple(leaves[path].shape) if path in leaves else "no such leaf"
        if found != shape:
            raise PlanMismatchError(
                f"{name}: the plan expects leaf {path!r} of shape {shape}, found {found}. Make a "
                "plan for these very trees with plan_transfer(src_params, dst_params)."
            )
    return {path: leaves[path] for path, _ in expected}
