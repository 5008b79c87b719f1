"""Squeeze-and-excitation (arXiv 1709.01507), as `torchvision.ops.SqueezeExcitation` computes it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from tlv_jax.models.layers import conv

__all__ = ["SqueezeExcitation"]


class SqueezeExcitation(nn.Module):
    """Scales each channel by what a small network makes of all channels' means.

    Attributes:
      squeezed: channels between the two layers.
      activation: between the two layers.
      gate: turns the second layer's outputs into scales.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    squeezed: int
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        means = inputs.mean((1, 2), keepdims=True)
        hidden = conv(self.squeezed, 1, use_bias=True, name="fc1", **types)(means)
        scales = conv(inputs.shape[-1], 1, use_bias=True, name="fc2", **types)(
            self.activation(hidden)
        )
        return inputs * self.gate(scales)
