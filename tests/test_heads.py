import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlv_jax.heads import draw_dense, pooled_statistics


@pytest.mark.parametrize("targets", [1, 3])
def test_statistics_are_those_of_the_published_code(targets):
    torch = pytest.importorskip("torch")
    kernels = [np.random.default_rng(i).normal(i, 1 + i, (5, 7 + i)).astype("f") for i in range(3)]
    mean, spread = pooled_statistics([jnp.asarray(kernel) for kernel in kernels], targets)
    tensors = [torch.from_numpy(kernel) for kernel in kernels]
    expected = torch.stack([tensor.mean() for tensor in tensors]).mean() / targets
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    expected = torch.stack([tensor.std() for tensor in tensors]).mean() / targets
    np.testing.assert_allclose(spread, expected, rtol=1e-5)


def test_a_kernel_of_one_element_has_no_spread():
    mean, spread = pooled_statistics([jnp.full((1, 1), 2.0)], 1)
    assert (float(mean), float(spread)) == (2.0, 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_draw_has_the_given_moments(key, dtype):
    drawn = draw_dense(key, jnp.zeros((300, 200), dtype), jnp.float32(0.5), jnp.float32(2.0))
    assert drawn.dtype == dtype
    assert drawn.shape == (300, 200)
    # 60,000 draws: the mean's standard error is 0.008, that of the deviation 0.006.
    assert float(drawn.astype(jnp.float32).mean()) == pytest.approx(0.5, abs=0.04)
    assert float(drawn.astype(jnp.float32).std()) == pytest.approx(2.0, abs=0.03)


def test_other_keys_draw_other_heads(key):
    target = jnp.zeros((4, 4))
    first, second = (draw_dense(k, target, 0.0, 1.0) for k in jax.random.split(key))
    assert not np.array_equal(first, second)
