"""What the ablation rests on: treatments, rows that are kept, and the same convolution."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from benchmarks import ablation


def test_treatments_are_every_combination_that_makes_a_difference():
    options = ablation.Options(
        match=("index", "score"), rule=("variance", "clip"), shuffle=(True, False), he=True
    )
    found = list(ablation.treatments(options))
    assert len(set(found)) == len(found) == 1 + 2 * 3  # clip does not shuffle
    assert found[0] == ablation.HE


def test_rows_are_found_again(tmp_path):
    path = tmp_path / "results" / "ablation.csv"
    settings = dataclasses.asdict(ablation.Experiment()) | dataclasses.asdict(ablation.HE)
    row = settings | {"seed": 1, "epoch": 3, "balanced_accuracy": 0.123456}
    ablation.append_rows(path, [row])
    ablation.append_rows(path, [row | {"seed": 2}])
    rows = ablation.read_rows(path)
    assert [ablation.identity(one) for one in rows] == [
        ablation.identity(settings | {"seed": seed}) for seed in (1, 2)
    ]
    assert ablation.typed(ablation.Treatment, rows[0]) == ablation.HE
    assert rows[0]["balanced_accuracy"] == "0.1235"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_a_sum_of_shifted_products_is_the_depthwise_convolution(key, stride, size):
    padding = ((size // 2, size // 2),) * 2
    conv = nn.Conv(6, (size, size), stride, padding=padding, feature_group_count=6, use_bias=False)
    images = jax.random.normal(key, (2, 9, 8, 6))
    variables = conv.init(key, images)

    def gradient(variables, images):
        return jax.grad(lambda *inputs: jnp.square(conv.apply(*inputs)).sum(), (0, 1))(
            variables, images
        )

    expected = conv.apply(variables, images), gradient(variables, images)
    with nn.intercept_methods(ablation.shifted_depthwise):
        assert "conv_general_dilated" not in str(jax.make_jaxpr(conv.apply)(variables, images))
        found = conv.apply(variables, images), gradient(variables, images)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(np.asarray(one), np.asarray(other)) <= 1e-5
