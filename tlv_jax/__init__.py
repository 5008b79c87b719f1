"""Carry pretrained weights into any other convolutional architecture.

    new_params = tlv_jax.transfer(src_params, dst_params)

The core: pure functions over parameter pytrees, on jax and numpy alone.
"""

from tlv_jax import presets, rules
from tlv_jax.blocks import standardize_blocks, standardize_graph
from tlv_jax.channels import ChannelGraph, LayerLabels, trace_channels
from tlv_jax.consistency import ConsistentChannels
from tlv_jax.crossover import crossover
from tlv_jax.deepening import match_each_once
from tlv_jax.errors import (
    NonFiniteSourceError,
    NoSourceLayerError,
    OptionError,
    ParameterTreeError,
    PlanMismatchError,
    TLVError,
)
from tlv_jax.matching import (
    match_bipartite,
    match_by_coverage,
    match_by_index,
    match_by_score,
    match_by_score_flat,
    match_random,
)
from tlv_jax.plan import TransferPlan
from tlv_jax.planning import plan_transfer
from tlv_jax.report import LayerReport, TransferReport, report
from tlv_jax.scores import position_scores, shape_scores
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.standardization import standardize_flat
from tlv_jax.statistics import recompute_statistics
from tlv_jax.tracing import trace_layers
from tlv_jax.transfer import apply_transfer, transfer
from tlv_jax.types import Layer, LayerPair, Untouched

__all__ = [
    "ChannelGraph",
    "ConsistentChannels",
    "Layer",
    "LayerLabels",
    "LayerPair",
    "LayerReport",
    "NoSourceLayerError",
    "NonFiniteSourceError",
    "OptionError",
    "ParameterTreeError",
    "PlanMismatchError",
    "SimilarityWarning",
    "TLVError",
    "TransferPlan",
    "TransferReport",
    "Untouched",
    "apply_transfer",
    "crossover",
    "match_bipartite",
    "match_by_coverage",
    "match_by_index",
    "match_by_score",
    "match_by_score_flat",
    "match_each_once",
    "match_random",
    "plan_transfer",
    "position_scores",
    "presets",
    "recompute_statistics",
    "report",
    "rules",
    "shape_scores",
    "similarity",
    "standardize_blocks",
    "standardize_flat",
    "standardize_graph",
    "trace_channels",
    "trace_layers",
    "transfer",
]
