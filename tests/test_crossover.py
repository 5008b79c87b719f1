import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tlv_jax


@pytest.mark.parametrize(("width", "lent"), [(6, 6), (6, 4), (4, 6)])
def test_rate_one_lends_every_shared_feature(key, width, lent):
    features, support = jnp.zeros((3, width)), jnp.ones((3, lent))
    crossed = np.asarray(tlv_jax.crossover(key, features, support, rate=1.0))
    shared = min(width, lent)
    assert (crossed[:, :shared] == 1).all()
    assert (crossed[:, shared:] == 0).all()


def test_rate_zero_changes_nothing(key):
    features = jax.random.normal(key, (3, 5))
    crossed = tlv_jax.crossover(key, features, jnp.ones((3, 5)), rate=0.0)
    np.testing.assert_array_equal(crossed, features)


def test_each_feature_of_each_example_is_lent_at_the_rate(key):
    crossed = np.asarray(
        tlv_jax.crossover(key, jnp.zeros((400, 50)), jnp.ones((400, 50)), rate=0.1)
    )
    # 20,000 draws: the standard error of the share is 0.002.
    assert crossed.mean() == pytest.approx(0.1, abs=0.01)
    assert len({row.tobytes() for row in crossed}) > 390


def test_the_lender_gets_no_gradient_and_replaced_features_get_none(key):
    features, support = jnp.ones((4, 6)), jnp.full((4, 6), 2.0)

    def total(features, support):
        return tlv_jax.crossover(key, features, support, rate=0.5).sum()

    to_features, to_support = jax.grad(total, argnums=(0, 1))(features, support)
    lent = tlv_jax.crossover(key, features, support, rate=0.5) == 2
    assert 0 < lent.sum() < lent.size
    np.testing.assert_array_equal(to_features, ~lent)
    assert not to_support.any()


def test_a_layer_behind_the_lender_gets_a_gradient_where_it_lends(key):
    features, support = jnp.ones((4, 6)), jnp.full((4, 6), 2.0)

    def total(support):
        return tlv_jax.crossover(key, features, support, rate=0.5, stop_gradient=False).sum()

    lent = tlv_jax.crossover(key, features, support, rate=0.5) == 2
    np.testing.assert_array_equal(jax.grad(total)(support), lent)


def test_the_dtype_of_the_features_stays(key):
    features = jnp.zeros((2, 3), jnp.bfloat16)
    assert tlv_jax.crossover(key, features, jnp.ones((2, 3))).dtype == jnp.bfloat16


def test_a_traced_rate_works_under_jit(key):
    features, support = jnp.zeros((2, 3)), jnp.ones((2, 3))
    crossed = jax.jit(tlv_jax.crossover)(key, features, support, jnp.float32(1.0))
    np.testing.assert_array_equal(crossed, support)


@pytest.mark.parametrize(
    ("features", "support"), [((2, 3), (4, 3)), ((2, 3, 1), (2, 3)), ((2, 3), (3,))]
)
def test_other_shapes_are_refused(key, features, support):
    with pytest.raises(tlv_jax.ParameterTreeError, match=r"\[B, D\]"):
        tlv_jax.crossover(key, jnp.zeros(features), jnp.zeros(support))


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_that_is_no_probability_is_refused(key, rate):
    with pytest.raises(tlv_jax.OptionError, match="probability"):
        tlv_jax.crossover(key, jnp.zeros((1, 1)), jnp.zeros((1, 1)), rate=rate)
