"""What the ablation rests on: treatments, rows that are kept, and the same convolution."""

import dataclasses

import pytest

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
