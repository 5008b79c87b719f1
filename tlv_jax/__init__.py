"""Carry pretrained weights into any other convolutional architecture.

The core: pure functions over parameter pytrees, on jax, numpy and scipy only. A network is any JAX
function with its parameters:

    >>> import jax
    >>> import numpy as np
    >>> import tlv_jax
    >>> def conv(x, kernel):
    ...     layout = ("NHWC", "HWIO", "NHWC")
    ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    >>> def apply(params, images):
    ...     x = jax.nn.relu(conv(images, params["stem"]))
    ...     x = jax.nn.relu(conv(x, params["body"]))
    ...     return x.mean((1, 2)) @ params["head"]
    >>> def draw(width, seed):
    ...     normal = np.random.default_rng(seed).standard_normal
    ...     shapes = {"stem": (3, 3, 3, width), "body": (3, 3, width, 24), "head": (24, 2)}
    ...     return {name: normal(shape, "float32") for name, shape in shapes.items()}
    >>> labels = np.arange(64) % 2
    >>> images = np.random.default_rng(2).standard_normal((64, 8, 8, 3), "float32")
    >>> images += labels[:, None, None, None]

One network gives its weights to another:

    >>> params = draw(width=8, seed=1)
    >>> src = tlv_jax.trace(apply, draw(width=12, seed=0), images)
    >>> dst = tlv_jax.trace(apply, params, images)
    >>> new_params = tlv_jax.transfer(src, dst)

All examples of this package go on from here.
"""

from tlv_jax import layers, matching, methods, plots, rules
from tlv_jax.batch_stats import recompute_statistics
from tlv_jax.consistent.plan import ConsistentChannels
from tlv_jax.cpu_convolutions import cpu_convolutions
from tlv_jax.crossover import crossover
from tlv_jax.errors import (
    NonFiniteSourceError,
    NoSourceLayerError,
    OptionError,
    PackageError,
    ParameterTreeError,
    PlanMismatchError,
    TLVError,
    UnknownOrderWarning,
)
from tlv_jax.fit import FitReport, FittedLayer, fit, fit_report
from tlv_jax.fitting.settings import Fit
from tlv_jax.lsuv import lsuv
from tlv_jax.methods import Method
from tlv_jax.network import Network, trace
from tlv_jax.pages import html_report
from tlv_jax.plan import TransferPlan
from tlv_jax.probe import ProbeResult, probe
from tlv_jax.report import LayerReport, TransferReport, report
from tlv_jax.ridge_head import ridge_head
from tlv_jax.similarity import SimilarityWarning, similarity
from tlv_jax.transfer import apply_transfer, plan_transfer, transfer
from tlv_jax.types import Layer, LayerPair, Untouched

__all__ = [
    "ConsistentChannels",
    "Fit",
    "FitReport",
    "FittedLayer",
    "Layer",
    "LayerPair",
    "LayerReport",
    "Method",
    "Network",
    "NoSourceLayerError",
    "NonFiniteSourceError",
    "OptionError",
    "PackageError",
    "ParameterTreeError",
    "PlanMismatchError",
    "ProbeResult",
    "SimilarityWarning",
    "TLVError",
    "TransferPlan",
    "TransferReport",
    "UnknownOrderWarning",
    "Untouched",
    "apply_transfer",
    "cpu_convolutions",
    "crossover",
    "fit",
    "fit_report",
    "html_report",
    "layers",
    "lsuv",
    "matching",
    "methods",
    "plan_transfer",
    "plots",
    "probe",
    "recompute_statistics",
    "report",
    "ridge_head",
    "rules",
    "similarity",
    "trace",
    "transfer",
]
