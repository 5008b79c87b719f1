"""Architectures of the zoo at 64 pixels and with ten classes: networks, variables, answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import trees

import tlv_jax
from tlv_jax import models


@functools.cache
def network_of(name, seed=None):
    """An architecture of the zoo, traced; its arrays are shapes, or drawn with a seed."""
    if seed is not None:
        return dataclasses.replace(network_of(name), params=variables_of(name, seed))
    model = models.create(name, num_classes=10)
    side = getattr(model, "image_size", max(64, model._smallest))
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return tlv_jax.trace(model.apply, trees.shapes(name), images)


@functools.cache
def variables_of(name, seed):
    return trees.random_variables(trees.shapes(name), seed)


def logits(name, variables):
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 3)).astype(np.float32)
    return jax.jit(models.create(name, num_classes=10).apply)(variables, images)
