"""Who gives to whom, what stays as it is and why: from shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import trees
from zoo import network_of

import tlv_jax
from tlv_jax import ConsistentChannels, Method, methods, rules
from tlv_jax.layers import standardize_blocks, standardize_graph

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")


@pytest.fixture(scope="module")
def plan():
    return tlv_jax.plan_transfer(trees.shapes("vgg16"), trees.shapes("resnet18"), methods.TLVFC)


def test_vgg16_to_resnet18_is_matched_as_published(plan):
    sources, targets = (
        [path for _, path in tlv_jax.plan_transfer(*[trees.shapes(name)] * 2).pairs]
        for name in ("vgg16", "resnet18")
    )
    assert [target for _, target in plan.pairs] == targets
    assert [sources.index(source) for source, _ in plan.pairs] == trees.VGG16_TO_RESNET18


def test_equal_plans_are_equal_and_hash_equal(plan):
    again = tlv_jax.plan_transfer(
        trees.shapes("vgg16"),
        jax.tree.map(lambda leaf: leaf, trees.shapes("resnet18")),
        dataclasses.replace(methods.TLVFC, rule=rules.Variance(keep="interleaved")),
    )
    assert again == plan
    assert hash(again) == hash(plan)


def test_every_target_leaf_is_replaced_or_untouched_with_a_reason(plan):
    replaced = {path for path, _ in plan.target_leaves}
    untouched = {leaf.path for leaf in plan.untouched}
    assert not replaced & untouched
    assert replaced | untouched == set(trees.leaves(trees.shapes("resnet18")))
    assert all(leaf.reason for leaf in plan.untouched)


def test_heads_are_drawn_from_all_dense_layers_of_the_source(plan):
    assert [layer.path for layer in plan.drawn] == ["params/fc"]
    assert [layer.path for layer in plan.drawn_from] == [
        f"params/classifier.{i}" for i in (0, 3, 6)
    ]


def test_shapes_and_arrays_give_the_same_plan():
    source, target = trees.source_tree(), trees.target_tree()
    shapes = [jax.eval_shape(lambda tree=tree: tree) for tree in (source, target)]
    assert tlv_jax.plan_transfer(*shapes) == tlv_jax.plan_transfer(source, target)


@pytest.mark.parametrize(
    ("kinds", "replaced"),
    [
        (("conv",), {"conv1/kernel", "conv2/kernel"}),
        (("conv", "bias"), {"conv1/kernel", "conv2/kernel", "conv1/bias", "conv2/bias"}),
        (("norm",), {"bn1/scale", "bn1/bias"}),
        (("dense", "bias"), {"fc/kernel", "fc/bias"}),
    ],
)
def test_kinds_decide_what_is_carried_over(kinds, replaced):
    plan = tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), Method(kinds=kinds))
    assert {path for path, _ in plan.target_leaves} == replaced


def test_head_from_statistics_replaces_the_dense_layer_and_its_bias():
    plan = tlv_jax.plan_transfer(
        trees.source_tree(), trees.target_tree(), Method(head="statistics")
    )
    assert {"fc/kernel", "fc/bias"} <= {path for path, _ in plan.target_leaves}
    assert "fc/kernel" in {path for path, _ in plan.source_leaves}


@pytest.mark.parametrize(
    ("leaf", "kinds", "head", "reason"),
    [
        ("bn1/scale", ("conv",), "statistics", "no 'norm' in kinds"),
        ("conv1/bias", ("conv",), "statistics", "no 'bias' in kinds"),
        ("fc/kernel", ("conv",), "keep", "head='keep'"),
        ("conv1/kernel", ("norm",), "keep", "no 'conv' in kinds"),
    ],
)
def test_untouched_leaves_say_why(leaf, kinds, head, reason):
    plan = tlv_jax.plan_transfer(
        trees.source_tree(), trees.target_tree(), Method(kinds=kinds, head=head)
    )
    assert reason in {leaf.path: leaf.reason for leaf in plan.untouched}[leaf]


@pytest.mark.parametrize(
    ("missing", "kinds", "leaf", "reason"),
    [
        ("fc", ("conv",), "fc/kernel", "no dense layers"),
        ("bn1", ("conv", "norm"), "bn1/scale", "no norm layers"),
    ],
)
def test_what_the_source_does_not_have_stays(missing, kinds, leaf, reason):
    source = trees.source_tree()
    del source[missing]
    method = Method(kinds=kinds, head="statistics")
    plan = tlv_jax.plan_transfer(source, trees.target_tree(), method)
    assert plan.drawn == () or missing != "fc"
    assert reason in {leaf.path: leaf.reason for leaf in plan.untouched}[leaf]


def test_vectors_that_the_source_does_not_have_stay():
    source = trees.source_tree()
    del source["conv1"]["bias"]
    plan = tlv_jax.plan_transfer(source, trees.target_tree(), Method(kinds=("conv", "bias")))
    reasons = {leaf.path: leaf.reason for leaf in plan.untouched}
    assert "no such vector" in reasons["conv1/bias"]
    assert "conv2/bias" not in reasons


def test_a_traced_network_decides_the_order():
    source, target = trees.source_tree(), trees.target_tree()

    def fn(params, images):
        for name in ("conv2", "conv1"):  # against the order of the names
            kernel = params[name]["kernel"]
            images = jnp.zeros((1, 8, 8, kernel.shape[2])) + images.mean()
            images = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return images

    network = tlv_jax.trace(fn, target, jnp.zeros((1, 8, 8, 6)))
    plan = tlv_jax.plan_transfer(source, network, methods.TLVFC)
    assert plan.pairs == (("conv1", "conv2"), ("conv10", "conv1"))
    assert "traced" in plan.target_order
    assert "natural" in plan.source_order


DENSE_ONLY = {"fc": {"kernel": jnp.zeros((2, 2))}}


def wrong_shape(key, source, target):
    return source


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"src": DENSE_ONLY}, tlv_jax.NoSourceLayerError, "'conv1' is a conv.*1 dense"),
        ({"dst": DENSE_ONLY}, tlv_jax.ParameterTreeError, "dst: .*1 dense"),
        ({"src": {}}, tlv_jax.ParameterTreeError, "src: "),
        ({"src": []}, tlv_jax.ParameterTreeError, "src: "),
        ({"dst": {"a": None}}, tlv_jax.ParameterTreeError, "dst: "),
        (
            {"method": Method(rule=wrong_shape)},
            tlv_jax.OptionError,
            "expected an array of the target's shape",
        ),
        (
            {"method": Method(rule=lambda key, source, target: None)},
            tlv_jax.OptionError,
            "returned None .*expected an array",
        ),
        (
            {"method": Method(channels=ConsistentChannels())},
            tlv_jax.OptionError,
            r"channels=.*bare tree.*tlv_jax\.trace",
        ),
        ({"method": methods.NET2NET}, tlv_jax.OptionError, r"bare tree.*tlv_jax\.trace"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    arguments = {"src": trees.source_tree(), "dst": trees.target_tree(), **change}
    with pytest.raises(error, match=message) as caught:
        tlv_jax.plan_transfer(**arguments)
    assert isinstance(caught.value, tlv_jax.TLVError)


@pytest.mark.parametrize("name", ["DPIAT", "TLVFC", "WEIGHT_SELECTION"])
@pytest.mark.parametrize(("source", "target"), [("vgg16", "resnet18"), ("resnet50", "resnet18")])
def test_published_methods_plan_pairs_of_the_zoo(name, source, target):
    plan = tlv_jax.plan_transfer(trees.shapes(source), trees.shapes(target), getattr(methods, name))
    assert plan.layer_pairs
    assert tlv_jax.TransferPlan.from_json(plan.to_json()) == plan


def test_the_default_matches_blocks_of_the_graph_where_both_networks_are_traced():
    source, target = network_of("efficientnet_lite0"), network_of("mobilenet_v2")

    def plan(src, dst, standardize):
        return tlv_jax.plan_transfer(src, dst, Method(standardize=standardize))

    by_graph = plan(source, target, standardize_graph)
    assert plan(source, target, None) == by_graph != plan(source, target, standardize_blocks)
    for pair in ((source.params, target), (source, target.params), (source.params, target.params)):
        assert plan(*pair, None) == plan(*pair, standardize_blocks)
