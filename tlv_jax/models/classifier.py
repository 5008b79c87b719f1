"""What every network, and every part of one, has in common.

Shapes: images `[B, H, W, C]`, of which `H'` and `W'` remain; `D` channels; `N` is `num_classes`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.images import check_images
from tlv_jax.models.layers import conv

__all__ = ["Classifier", "TypedModule"]


class TypedModule(nn.Module, kw_only=True):
    """A network or a part of one, with the types that it computes in and keeps parameters in.

    Attributes:
      dtype: of the computation. Batch norms and the softmax of attention compute in float32 at
        least.
      param_dtype: of the parameters. Running statistics are float32 in any case.
    """

    dtype: Any
    param_dtype: Any

    @property
    def types(self) -> dict[str, Any]:
        """Both types, to be handed on to a submodule as `**self.types`."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv_norm(
        self,
        inputs: jax.Array,
        width: int,
        size: int,
        name: str,
        *,
        train: bool,
        stride: int = 1,
        groups: int = 1,
        norm: Callable[..., BatchNorm] = BatchNorm,
    ) -> jax.Array:
        """A convolution and a batch norm. `[B, H, W, I] -> [B, H / stride, W / stride, width]`.

        Args:
          inputs: activations.
          width: output channels.
          size: side of the kernel.
          name: the two submodules are `{name}.0` and `{name}.1`, as in torchvision's
            `Conv2dNormActivation`.
          train: whether the norm uses the batch's statistics.
          stride: for both sides.
          groups: of the convolution.
          norm: makes the batch norm.
        """
        layer = conv(width, size, stride=stride, groups=groups, name=f"{name}.0", **self.types)
        return norm(name=f"{name}.1", **self.types)(layer(inputs), train=train)


class Classifier(TypedModule, kw_only=True):
    """A network that classifies images.

    A family adds its `config`, the method `_maps`, and a `setup` that makes its last layer.

    Attributes:
      config: one of the family's `VARIANTS`.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: see `TypedModule`.
      param_dtype: see `TypedModule`.
    """

    config: Any
    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    _smallest: ClassVar[int] = 1  # pixels a side that leave something to pool

    def __call__(self, images: jax.Array, *, train: bool = False) -> Any:
        """Classifies images. `[B, H, W, C] -> [B, N]`.

        Args:
          images: normalized as the weights expect.
          train: normalize with the batch's statistics, which needs `mutable=["batch_stats"]`, and
            drop at random, which needs the rng "dropout".

        Raises:
          ImageError: as `features`.
        """
        return self.head(self.features(images, train=train), train=train)

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature maps, averaged over all places. `[B, H, W, C] -> [B, D]`.

        Args:
          images: as for `__call__`.
          train: as for `__call__`.

        Raises:
          ImageError: for images of another channel count, or too small for the network's pooling.
        """
        check_images(images, channels=self.in_channels, smallest=self._smallest)
        return self._maps(images, train=train).mean((1, 2))

    def head(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The logits of what `features` returns, by dropout and the last layer. `[B, D] -> [B, N]`.

        Args:
          features: `[B, D]`.
          train: drop at random, which needs the rng "dropout" if the network has dropout here.
        """
        return self.logits(self.drop(features, deterministic=not train))

    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The last feature maps. `[B, H, W, C] -> [B, H', W', D]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no _maps.")

    def _make_last_layer(
        self,
        name: str,
        *,
        kernel_init: Callable[..., jax.Array],
        bias_init: Callable[..., jax.Array] = nn.initializers.zeros,
        dropout: float = 0.0,
    ) -> None:
        """Called in `setup`: makes what `head` consists of."""
        self.drop = nn.Dropout(dropout)
        self.logits = nn.Dense(
            self.num_classes, kernel_init=kernel_init, bias_init=bias_init, name=name, **self.types
        )
