"""What the ablation rests on: treatments, rows that are kept, and the same convolution."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import ablation, fitting
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


def test_the_page_of_fits_has_the_table_of_the_rows():
    page = Path(__file__).parent.parent / "docs" / "fit.md"
    table = fitting.tables_of(fitting.RESULTS)
    assert "| fit |" in table
    assert table.strip() in page.read_text()


def test_each_setting_of_a_fit_is_varied_alone():
    usual = dataclasses.asdict(fitting.Treatment())
    for treatment in fitting.treatments(fitting.Options()):
        changed = [
            name for name, value in dataclasses.asdict(treatment).items() if value != usual[name]
        ]
        assert len(changed) <= 1
