import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import trees

import tlv_jax
from tlv_jax import Method, methods, rules

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")


def make(key, source, target, **choices):
    method = dataclasses.replace(methods.TLVFC, **choices)
    plan = tlv_jax.plan_transfer(source, target, method)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    return tlv_jax.report(plan, source, target, new), new


@pytest.mark.parametrize(
    ("source", "target", "share"),
    [
        ((3, 3, 8, 8), (3, 3, 4, 4), 1.0),
        ((3, 3, 4, 4), (3, 3, 8, 8), 1 / 4),
        ((3, 3, 4, 4), (5, 5, 4, 4), 9 / 25),
        ((1, 1, 4, 8), (3, 3, 8, 4), 1 / 18),
        ((5, 5, 4, 4), (3, 3, 4, 4), 1.0),
    ],
)
def test_the_share_counts_what_comes_from_the_source(key, source, target, share):
    trees_of = [{"conv": {"kernel": trees.normal(i, *s)}} for i, s in enumerate((source, target))]
    report, _ = make(key, *trees_of)
    assert report.rows[0].share == pytest.approx(share)


def mean(key, source, target):
    return target * 0 + source.mean()


@pytest.mark.parametrize("rule", [rules.Clip(), rules.Full(), rules.Variance(pad="init"), mean])
@pytest.mark.parametrize("rescale", ["none", "he", "source"])
def test_the_share_knows_any_rule_at_any_scale(key, rule, rescale):
    source = {"conv": {"kernel": trees.normal(0, 1, 1, 4, 4)}}
    target = {"conv": {"kernel": trees.normal(1, 3, 3, 4, 4)}}
    report, _ = make(key, source, target, rule=rule, rescale=rescale)
    whole = rule in (mean, rules.Full())
    assert report.rows[0].share == pytest.approx(1 if whole else 1 / 9)


def test_rows_hold_names_shapes_and_spreads(key):
    source, target = trees.source_tree(), trees.target_tree()
    report, new = make(key, source, target, kinds=("conv", "norm"))
    rows = {row.target: row for row in report.rows}
    assert set(rows) == {"conv1", "conv2", "bn1", "fc"}
    row = rows["conv1"]
    assert (row.source, row.source_shape, row.target_shape) == ("conv1", (3, 3, 3, 8), (5, 5, 3, 6))
    assert row.std_before == pytest.approx(target["conv1"]["kernel"].std(), rel=1e-5)
    assert row.std_after == pytest.approx(np.asarray(new["conv1"]["kernel"]).std(), rel=1e-5)
    assert (rows["fc"].source, rows["fc"].share, rows["fc"].rule) == (None, 0.0, "statistics")
    assert rows["bn1"].rule == "Clip()"


def test_it_prints_as_a_table_and_writes_json(key):
    report, _ = make(key, trees.source_tree(), trees.target_tree())
    text = str(report)
    assert text.splitlines()[0].split() == [
        "target", "shape", "source", "shape", "from", "source", "std", "before", "std", "after",
    ]  # fmt: skip
    assert "untouched: 4 leaves" in text
    record = json.loads(report.to_json())
    assert [row["target"] for row in record["rows"]] == [row.target for row in report.rows]
    assert record["untouched"][0]["reason"]


def test_half_precision_targets_are_measured_in_float32(key):
    target = {"conv": {"kernel": jnp.full((1, 1, 64, 64), 300, jnp.float16)}}
    source = {"conv": {"kernel": np.full((1, 1, 64, 64), 0.5, np.float32)}}
    report, _ = make(key, source, target)
    assert report.rows[0].std_before == 0


def test_networks_inserted_layers_and_mixtures_are_reported(key):
    source, target = trees.small_network(0, 8, 16), trees.small_network(100, 8, 16, more=True)
    plan = tlv_jax.plan_transfer(source, target, methods.NET2NET)
    new = tlv_jax.apply_transfer(plan, key, source, target)
    rows = {row.target: row for row in tlv_jax.report(plan, source, target, new).rows}
    assert (rows["more"].source, rows["more"].rule, rows["more"].share) == (None, "zero", 0.0)
    assert rows["more"].std_after == 0
    assert rows["stem"].share == 1
    sources = [source, trees.small_network(50, 4, 4)]
    plan = tlv_jax.plan_transfer(sources, target, Method(kinds=("conv", "norm")))
    new = tlv_jax.apply_transfer(plan, key, sources, target)
    rows = tlv_jax.report(plan, sources, target, new).rows
    assert [row.source for row in rows][:2] == ["0/stem", "0/norm"]
    assert rows[1].rule == "Clip()"
    assert all(row.share == 1 for row in rows)


def test_random_keys_and_flags_in_a_tree_are_passed_over(key):
    target = {**trees.target_tree(), "drop": {"key": key, "on": jnp.array(True)}}
    assert make(key, trees.source_tree(), target)[0].rows
