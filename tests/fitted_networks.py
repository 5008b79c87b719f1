"""Small networks of three kinds and photographs, for tests of `tlv_jax.fit`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import skimage.data

import tlv_jax

SIDE = 24
PICTURES = ("chelsea", "coffee", "rocket", "astronaut")


def photographs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of photographs at half their size, normalized, and which photograph each is of."""
    whole = [getattr(skimage.data, name)() for name in PICTURES]
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(whole), size=count)
    crops = []
    for label in labels:
        top, left = (generator.integers(size - 2 * SIDE) for size in whole[label].shape[:2])
        crops.append(whole[label][top : top + 2 * SIDE : 2, left : left + 2 * SIDE : 2])
    return (np.stack(crops).astype(np.float32) / 255 - 0.45) / 0.23, labels


class Inverted(nn.Module):
    """Two inverted residual blocks with linear bottlenecks, as in MobileNetV2."""

    width: int = 8
    expanded: int = 24
    last: int = 32

    @nn.compact
    def __call__(self, images, train=False, head=True):
        x = self.unit("stem", images, self.width, 3, train, strides=2)
        for number, strides in enumerate((2, 1)):
            inner = self.unit(f"expand{number}", x, self.expanded, 1, train)
            groups = self.expanded
            inner = self.unit(f"depthwise{number}", inner, groups, 3, train, strides, groups)
            inner = self.unit(f"project{number}", inner, self.width, 1, train, linear=True)
            x = x + inner if strides == 1 else inner
        x = self.unit("last", x, self.last, 1, train)
        x = x.mean((1, 2))
        return nn.Dense(len(PICTURES), name="head")(x) if head else x

    def unit(self, name, x, features, size, train, strides=1, groups=1, linear=False):
        options = {"use_bias": False, "feature_group_count": groups, "name": name}
        x = nn.Conv(features, (size, size), strides, **options)(x)
        x = nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x)
        return x if linear else nn.relu6(x)


class Residual(nn.Module):
    """Basic blocks, whose sums go through a ReLU, as in ResNet18."""

    width: int = 8

    @nn.compact
    def __call__(self, images, train=False, head=True):
        x = nn.relu(self.unit("stem", images, self.width, 3, train, 2))
        for number, strides in enumerate((1, 2)):
            features = x.shape[-1] * strides
            inner = nn.relu(self.unit(f"first{number}", x, features, 3, train, strides))
            inner = self.unit(f"second{number}", inner, features, 3, train)
            if strides > 1:
                x = self.unit(f"skip{number}", x, features, 1, train, strides)
            x = nn.relu(x + inner)
        x = x.mean((1, 2))
        return nn.Dense(len(PICTURES), name="head")(x) if head else x

    def unit(self, name, x, features, size, train, strides=1):
        x = nn.Conv(features, (size, size), strides, use_bias=False, name=name)(x)
        return nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x)


class Plain(nn.Module):
    """Convolutions with biases and pools, as in VGG11; or with norms too, as in VGG11-BN.

    The head reads averages over all places, or all places in a row.
    """

    width: int = 8
    norm: bool = False
    flat: bool = False

    @nn.compact
    def __call__(self, images, train=False, head=True):
        x = images
        for number, factor in enumerate((1, 1, 2, 2)):
            x = nn.Conv(factor * self.width, (3, 3), name=f"conv{number}")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x) if self.norm else x)
            if number % 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1) if self.flat else x.mean((1, 2))
        return nn.Dense(len(PICTURES), name="head")(x) if head else x


def drawn(model: nn.Module, images: np.ndarray, seed: int) -> Any:
    """Random variables, with the running statistics of the images."""
    variables = jax.jit(model.init)(jax.random.key(seed), images[:1])
    if "batch_stats" not in variables:
        return variables

    @jax.jit
    def update(statistics, images):
        each = {"params": variables["params"], "batch_stats": statistics}
        return model.apply(each, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = tlv_jax.recompute_statistics(update, variables["batch_stats"], [images])
    return {**variables, "batch_stats": statistics}


def trained(model: nn.Module, seed: int, steps: int = 80) -> Any:
    """Variables of a model that tells most of the photographs apart."""
    images, labels = photographs(512, seed)
    variables = drawn(model, images[:128], seed)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(variables, state, images, labels):
        def loss(params):
            each = {**variables, "params": params}
            logits, updated = model.apply(each, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        changes, state = optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], changes)
        return {**variables, **updated, "params": params}, state

    state = optimizer.init(variables["params"])
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        some = generator.integers(len(images), size=64)
        variables, state = step(variables, state, images[some], labels[some])
    return variables


@functools.cache
def _reader(model: nn.Module) -> Callable[[Any, np.ndarray], jax.Array]:
    return jax.jit(functools.partial(model.apply, head=False))


def features_of(model: nn.Module, variables: Any, images: np.ndarray) -> np.ndarray:
    """What the head reads, `[N, D]`."""
    return np.asarray(_reader(model)(variables, images), np.float64)


def explained(given: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The share of variance of features that others explain, by a ridge regression.

    Args:
      given: the others, of the images that it is fitted to and of held-out ones.
      wanted: the features, likewise. The share is that of held-out images.
    """
    (a, other_a), (z, other_z) = given, wanted
    centred = a - a.mean(0)
    gram = centred.T @ centred
    gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, centred.T @ (z - z.mean(0)))
    wrong = (other_a - a.mean(0)) @ weights + z.mean(0) - other_z
    return float(1 - (wrong**2).sum() / ((other_z - z.mean(0)) ** 2).sum())
