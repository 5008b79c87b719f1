"""What the ablation rests on: treatments, rows that are kept, and the same convolution."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from benchmarks import ablation
from tlv_jax import ConsistentChannels, Method, layers, matching, methods, rules


def test_treatments_are_every_combination_that_makes_a_difference():
    options = ablation.Options(
        match=("index", "score"), rule=("variance", "clip"), shuffle=(True, False), he=True
    )
    found = list(ablation.treatments(options))
    assert len(set(found)) == len(found) == 1 + 2 * 3  # clip does not shuffle
    assert found[0] == ablation.HE


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (
            ("flat", "index", "variance", True, False, "none", "none"),
            dataclasses.replace(methods.TLVFC, head="keep"),
        ),
        (
            ("blocks", "coverage", "variance", False, True, "trace", "he"),
            Method(
                standardize=layers.standardize_blocks,
                rule=rules.Variance(shuffle=False),
                channels=ConsistentChannels(rank="trace"),
                rescale="he",
                kinds=("conv", "norm"),
            ),
        ),
        (
            ("graph", "score_flat", "full", False, False, "none", "source"),
            Method(
                standardize=layers.standardize_graph,
                match=matching.ByScoreFlat(),
                rule=rules.Full(),
                rescale="source",
            ),
        ),
    ],
    ids=["tlvfc", "channels", "full"],
)
def test_a_treatment_is_a_method(settings, method):
    assert ablation.method_of(ablation.Treatment(*settings)) == method


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

    def loss(variables, images):
        outputs = conv.apply(variables, images)
        return jnp.square(outputs).sum(), outputs

    def computed():
        # Traced anew, with or without the interception around it.
        both = jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs), (0, 1), has_aux=True))
        return both(variables, images)

    expected = computed()
    with nn.intercept_methods(ablation.shifted_depthwise):
        assert "conv_general_dilated" not in str(jax.make_jaxpr(conv.apply)(variables, images))
        found = computed()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(np.asarray(one), np.asarray(other)) <= 1e-5
