"""The settings of published methods, as keyword arguments of `plan_transfer`.

plan = tlv_jax.plan_transfer(src_params, dst_params, **tlv_jax.presets.dpiat())
"""

import functools
from typing import Any

from tlv_jax import rules
from tlv_jax.blocks import standardize_blocks
from tlv_jax.channels import ChannelGraph
from tlv_jax.consistency import ConsistentChannels
from tlv_jax.deepening import match_each_once
from tlv_jax.matching import match_by_index, match_by_score
from tlv_jax.standardization import standardize_flat

__all__ = ["dpiat", "net2net", "tlvfc", "weight_selection"]


def tlvfc() -> dict[str, Any]:
    """TLVFC (2024): convs by index and variance, shuffled; heads drawn from statistics."""
    return {
        "standardize": standardize_flat,
        "match": match_by_index,
        "rule": functools.partial(
            rules.variance,
            keep="interleaved",
            remove="random",
            pad="zero",
            pool="avg",
            shuffle=True,
        ),
        "head": "statistics",
        "kinds": ("conv",),
    }


def dpiat() -> dict[str, Any]:
    """DPIAT (arXiv 2212.13970): blocks, dynamic programming with shape scores, clip; all layers."""
    return {
        "standardize": standardize_blocks,
        "match": match_by_score,
        "rule": rules.clip,
        "head": "keep",
        "kinds": ("conv", "dense", "norm", "bias"),
    }


def weight_selection() -> dict[str, Any]:
    """Weight selection (ICLR 2024, arXiv 2311.18823): layers by order, evenly spaced channels.

    "Initializing Models with Larger Ones" gives a smaller network of the same family the first
    layers of each stage of the larger one; matching by blocks finds those stages by their shapes.
    """
    return {
        "standardize": standardize_blocks,
        "match": match_by_score,
        "rule": rules.uniform,
        "head": "keep",
        "kinds": ("conv", "dense", "norm", "bias"),
    }


def net2net(source_graph: ChannelGraph, target_graph: ChannelGraph) -> dict[str, Any]:
    """Net2Net (ICLR 2016, arXiv 1511.05641): a wider and deeper network of the same function.

    For a target of the source's family with wider layers, more layers, larger kernels, or all of
    these. New channels are copies of the first ones, by whose number what reads them is divided;
    the paper draws which are copied. New layers change nothing, see `plan_transfer`'s `insert`.
    Nothing breaks the symmetry of copies, as the paper's noise does: dropout or a noise of one's
    own must, if they are to become different.

    Args:
      source_graph: from `trace_channels`, with images of the same size as for the target.
      target_graph: likewise.
    """
    return {
        "standardize": standardize_flat,
        "match": functools.partial(
            match_each_once, source_graph=source_graph, target_graph=target_graph
        ),
        "rule": functools.partial(rules.variance, pad="zero", shuffle=False),
        "channels": ConsistentChannels(source_graph, target_graph, rank="first", grow="copy"),
        "head": "keep",
        "kinds": ("conv", "dense", "norm", "bias"),
        "insert": "identity",
    }
