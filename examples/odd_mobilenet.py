"""A small mobile network that is in no zoo: nobody has pretrained weights for it.

It stands for the network that you design yourself: its widths, depths and kernel sizes are those of
no published architecture. The code is plain Flax Linen and knows nothing of tlv_jax. `make demo`
starts it from the weights of EfficientNet-Lite0.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of each stage: blocks, width, kernel size, stride of the first block, expansion inside a block.
STAGES = ((1, 20, 3, 1, 2), (2, 28, 3, 2, 5), (3, 52, 4, 2, 5), (5, 92, 5, 2, 4), (2, 172, 4, 1, 6))
STEM, FEATURES = 28, 900


class ConvNorm(nn.Module):
    """A convolution, and a norm behind it. `[B, H, W, C] -> [B, H / stride, W / stride, width]`."""

    width: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # noqa: D102
        x = nn.Conv(
            self.width, (self.kernel, self.kernel), self.stride, feature_group_count=self.groups,
            use_bias=self.norm == "none", kernel_init=nn.initializers.he_normal(), dtype=self.dtype,
        )(x)  # fmt: skip
        if self.norm == "batch":
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        elif self.norm == "group":
            x = nn.GroupNorm(num_groups=4, dtype=self.dtype)(x)
        return x


class Block(nn.Module):
    """Widens, filters each channel on its own, and narrows. Shapes as of `ConvNorm`."""

    width: int
    kernel: int
    stride: int
    expansion: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # noqa: D102
        conv = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        wide = self.expansion * x.shape[-1]
        y = nn.relu6(conv(wide)(x, train))
        y = conv(wide, self.kernel, self.stride, groups=wide)(y, train)
        y = conv(self.width)(nn.relu6(y), train)
        return x + y if x.shape == y.shape else y


class OddMobileNet(nn.Module):
    """The network. All that `python -m train` asks of it is this one call.

    `norm` is `batch`, `group` or `none`.
    """

    num_classes: int = 2
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """From images to logits. `[B, H, W, 3] -> [B, num_classes]`."""
        conv = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        x = nn.relu6(conv(STEM, 3, 2)(images, train))
        for blocks, width, kernel, stride, expansion in STAGES:
            for number in range(blocks):
                first = stride if number == 0 else 1
                x = Block(width, kernel, first, expansion, self.norm, self.dtype)(x, train)
        features = nn.relu6(conv(FEATURES)(x, train)).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(features)
