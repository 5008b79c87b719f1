"""Dense layers drawn from the pooled statistics of the source's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlv_jax.rules.dense import draw_dense, pooled_statistics

BOTH = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])


@BOTH
@pytest.mark.parametrize("targets", [1, 3])
def test_statistics_are_those_of_the_published_code(xp, targets):
    torch = pytest.importorskip("torch")
    kernels = [np.random.default_rng(i).normal(i, 1 + i, (5, 7 + i)).astype("f") for i in range(3)]
    mean, spread = pooled_statistics([xp.asarray(kernel) for kernel in kernels], targets, xp)
    tensors = [torch.from_numpy(kernel) for kernel in kernels]
    expected = torch.stack([tensor.mean() for tensor in tensors]).mean() / targets
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    expected = torch.stack([tensor.std() for tensor in tensors]).mean() / targets
    np.testing.assert_allclose(spread, expected, rtol=1e-5)


@BOTH
def test_a_kernel_of_one_element_has_no_spread(xp):
    mean, spread = pooled_statistics([xp.full((1, 1), 2.0)], 1, xp)
    assert (float(mean), float(spread)) == (2.0, 0.0)


@BOTH
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_draw_has_the_given_moments(key, xp, dtype):
    drawn = draw_dense(key, xp.zeros((300, 200), dtype), np.float32(0.5), np.float32(2.0), xp)
    assert isinstance(drawn, np.ndarray if xp is np else jax.Array)
    assert drawn.dtype == dtype
    assert drawn.shape == (300, 200)
    # 60,000 draws: the mean's standard error is 0.008, that of the deviation 0.006.
    assert float(drawn.astype(np.float32).mean()) == pytest.approx(0.5, abs=0.04)
    assert float(drawn.astype(np.float32).std()) == pytest.approx(2.0, abs=0.03)


def test_keys_draw_other_heads_and_both_libraries_the_same(key):
    target = np.zeros((4, 4), np.float32)
    first, second = (draw_dense(k, target, 0.0, 1.0, np) for k in jax.random.split(key))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(
        first, draw_dense(jax.random.split(key)[0], target, 0.0, 1.0, jnp)
    )
