"""How alike two networks are, as far as shapes tell."""

from collections.abc import Sequence

from tlv_jax.alignment import align_blocks
from tlv_jax.blocks import flatten_blocks, standardize_blocks
from tlv_jax.errors import ParameterTreeError
from tlv_jax.scores import shape_scores
from tlv_jax.standardization import find_layers
from tlv_jax.types import Layer, PyTree

__all__ = ["SimilarityWarning", "similarity"]

KINDS = ("conv", "dense", "norm")


class SimilarityWarning(UserWarning):
    """Source and target are so unlike that a transfer is more likely to hurt than to help."""


def similarity(
    src_params: PyTree,
    dst_params: PyTree,
    *,
    src_layers: Sequence[Layer] | None = None,
    dst_layers: Sequence[Layer] | None = None,
) -> float:
    """The score of the best alignment of two networks over that of the target with itself.

    DPIAT's `sim` (arXiv 2212.13970): blocks aligned by dynamic programming with the
    shape score. In [0, 1]; 1 for two networks of the same shapes. Not symmetric: it asks how much
    of the target the source can fill. Plain Python on shapes.

    Args:
      src_params: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      dst_params: likewise.
      src_layers: the source's layers from `trace_layers`; found by name if None.
      dst_layers: the target's layers, likewise.

    Raises:
      ParameterTreeError: if a tree has no layers.
    """
    sides = []
    for name, tree, layers in (
        ("src_params", src_params, src_layers),
        ("dst_params", dst_params, dst_layers),
    ):
        found = find_layers(tree, name=name)[0] if layers is None else layers
        blocks = standardize_blocks(found, KINDS)
        if not blocks:
            raise ParameterTreeError(
                f"{name}: expected conv, dense or norm layers, found none by their names. Pass "
                "layers from trace_layers."
            )
        sides.append(blocks)
    source, target = sides
    flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
    best, _ = align_blocks(source, target, shape_scores(flat_source, flat_target))
    # Aligned with itself every layer fits itself, at 1 each.
    return best / len(flat_target)
