"""Squeeze-and-excitation (arXiv 1709.01507), as `torchvision.ops.SqueezeExcitation` computes it."""

from collections.abc import Callable

import flax.linen as nn
import jax

from tlv_jax.models.classifier import TypedModule
from tlv_jax.models.layers import conv, he_normal_fan_out

__all__ = ["SqueezeExcitation"]


class SqueezeExcitation(TypedModule):
    """Scales each channel by what a small network makes of all channels' means.

    Attributes:
      squeezed: channels between the two layers.
      activation: between the two layers.
      gate: turns the second layer's outputs into scales.
      kernel_init: of both kernels.
    """

    squeezed: int
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]
    kernel_init: Callable[..., jax.Array] = he_normal_fan_out

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        settings = {"use_bias": True, "kernel_init": self.kernel_init, **self.types}
        means = inputs.mean((1, 2), keepdims=True)
        hidden = conv(self.squeezed, 1, name="fc1", **settings)(means)
        scales = conv(inputs.shape[-1], 1, name="fc2", **settings)(self.activation(hidden))
        return inputs * self.gate(scales)
