"""A user's own network, as small as one that is trained by several test modules can be."""

from typing import Any

import flax.linen as nn

from tlv_jax.models import BatchNorm


class Net(nn.Module):
    """One convolution, with the methods that every model of the zoo has."""

    width: int = 8
    num_classes: int = 2
    dtype: Any = None
    dropout: float = 0.0

    def setup(self):
        self.conv, self.norm = nn.Conv(self.width, (3, 3), dtype=self.dtype), BatchNorm()
        self.drop_maps, self.drop = nn.Dropout(self.dropout), nn.Dropout(self.dropout)
        self.dense = nn.Dense(self.num_classes)

    def features(self, images, *, train=False):
        maps = self.drop_maps(self.norm(self.conv(images), train=train), deterministic=not train)
        return nn.relu(maps).mean((1, 2))

    def head(self, features, *, train=False):
        return self.dense(self.drop(features, deterministic=not train))

    def __call__(self, images, *, train=False):
        return self.head(self.features(images, train=train), train=train)
