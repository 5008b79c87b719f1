"""Small parameter trees that several test modules plan with."""

import functools

import jax
import numpy as np

import tlv_jax
from tlv_jax import models
from tlv_jax.layers.paths import array_leaves

VGG16_TO_RESNET18 = [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 10, 10, 11, 12, 12]
# Of source and target: larger and smaller in space and in either channel, of every rank.
KERNEL_SHAPES = [
    ((3, 3, 6, 8), (3, 3, 4, 5)),
    ((3, 3, 4, 5), (5, 5, 7, 8)),
    ((5, 5, 4, 8), (3, 3, 7, 6)),
    ((4, 9), (6, 2)),
    ((3, 2, 4), (4, 3, 3)),
]


@functools.cache
def shapes(name, num_classes=10):
    """The variables of an architecture of the zoo as `jax.ShapeDtypeStruct`s."""
    return models.abstract_variables(models.create(name, num_classes=num_classes))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_variables(shapes, seed):
    """Variables of a network at the scale of a trained one, running statistics among them."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape, np.float32)
        match path[-1].key:
            case "var":
                return np.abs(noise) + np.float32(0.5)
            case "scale":
                return 1 + noise / 10
            case "bias" | "mean":
                return noise / 10
        return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def source_tree():
    """A three-layer network with biases and a norm."""
    return {
        "conv1": {"kernel": normal(0, 3, 3, 3, 8), "bias": normal(1, 8)},
        "bn1": {"scale": normal(2, 8), "bias": normal(3, 8)},
        "conv2": {"kernel": normal(4, 3, 3, 8, 8), "bias": normal(5, 8)},
        "conv10": {"kernel": normal(6, 1, 1, 8, 16), "bias": normal(7, 16)},
        "fc": {"kernel": normal(8, 16, 20), "bias": normal(9, 20)},
    }


def target_tree():
    """A smaller network, its kernels 5x5, with a norm of another width."""
    return {
        "conv1": {"kernel": normal(10, 5, 5, 3, 6), "bias": normal(11, 6)},
        "bn1": {"scale": normal(12, 6), "bias": normal(13, 6)},
        "conv2": {"kernel": normal(14, 3, 3, 6, 4), "bias": normal(15, 4)},
        "fc": {"kernel": normal(16, 4, 2), "bias": normal(17, 2)},
    }


def small_fn(params, images):
    """A stem with a norm, a block that adds to it, and one more if there is any; a dense layer."""

    def conv(x, layer, strides=1):
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (strides,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + layer["bias"][None, None, None]

    norm = {name: vector[None, None, None] for name, vector in params["norm"].items()}
    x = conv(images, params["stem"])
    x = (x - norm["mean"]) * jax.lax.rsqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    x = jax.nn.relu(x)
    for name in ("block", "more"):
        if name in params:
            x = x + conv(x, params[name])
    x = jax.nn.relu(conv(x, params["out"], 2))
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"][None]


def small_network(seed, width, last, size=3, more=False):
    """`small_fn` traced with random parameters, its channels `width` and then `last`."""
    shapes = {
        "stem": (size, size, 3, width),
        "block": (3, 3, width, width),
        "out": (size, size, width, last),
        "fc": (last, 5),
    }
    if more:
        shapes["more"] = shapes["block"]
    params = {
        name: {"kernel": normal(seed + i, *shape), "bias": normal(seed + 10 + i, shape[-1])}
        for i, (name, shape) in enumerate(shapes.items())
    }
    params["norm"] = {
        name: np.abs(normal(seed + 20 + i, width))
        for i, name in enumerate(("scale", "bias", "mean", "var"))
    }
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    return tlv_jax.trace(small_fn, params, images)


def leaves(tree):
    """The arrays of a tree by path."""
    return array_leaves(tree, name="tree")
