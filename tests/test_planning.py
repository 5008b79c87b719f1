import functools

import jax
import jax.numpy as jnp
import pytest
import trees

import tlv_jax
from tlv_jax import models, rules

TLVFC = tlv_jax.presets.tlvfc()


@pytest.fixture(scope="module")
def plan():
    return tlv_jax.plan_transfer(
        trees.shapes("vgg16")["params"], trees.shapes("resnet18")["params"], **TLVFC
    )


def convs(name):
    layers = tlv_jax.plan_transfer(*[trees.shapes(name)["params"]] * 2).layer_pairs
    return [pair.target.path for pair in layers]


def test_vgg16_to_resnet18_is_matched_as_published(plan):
    sources, targets = convs("vgg16"), convs("resnet18")
    assert [target for _, target in plan.pairs] == targets
    assert [sources.index(source) for source, _ in plan.pairs] == trees.VGG16_TO_RESNET18


def test_equal_plans_are_equal_and_hash_equal(plan):
    again = tlv_jax.plan_transfer(
        trees.shapes("vgg16")["params"],
        jax.tree.map(lambda leaf: leaf, trees.shapes("resnet18")["params"]),
        **TLVFC | {"rule": functools.partial(rules.variance, keep="interleaved")},
    )
    assert again == plan
    assert hash(again) == hash(plan)


def test_every_target_leaf_is_replaced_or_untouched_with_a_reason(plan):
    target = trees.shapes("resnet18")["params"]
    replaced = {path for path, _ in plan.target_leaves}
    untouched = {leaf.path for leaf in plan.untouched}
    assert not replaced & untouched
    assert len(replaced | untouched) == len(jax.tree.leaves(target))
    assert all(leaf.reason for leaf in plan.untouched)


def test_nothing_is_allocated_and_nothing_written(plan):
    shapes = [leaf for leaf in jax.tree.leaves(trees.shapes("vgg16"))]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes)
    assert plan.drawn[0].path == "fc"
    assert [layer.path for layer in plan.drawn_from] == [f"classifier.{i}" for i in (0, 3, 6)]


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
    plan = tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), kinds=kinds, head="keep")
    assert {path for path, _ in plan.target_leaves} == replaced


def test_head_from_statistics_replaces_the_dense_layer_and_its_bias():
    plan = tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), head="statistics")
    assert {"fc/kernel", "fc/bias"} <= {path for path, _ in plan.target_leaves}
    assert "fc/kernel" in {path for path, _ in plan.source_leaves}


def test_a_source_without_dense_layers_leaves_the_head():
    source = trees.source_tree()
    del source["fc"]
    plan = tlv_jax.plan_transfer(source, trees.target_tree(), head="statistics")
    reasons = {leaf.path: leaf.reason for leaf in plan.untouched}
    assert plan.drawn == ()
    assert "no dense layers" in reasons["fc/kernel"]


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
    plan = tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), kinds=kinds, head=head)
    assert reason in {leaf.path: leaf.reason for leaf in plan.untouched}[leaf]


def test_traced_layers_decide_the_order():
    source, target = trees.source_tree(), trees.target_tree()

    def fn(params, images):
        for name in ("conv2", "conv1"):  # against the order of the names
            kernel = params[name]["kernel"]
            images = jnp.zeros((1, 8, 8, kernel.shape[2])) + images.mean()
            images = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return images

    traced = tlv_jax.trace_layers(fn, target, jnp.zeros((1, 8, 8, 6)))
    plan = tlv_jax.plan_transfer(source, target, dst_layers=traced, **TLVFC)
    assert plan.pairs == (("conv1", "conv2"), ("conv10", "conv1"))
    assert "traced" in plan.target_order


DENSE_ONLY = {"fc": {"kernel": jnp.zeros((2, 2))}}


def wrong_shape(key, source, target):
    return source


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"src_params": DENSE_ONLY}, tlv_jax.NoSourceLayerError, "'conv1' is a conv.*1 dense"),
        ({"dst_params": DENSE_ONLY}, tlv_jax.ParameterTreeError, "1 dense"),
        ({"src_params": {}}, tlv_jax.ParameterTreeError, "src_params"),
        ({"dst_params": {"a": None}}, tlv_jax.ParameterTreeError, "dst_params"),
        ({"kinds": ("conv", "pool")}, tlv_jax.OptionError, "'pool'"),
        ({"kinds": "conv"}, tlv_jax.OptionError, "sequence"),
        ({"head": "zero"}, tlv_jax.OptionError, "head='zero'"),
        ({"rule": functools.partial(rules.variance, keep="most")}, tlv_jax.OptionError, "'most'"),
        ({"rule": wrong_shape}, tlv_jax.OptionError, "expected an array of the target's shape"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    arguments = {"src_params": trees.source_tree(), "dst_params": trees.target_tree(), **change}
    source, target = arguments.pop("src_params"), arguments.pop("dst_params")
    with pytest.raises(error, match=message) as caught:
        tlv_jax.plan_transfer(source, target, **arguments)
    assert isinstance(caught.value, tlv_jax.TLVError)


def test_layers_traced_from_another_tree_are_refused():
    layer = tlv_jax.Layer("gone", "conv", "gone/kernel", (1, 1, 3, 3), (0, 1, 2, 3))
    with pytest.raises(tlv_jax.PlanMismatchError, match="gone/kernel"):
        tlv_jax.plan_transfer(trees.source_tree(), trees.target_tree(), src_layers=(layer,))


@pytest.mark.parametrize("name", ["dpiat", "tlvfc", "weight_selection"])
@pytest.mark.parametrize(("source", "target"), [("vgg16", "resnet18"), ("resnet50", "resnet18")])
def test_presets_are_settings_of_a_plan(name, source, target):
    trees_of = [trees.shapes(side)["params"] for side in (source, target)]
    plan = tlv_jax.plan_transfer(*trees_of, **getattr(tlv_jax.presets, name)())
    assert plan.layer_pairs
    assert tlv_jax.TransferPlan.from_json(plan.to_json()) == plan


def test_the_default_is_what_did_best_in_the_ablation():
    trees_of = [trees.shapes(side)["params"] for side in ("vgg16", "resnet18")]
    assert tlv_jax.plan_transfer(*trees_of) == tlv_jax.plan_transfer(
        *trees_of,
        standardize=tlv_jax.standardize_blocks,
        match=tlv_jax.match_by_coverage,
        rule=rules.clip,
        head="keep",
        kinds=("conv",),
    )


def test_the_default_matches_blocks_of_the_graph_where_all_trees_were_traced():
    names = "efficientnet_lite0", "mobilenet_v2"
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    trees_of = [trees.shapes(name) for name in names]
    traced = [
        tlv_jax.trace_layers(models.create(name, num_classes=10).apply, tree, images)
        for name, tree in zip(names, trees_of, strict=True)
    ]
    found = [tlv_jax.standardization.find_layers(tree, name="tree")[0] for tree in trees_of]

    def plan(src_layers, dst_layers, **settings):
        return tlv_jax.plan_transfer(
            *trees_of, src_layers=src_layers, dst_layers=dst_layers, **settings
        )

    by_graph = plan(*traced, standardize=tlv_jax.standardize_graph)
    assert plan(*traced) == by_graph != plan(*traced, standardize=tlv_jax.standardize_blocks)
    for layers in ([None, traced[1]], [traced[0], None], found):
        assert plan(*layers) == plan(*layers, standardize=tlv_jax.standardize_blocks)
