"""How alike two networks are, judged by shapes."""

from tlv_jax.errors import ParameterTreeError
from tlv_jax.layers.blocks import flatten_blocks, standardize_blocks, standardize_graph
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
    source can fill. Works on shapes alone. The published code takes blocks by the names of modules,
    so that a network whose layers all lie in one module is like no other. Where both networks are
    traced, ours also tries the blocks of their graphs, and returns the higher score.

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
    for name, side in (*(("src", source) for source in sources), ("dst", target)):
        if not any(layer.kind in KINDS for layer in side.layers):
            raise ParameterTreeError(
                f"{name}: expected conv, dense or norm layers, found none by their names. "
                "Pass a network from tlv_jax.trace(fn, params, images)."
            )
    return max(_similarity(source, target) for source in sources)


def _similarity(source: Network, target: Network) -> float:
    """The higher one of both kinds of blocks, if both networks have a graph."""
    traced = source.channels is not None and target.channels is not None
    kinds_of_blocks = (standardize_blocks, standardize_graph) if traced else (standardize_blocks,)
    scores = []
    for standardize in kinds_of_blocks:
        offered, wanted = (standardize(side.layers, KINDS) for side in (source, target))
        flat = flatten_blocks(wanted)
        score, _ = align_blocks(offered, wanted, shape_scores(flatten_blocks(offered), flat))
        # Aligned with itself, every layer of the target scores 1.
        scores.append(score / len(flat))
    return max(scores)
