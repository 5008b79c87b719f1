"""Swin transformers of both versions, as torchvision builds them.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030);
"Swin Transformer V2: Scaling Up Capacity and Resolution" (arXiv 2111.09883).

Shapes: images `[B, H, W, C]`; `D` is the last stage's width; `N` is `num_classes`;
`P` pixels of a window; `K` channels of a head of the attention.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from tlv_jax.models.classifier import Classifier, TypedModule
from tlv_jax.models.layers import conv, stochastic_depth, uniform_fan, uniform_within
from tlv_jax.models.windows import from_windows, relative_position_index, to_windows

__all__ = ["VARIANTS", "Swin", "SwinConfig", "relative_coordinates"]


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """What tells one Swin transformer from another.

    Attributes:
      width: channels of the first stage; each later one has twice as many.
      depths: number of blocks in each stage.
      heads: of the attention in each stage.
      stochastic_depth: rate at which the last block's branches are dropped in training; it grows
        from 0 at the first.
      window: pixels a side within which a block attends.
      second: version 2: cosine attention, a bias that a small network makes of the displacement,
        and norms behind the branches.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    stochastic_depth: float
    window: int = 7
    second: bool = False

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        """Names of the blocks, each with its stage and its number in the stage."""
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                yield f"features.{2 * stage + 1}.{number}", stage, number


_T = SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), stochastic_depth=0.2)
_S = SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), stochastic_depth=0.3)
_B = SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), stochastic_depth=0.5)
VARIANTS: Mapping[str, SwinConfig] = MappingProxyType(
    {
        "swin_t": _T,
        "swin_s": _S,
        "swin_b": _B,
        "swin_v2_t": dataclasses.replace(_T, window=8, second=True),
        "swin_v2_s": dataclasses.replace(_S, window=8, second=True),
        "swin_v2_b": dataclasses.replace(_B, window=8, second=True),
    }
)
_PATCH = 4  # pixels a side of what becomes one pixel of the first stage
_MLP_RATIO = 4
_POSITION_HIDDEN = 512  # channels of the network that makes version 2's bias
_MASKED = -100.0  # added to the score of two pixels that the cyclic shift brought together
_normal = nn.initializers.normal(0.02)
_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class Swin(Classifier):
    """A Swin transformer whose parameters carry torchvision's names (`features.1.0/attn/qkv`).

    With `train=True` residual branches are dropped at random, image by image.
    """

    config: SwinConfig
    _smallest: ClassVar[int] = _PATCH

    def setup(self) -> None:  # noqa: D102
        self._make_last_layer("head", kernel_init=_normal)

    @nn.compact
    def _maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        config = self.config
        stem = conv(
            config.width,
            _PATCH,
            stride=_PATCH,
            padding=0,
            use_bias=True,
            kernel_init=uniform_fan,
            bias_init=uniform_within((_PATCH**2 * self.in_channels) ** -0.5),
            name="features.0.0",
            **self.types,
        )
        outputs = _norm(name="features.0.2", **self.types)(stem(images))
        last = sum(config.depths) - 1
        for index, (name, stage, number) in enumerate(config.blocks()):
            if stage > 0 and number == 0:
                merge = PatchMerging(config.second, name=f"features.{2 * stage}", **self.types)
                outputs = merge(outputs)
            block = Block(
                config,
                heads=config.heads[stage],
                shift=config.window // 2 * (number % 2),
                drop_rate=config.stochastic_depth * index / last,
                name=name,
                **self.types,
            )
            outputs = block(outputs, train=train)
        return _norm(name="norm", **self.types)(outputs)


class PatchMerging(TypedModule):
    """Halves both sides, rounded up, and doubles the channels.

    Attributes:
      second: whether the norm comes last, as in version 2.
    """

    second: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H / 2, W / 2, 2 * C]`."""
        _, height, width, channels = inputs.shape
        even = jnp.pad(inputs, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        # Column by column, the order of the channels in the checkpoints.
        corners = [even[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        outputs = jnp.concatenate(corners, axis=-1)
        reduce = nn.Dense(
            2 * channels, use_bias=False, kernel_init=_normal, name="reduction", **self.types
        )
        norm = _norm(name="norm", **self.types)
        return norm(reduce(outputs)) if self.second else reduce(norm(outputs))


class Block(TypedModule):
    """Attention within windows and two dense layers, each a residual branch.

    Attributes:
      config: of the network.
      heads: of the attention.
      shift: pixels by which the windows are displaced.
      drop_rate: at which an image's residual branches are dropped in training.
    """

    config: SwinConfig
    heads: int
    shift: int
    drop_rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        attend = WindowAttention(self.config, self.heads, self.shift, name="attn", **self.types)
        drop = stochastic_depth(self.drop_rate)
        norm1, norm2 = (_norm(name=name, **self.types) for name in ("norm1", "norm2"))
        if self.config.second:
            outputs = inputs + drop(norm1(attend(inputs)), deterministic=not train)
            return outputs + drop(norm2(self._mlp(outputs)), deterministic=not train)
        outputs = inputs + drop(attend(norm1(inputs)), deterministic=not train)
        return outputs + drop(self._mlp(norm2(outputs)), deterministic=not train)

    def _mlp(self, inputs: jax.Array) -> jax.Array:
        channels, settings = inputs.shape[-1], {"kernel_init": _normal, **self.types}
        hidden = nn.Dense(_MLP_RATIO * channels, name="mlp.0", **settings)(inputs)
        return nn.Dense(channels, name="mlp.3", **settings)(nn.gelu(hidden, approximate=False))


class WindowAttention(TypedModule):
    """Attention among the pixels of each window.

    Sides that the window does not divide are padded. Windows are displaced by a cyclic shift, under
    which pixels from opposite edges do not see each other; along a side that a single window
    covers nothing is shifted.

    Attributes:
      config: of the network.
      heads: among which the channels are divided.
      shift: pixels by which the windows are displaced.
    """

    config: SwinConfig
    heads: int
    shift: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        window, types = self.config.window, self.types
        _, height, width, channels = inputs.shape
        pads = (-height % window, -width % window)
        sides = (height + pads[0], width + pads[1])
        shifts = tuple(self.shift if side > window else 0 for side in sides)
        padded = jnp.pad(inputs, ((0, 0), (0, pads[0]), (0, pads[1]), (0, 0)))
        shifted = jnp.roll(padded, (-shifts[0], -shifts[1]), (1, 2)) if any(shifts) else padded

        bias = jnp.expand_dims(self._position_bias(), (0, 1))  # of every image and window
        if any(shifts):
            bias = bias + _shift_mask(sides, window, shifts).astype(bias.dtype)
        windows = to_windows(shifted, window)
        project = QueryKeyValue(key_bias=not self.config.second, name="qkv", **types)
        parts = project(windows).reshape(*windows.shape[:-1], 3, self.heads, channels // self.heads)
        query, key, value = (parts[..., part, :, :] for part in range(3))
        weights = jax.nn.softmax(self._scores(query, key) + bias).astype(value.dtype)
        mixed = jnp.einsum("bwhqk,bwkhc->bwqhc", weights, value).reshape(windows.shape)
        outputs = nn.Dense(channels, kernel_init=_normal, name="proj", **types)(mixed)

        outputs = from_windows(outputs, window, sides)
        if any(shifts):
            outputs = jnp.roll(outputs, shifts, (1, 2))
        return outputs[:, :height, :width]

    def _scores(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Similarity of pixels. `[B, W, P, heads, K]`, twice `-> [B, W, heads, P, P]`."""
        wide = jnp.promote_types(query.dtype, jnp.float32)
        if not self.config.second:
            query = query * query.shape[-1] ** -0.5
            return jnp.einsum("bwqhc,bwkhc->bwhqk", query, key, preferred_element_type=wide)
        scale = self.param(
            "logit_scale",
            nn.initializers.constant(np.log(10)),
            (self.heads, 1, 1),
            self.param_dtype,
        )
        scale = jnp.exp(jnp.minimum(scale.astype(wide), np.log(100)))
        cosines = jnp.einsum(
            "bwqhc,bwkhc->bwhqk", _unit(query), _unit(key), preferred_element_type=wide
        )
        return cosines * jnp.expand_dims(scale, (0, 1))

    def _position_bias(self) -> jax.Array:
        """What the displacement adds to the score. `[heads, P, P]`."""
        window, types = self.config.window, self.types
        index = relative_position_index(window)
        if not self.config.second:
            table = self.param(
                "relative_position_bias_table",
                _normal,
                ((2 * window - 1) ** 2, self.heads),
                self.param_dtype,
            )
            wide = table.astype(jnp.promote_types(self.dtype, jnp.float32))
            return wide[index].transpose(2, 0, 1)
        hidden = nn.Dense(_POSITION_HIDDEN, kernel_init=_normal, name="cpb_mlp.0", **types)
        make = nn.Dense(self.heads, use_bias=False, kernel_init=_normal, name="cpb_mlp.2", **types)
        table = make(nn.relu(hidden(relative_coordinates(window)))).reshape(-1, self.heads)
        wide = table.astype(jnp.promote_types(self.dtype, jnp.float32))
        # Between 0 and 16, as torchvision bounds it.
        return 16 * nn.sigmoid(wide[index].transpose(2, 0, 1))


class QueryKeyValue(TypedModule):
    """One dense layer for all three, of which the keys may go without their bias.

    Attributes:
      key_bias: whether the keys have a bias. Without it torch still keeps one in the checkpoint.
    """

    key_bias: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[..., C] -> [..., 3 * C]`."""
        channels = inputs.shape[-1]
        kernel = self.param("kernel", _normal, (channels, 3 * channels), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * channels,), self.param_dtype)
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        if not self.key_bias:
            bias = bias * np.repeat(np.array([1, 0, 1], bias.dtype), channels)
        outputs = inputs @ kernel
        return outputs + jnp.expand_dims(bias, tuple(range(outputs.ndim - 1)))


def relative_coordinates(window: int) -> np.ndarray:
    """Every displacement within a window, on a logarithmic scale. float32 `[1, L, L, 2]`.

    `L` is `2 * window - 1`: from the last row or column to the first, and back.
    """
    steps = np.arange(1 - window, window, dtype=np.float32)
    # torchvision's scale: up to 8, whose binary logarithm is 3.
    steps = steps / np.float32(window - 1) * np.float32(8)
    steps = np.sign(steps) * np.log2(np.abs(steps) + np.float32(1)) / np.float32(3)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)[None]


def _shift_mask(sides: tuple[int, int], window: int, shifts: tuple[int, ...]) -> np.ndarray:
    """Forbids pixels that the cyclic shift brought together. `[1, W, 1, P, P]`."""
    regions = []
    for side, shift in zip(sides, shifts, strict=True):
        region = np.zeros(side, np.int64)
        if shift:
            region[side - window : side - shift], region[side - shift :] = 1, 2
        regions.append(region)
    both = 3 * regions[0][:, None] + regions[1][None, :]
    rows, columns = sides[0] // window, sides[1] // window
    cut = both.reshape(rows, window, columns, window).swapaxes(1, 2).reshape(-1, 1, window**2)
    return np.where(cut == cut.swapaxes(1, 2), 0.0, _MASKED)[None, :, None]


def _unit(vectors: jax.Array) -> jax.Array:
    """Scales the last axis to length one, as `torch.nn.functional.normalize`."""
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(lengths, 1e-12)
