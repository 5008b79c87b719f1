"""What a network consists of: its layers in order, the graph between them, and their channels."""

from tlv_jax.layers.blocks import standardize_blocks, standardize_flat, standardize_graph
from tlv_jax.layers.channels import ChannelGraph, LayerLabels

__all__ = [
    "ChannelGraph",
    "LayerLabels",
    "standardize_blocks",
    "standardize_flat",
    "standardize_graph",
]
