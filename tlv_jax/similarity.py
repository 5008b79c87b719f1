"""How alike two networks are, judged by shapes."""

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.blocks import flatten_blocks, standardize_blocks
from tlv_jax.matching.alignment import align_blocks
from tlv_jax.matching.scores import shape_scores
from tlv_jax.network import Network, as_networks
from tlv_jax.types import PyTree

KINDS = ("conv", "dense", "norm")


class SimilarityWarning(UserWarning):
    """Source and target are so unlike that a transfer will more likely hurt than help."""


def similarity(src: Network | PyTree, dst: Network | PyTree) -> float:
    """The score of the best alignment of two networks, divided by that of the target with itself.

        >>> tlv_jax.similarity(dst, dst), round(tlv_jax.similarity(src, dst), 2)
        (1.0, 0.78)

    DPIAT's `sim` (arXiv 2212.13970): blocks aligned by dynamic programming with the shape score. In
    [0, 1]; 1 for two networks of the same shapes. Not symmetric: it asks how much of the target the
    source can fill. Works on shapes alone.

    Args:
      src: a network, or a bare tree of arrays or of `jax.ShapeDtypeStruct`. Of a list of networks
        the most similar one counts.
      dst: a network or a bare tree.

    Raises:
      ParameterTreeError: if a tree has no layers.

    Warns:
      UnknownOrderWarning: for a bare tree of no known architecture.
    """
    sources, target = as_networks(src, dst)
    *offered, wanted = (standardize_blocks(side.layers, KINDS) for side in (*sources, target))
    if not (all(offered) and wanted):
        name = "dst" if all(offered) else "src"
        raise ParameterTreeError(
            f"{name}: expected conv, dense or norm layers, found none by their names. "
            "Pass a network from tlv_jax.trace(fn, params, images)."
        )
    flat_target = flatten_blocks(wanted)
    best = max(
        align_blocks(source, wanted, shape_scores(flatten_blocks(source), flat_target))[0]
        for source in offered
    )
    # Aligned with itself, every layer of the target scores 1.
    return best / len(flat_target)
