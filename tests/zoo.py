"""Architectures of the zoo at 64 pixels and with ten classes: channels, variables, answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import trees

import tlv_jax
from tlv_jax import models


@functools.cache
def graph_of(name):
    """The channels of an architecture of the zoo, its variables as one tree."""
    model = models.create(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return tlv_jax.trace_channels(model.apply, trees.shapes(name), images)


@functools.cache
def variables_of(name, seed):
    return trees.random_variables(trees.shapes(name), seed)


def logits(name, variables):
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 3)).astype(np.float32)
    return jax.jit(models.create(name, num_classes=10).apply)(variables, images)
