"""The zoo's networks, transformed, are the same networks: values and gradients."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import tlv_jax
from tests.helpers import relative_error
from tlv_jax import models


@pytest.mark.slow  # two compilations of each
@pytest.mark.parametrize("name", models.names())
def test_networks_and_their_gradients(key, name):
    size = 96 if name in ("inception_v3", "alexnet") else 64
    size = 224 if name.startswith(("vit", "maxvit")) else size
    model = models.create(name, num_classes=3)
    images = jax.random.normal(key, (1, size, size, 3))
    variables = jax.jit(model.init)(key, images)

    def loss(apply):
        weights = jnp.array([[1.0, -2.0, 3.0]])
        return lambda params: jnp.vdot(weights, apply({**variables, "params": params}, images))

    expected, actual = (
        jax.jit(jax.value_and_grad(loss(apply)))(variables["params"])
        for apply in (model.apply, tlv_jax.cpu_convolutions(model.apply))
    )
    assert relative_error(actual[0], expected[0]) < 1e-4
    # As one vector: rounding turns single units of a ReLU on or off, which moves few gradients.
    new, old = (ravel_pytree(gradients)[0] for _, gradients in (actual, expected))
    assert jnp.linalg.norm(new - old) < 0.02 * jnp.linalg.norm(old)
