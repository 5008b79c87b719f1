"""Who gives to whom: each matcher on layers and blocks of layers."""

import json
import re
from pathlib import Path

import numpy as np
import oracles
import pytest
import zoo

from tlv_jax import Layer, LayerPair, OptionError, layers, matching
from tlv_jax.layers.blocks import flatten_blocks

RECORDED = json.loads((Path(__file__).parent / "golden" / "index_matching.json").read_text())
ALL = ("conv", "dense", "norm")


def some(prefix, count, kind="conv"):
    return [
        Layer(f"{prefix}{i}", kind, f"{prefix}{i}/kernel", (1, 1, 1, 1), (0, 1, 2, 3))
        for i in range(count)
    ]


def paths(pairs):
    return [(pair.source.path, pair.target.path) for pair in pairs]


def indices(sources, targets):
    pairs = matching.ByIndex()(some("s", sources), some("t", targets))
    assert [pair.target.path for pair in pairs] == [f"t{i}" for i in range(targets)]
    return [int(pair.source.path[1:]) for pair in pairs]


@pytest.mark.parametrize("case", RECORDED)
def test_index_matching_agrees_with_the_recorded_answers(case):
    assert indices(*map(int, case.split("->"))) == RECORDED[case]


def test_index_matching_stretches_by_the_rounded_ratio():
    for sources in range(1, 61):
        for targets in range(1, 61):
            expected = []
            for target in range(targets):
                ratio = sources / targets
                expected.append(min(round(target * ratio), sources - 1))
            assert indices(sources, targets) == expected


def test_index_matching_divides_before_it_multiplies():
    # 11 * 25 / 22 is 12.5, which would round to 12; the published ratio lies a little above.
    assert indices(25, 22)[11] == 13


def test_index_matching_keeps_kinds_apart():
    source = [*some("c", 2), *some("d", 1, "dense")]
    target = [*some("e", 1, "dense"), *some("f", 3), *some("n", 2, "norm")]
    pairs = matching.ByIndex()(source, target)
    assert paths(pairs) == [("d0", "e0"), ("c0", "f0"), ("c1", "f1"), ("c1", "f2")]


MATCHERS = [
    matching.ByIndex(),
    matching.ByScore(),
    matching.ByScore(matching.position_scores),
    matching.ByScoreFlat(),
    matching.ByCoverage(),
    matching.Bipartite(),
    matching.Random(),
    matching.EachOnce(),
]
# Functions print their addresses, which differ between processes.
of_every_kind = pytest.mark.parametrize(
    "match", MATCHERS, ids=lambda match: re.sub(" at 0x[0-9a-f]+", "", str(match))
)


@of_every_kind
def test_nothing_to_match_gives_no_pairs(match):
    one = some("s", 1)
    assert match((), one) == match(one, ()) == match((), ()) == ()
    assert match(one, one) == (LayerPair(*one, *one),)


@of_every_kind
def test_a_network_is_matched_with_itself(match):
    blocks = layers.standardize_blocks(zoo.network_of("resnet18").layers, ALL)
    pairs = match(blocks, blocks)
    assert [pair.target for pair in pairs] == list(flatten_blocks(blocks))
    assert all(pair.source.kind == pair.target.kind for pair in pairs)
    if match != matching.Random():
        assert all(pair.source == pair.target for pair in pairs)


@pytest.mark.parametrize("make", [matching.ByScore, matching.ByScoreFlat, matching.Bipartite])
def test_equal_settings_are_equal_matchers(make):
    assert make() == make(matching.shape_scores) != make(matching.position_scores)
    assert hash(make()) == hash(make(matching.shape_scores))


def test_bipartite_matching_uses_each_source_once():
    source, target = (
        layers.standardize_flat(zoo.network_of(name).layers, ALL)
        for name in ("resnet18", "resnet50")
    )
    pairs = matching.Bipartite()(source, target)
    assert len({pair.source.path for pair in pairs}) == len(pairs) <= len(source)
    few = source[:4], target[:5]
    weight = oracles.bipartite_weight(matching.shape_scores(*few))
    chosen = matching.Bipartite()(*few)
    positions = [(source.index(pair.source), target.index(pair.target)) for pair in chosen]
    found = oracles.weight_of(matching.shape_scores(*few), positions)
    assert found == pytest.approx(weight)


def test_random_matching_depends_on_its_seed_and_uses_all():
    source, target = some("s", 5), some("t", 12)
    first, again, other = (matching.Random(seed)(source, target) for seed in (0, 0, 1))
    assert first == again != other
    counts = [sum(pair.source == layer for pair in first) for layer in source]
    assert sorted(counts) == [2, 2, 2, 3, 3]
    assert [pair.target for pair in first] == target


@pytest.mark.parametrize(
    ("source", "target", "standardize", "covered"),
    [
        ("vgg16", "resnet18", layers.standardize_flat, 19),
        ("efficientnet_lite0", "mobilenet_v2", layers.standardize_blocks, 52),
    ],
)
def test_coverage_decides_between_blocks_and_layers(source, target, standardize, covered):
    networks = [zoo.network_of(name) for name in (source, target)]
    blocks = [layers.standardize_blocks(network.layers, ("conv",)) for network in networks]
    pairs = matching.ByCoverage()(*blocks)
    assert pairs == matching.ByScore()(*[standardize(n.layers, ("conv",)) for n in networks])
    assert len(pairs) == covered


@pytest.mark.parametrize("untraced", [0, 1])
def test_each_once_needs_traced_layers(untraced):
    sides = [list(zoo.network_of("vgg11").layers) for _ in range(2)]
    sides[untraced] = some("s", 3)
    with pytest.raises(OptionError, match=r"matching\.EachOnce.*bare tree.*tlv_jax\.trace"):
        matching.EachOnce()(*sides)


def test_position_scores_prefer_the_same_depth():
    row = [Layer(f"c{i}", "conv", f"c{i}/kernel", (3, 3, 8, 8), (0, 1, 2, 3)) for i in range(5)]
    scores = matching.position_scores(row, row)
    assert (scores.argmax(1) == np.arange(5)).all()
    assert scores[0, 4] == 0
    assert scores[0, 2] == pytest.approx(0.75)


def test_position_scores_follow_the_traced_graph():
    # The shortcut's conv comes last, but reads what the first one of its block reads.
    inputs = {"stem": (), "first": ("stem",), "second": ("first",), "shortcut": ("stem",)}
    block = [
        Layer(name, "conv", f"{name}/kernel", (1, 1, 4, 4), (0, 1, 2, 3), inputs=before)
        for name, before in inputs.items()
    ]
    scores = matching.position_scores(block, block)
    assert scores[1].tolist() == [0.75, 1, 0.75, 1]
    assert scores[0].tolist() == [1, 0.75, 0, 0.75]
