"""Matching by scores, held to the recorded answers of the published code."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import oracles
import pytest
import trees

import tlv_jax
from tlv_jax import Layer, alignment, models
from tlv_jax.blocks import flatten_blocks

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "iat_matching.json").read_text())
FLAT = json.loads((GOLDEN / "iat_flat_matching.json").read_text())
KINDS = {"Conv2d": "conv", "Linear": "dense", "BatchNorm2d": "norm"}


def recorded_layer(model, name):
    if name not in RECORDED["shapes"][model]:
        # An activation or a pool: of a kind of its own, so that it fits nothing.
        return Layer(name, f"{model}/{name}", "", (1,), (0,))
    kind, shape = RECORDED["shapes"][model][name]
    order = (*range(2, len(shape)), 1, 0) if len(shape) > 1 else (0,)
    return Layer(name, KINDS[kind], name, tuple(shape[axis] for axis in order), order)


def recorded_blocks(model, names=None):
    names = RECORDED["blocks"][model] if names is None else names
    return tuple(
        recorded_layer(model, name) if isinstance(name, str) else recorded_blocks(model, name)
        for name in names
    )


@pytest.mark.parametrize("case", RECORDED["dp_matching"], ids=lambda c: f"{c['src']}-{c['dst']}")
def test_dynamic_programming_agrees_with_the_recorded_answers(case):
    source, target = recorded_blocks(case["src"]), recorded_blocks(case["dst"])
    pairs = tlv_jax.match_by_score(source, target)
    assert [[pair.source.path, pair.target.path] for pair in pairs] == case["pairs"]
    flat_source, flat_target = flatten_blocks(source), flatten_blocks(target)
    best, _ = alignment.align_blocks(source, target, tlv_jax.shape_scores(flat_source, flat_target))
    own = len(RECORDED["shapes"][case["dst"]])
    assert best / own == pytest.approx(case["sim"], rel=1e-9)


@pytest.mark.parametrize("case", FLAT, ids=lambda c: f"{c['src']}-{c['dst']}")
def test_flat_dynamic_programming_agrees_with_the_recorded_answers(case):
    source, target = (
        [recorded_layer(model, name) for name in RECORDED["shapes"][model]]
        for model in (case["src"], case["dst"])
    )
    pairs = tlv_jax.match_by_score_flat(source, target)
    assert [[pair.source.path, pair.target.path] for pair in pairs] == case["pairs"]


@pytest.mark.parametrize("seed", range(20))
def test_alignment_is_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    scores = generator.uniform(size=generator.integers(1, 5, 2)).round(2)
    scores[generator.uniform(size=scores.shape) < 0.3] = 0
    best, chosen = alignment.align(scores)
    assert best == pytest.approx(oracles.best_alignment(scores))
    assert oracles.alignment_score(scores, chosen) == pytest.approx(best)


@functools.cache
def layers_of(name):
    return tlv_jax.standardization.find_layers(trees.shapes(name)["params"], name="t")[0]


@functools.cache
def traced_layers(name):
    variables = trees.shapes(name)
    model = models.create(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")

    rest = {key: value for key, value in variables.items() if key != "params"}
    return tlv_jax.trace_layers(
        lambda params, rest, images: model.apply({"params": params, **rest}, images),
        variables["params"],
        rest,
        images,
    )


def names_of(blocks):
    return [block.path if isinstance(block, Layer) else names_of(block) for block in blocks]


def test_blocks_follow_the_modules():
    blocks = names_of(tlv_jax.standardize_blocks(layers_of("resnet18"), ("conv", "dense", "norm")))
    assert blocks[:4] == [
        "conv1",
        "bn1",
        ["layer1.0/conv1", "layer1.0/bn1", "layer1.0/conv2", "layer1.0/bn2"],
        ["layer1.1/conv1", "layer1.1/bn1", "layer1.1/conv2", "layer1.1/bn2"],
    ]
    assert blocks[4][-1] == "layer2.0/downsample.1"
    assert blocks[-1] == "fc"


def test_a_chain_of_layers_is_one_block():
    blocks = tlv_jax.standardize_blocks(layers_of("vgg16"), ("conv", "dense"))
    assert [len(block) for block in blocks] == [13, 3]


def test_graph_blocks_lie_between_joins():
    blocks = names_of(tlv_jax.standardize_graph(traced_layers("resnet18"), ("conv", "dense")))
    assert blocks[:3] == [
        ["conv1", "layer1.0/conv1", "layer1.0/conv2"],
        ["layer1.1/conv1", "layer1.1/conv2"],
        ["layer2.0/conv1", "layer2.0/conv2", "layer2.0/downsample.0"],
    ]
    assert blocks[-1] == "fc"


def test_graph_blocks_need_traced_layers():
    with pytest.raises(tlv_jax.OptionError, match="trace_layers"):
        tlv_jax.standardize_graph(layers_of("resnet18"), ("conv",))


@pytest.mark.parametrize(
    "match",
    [
        tlv_jax.match_by_index,
        tlv_jax.match_by_score,
        tlv_jax.match_by_score_flat,
        tlv_jax.match_bipartite,
        tlv_jax.match_random,
        functools.partial(tlv_jax.match_by_score, score=tlv_jax.position_scores),
    ],
)
def test_a_network_is_matched_with_itself(match):
    blocks = tlv_jax.standardize_blocks(layers_of("resnet18"), ("conv", "dense", "norm"))
    pairs = match(blocks, blocks)
    assert [pair.target for pair in pairs] == list(flatten_blocks(blocks))
    assert all(pair.source.kind == pair.target.kind for pair in pairs)
    if match is not tlv_jax.match_random:
        assert all(pair.source == pair.target for pair in pairs)
    assert match((), blocks) == match(blocks, ()) == ()


def test_bipartite_matching_uses_each_source_once():
    source, target = layers_of("resnet18"), layers_of("resnet50")
    pairs = tlv_jax.match_bipartite(source, target)
    assert len({pair.source.path for pair in pairs}) == len(pairs) <= len(source)
    weight = oracles.bipartite_weight(tlv_jax.shape_scores(source[:4], target[:5]))
    chosen = tlv_jax.match_bipartite(source[:4], target[:5])
    positions = [(source.index(pair.source), target.index(pair.target)) for pair in chosen]
    assert oracles.weight_of(
        tlv_jax.shape_scores(source[:4], target[:5]), positions
    ) == pytest.approx(weight)


def test_random_matching_depends_on_its_seed_and_uses_all():
    source, target = layers_of("resnet18"), layers_of("resnet50")
    first, again, other = (tlv_jax.match_random(source, target, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {pair.source.path for pair in first} == {layer.path for layer in source}
    assert len(first) == len(target)


def test_position_scores_prefer_the_same_depth():
    layers = [Layer(f"c{i}", "conv", f"c{i}/kernel", (3, 3, 8, 8), (0, 1, 2, 3)) for i in range(5)]
    scores = tlv_jax.position_scores(layers, layers)
    assert (scores.argmax(1) == np.arange(5)).all()
    assert scores[0, 4] == 0
    assert scores[0, 2] == pytest.approx(0.75)


def test_position_scores_follow_the_traced_graph():
    layers = traced_layers("resnet18")
    scores = tlv_jax.position_scores(layers, layers)
    paths = [layer.path for layer in layers]
    # The shortcut's conv comes last in the order of its block, but reads what the first one reads.
    first, last = paths.index("layer2.0/conv1"), paths.index("layer2.0/downsample.0")
    assert scores[first, first] == 1
    depth = tlv_jax.scores._places(layers)
    assert depth[first] == depth[last]


@pytest.mark.parametrize(
    ("source", "target", "low", "high"),
    [
        ("resnet18", "resnet18", 1, 1),
        ("resnet50", "resnet18", 0.5, 0.9),
        ("vgg11", "resnet18", 0, 0.4),
    ],
)
def test_similarity_is_that_of_shapes(source, target, low, high):
    value = tlv_jax.similarity(trees.shapes(source)["params"], trees.shapes(target)["params"])
    assert low <= value <= high


def test_similarity_of_a_tree_without_layers_is_an_error():
    with pytest.raises(tlv_jax.ParameterTreeError, match="dst_params"):
        tlv_jax.similarity(trees.source_tree(), {"x": np.zeros(3)})


@pytest.mark.parametrize(
    ("source", "target", "standardize", "covered"),
    [
        ("vgg16", "resnet18", tlv_jax.standardize_flat, 19),
        ("efficientnet_lite0", "mobilenet_v2", tlv_jax.standardize_blocks, 52),
    ],
)
def test_coverage_decides_between_blocks_and_layers(source, target, standardize, covered):
    layers = [
        tlv_jax.standardization.find_layers(trees.shapes(name)["params"], name=name)[0]
        for name in (source, target)
    ]
    blocks = [tlv_jax.standardize_blocks(side, ("conv",)) for side in layers]
    pairs = tlv_jax.match_by_coverage(*blocks)
    assert pairs == tlv_jax.match_by_score(*[standardize(side, ("conv",)) for side in layers])
    assert len(pairs) == covered
