"""Two networks of one family aligned so that no source layer is used twice."""

import pytest
import zoo

import tlv_jax
from tlv_jax import methods


@pytest.mark.parametrize(
    ("source", "target", "count", "last"),
    [
        ("vgg11", "vgg16", 5, ("features.18", "features.28")),
        ("vgg13_bn", "vgg19_bn", 12, ("features.31", "features.49")),
        ("resnet18", "resnet34", 32, ("layer4.1/bn2", "layer4.1/bn2")),
        ("resnet50", "wide_resnet101_2", 102, ("layer4.2/bn3", "layer4.2/bn3")),
        ("efficientnet_b0", "efficientnet_b1", 54, ("features.8.1", "features.8.1")),
    ],
)
def test_every_layer_of_the_source_is_used_once(source, target, count, last):
    source, target = zoo.network_of(source), zoo.network_of(target)
    plan = tlv_jax.plan_transfer(source, target, methods.NET2NET)
    sources, targets = zip(*plan.pairs, strict=True)
    assert set(sources) == {layer.path for layer in source.layers}
    assert len(set(sources)) == len(sources) == len(set(targets))
    assert len(target.layers) - len(targets) == count
    assert tuple(f"params/{name}" for name in last) in plan.pairs
    assert not any("inserted, but" in leaf.reason for leaf in plan.untouched)


def test_blocks_of_one_network_stay_together():
    networks = [zoo.network_of(name) for name in ("resnet50", "wide_resnet101_2")]
    plan = tlv_jax.plan_transfer(*networks, methods.NET2NET)
    assert all(source == target for source, target in plan.pairs)
