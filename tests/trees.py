"""Small parameter trees that several test modules plan with."""

import functools

import jax
import numpy as np

from tlv_jax import models

VGG16_TO_RESNET18 = [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 10, 10, 11, 12, 12]


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
