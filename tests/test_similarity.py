"""How alike two networks are."""

import numpy as np
import pytest
import trees
import zoo

import tlv_jax


@pytest.mark.parametrize(
    ("source", "target", "low", "high"),
    [
        ("resnet18", "resnet18", 1, 1),
        ("resnet50", "resnet18", 0.5, 0.9),
        ("vgg11", "resnet18", 0, 0.4),
    ],
)
def test_similarity_is_that_of_shapes(source, target, low, high):
    bare = tlv_jax.similarity(trees.shapes(source), trees.shapes(target))
    assert low <= bare <= high
    traced = zoo.network_of(source), zoo.network_of(target)
    assert tlv_jax.similarity(*traced) == pytest.approx(bare)
    assert tlv_jax.similarity(traced[0], trees.shapes(target)) == pytest.approx(bare)


def test_of_several_sources_the_most_similar_one_counts():
    sources = [zoo.network_of(name) for name in ("vgg11", "resnet18")]
    assert tlv_jax.similarity(sources, zoo.network_of("resnet18")) == 1


def test_similarity_of_a_tree_without_layers_is_an_error():
    with (
        pytest.warns(tlv_jax.UnknownOrderWarning),
        pytest.raises(tlv_jax.ParameterTreeError, match="dst"),
    ):
        tlv_jax.similarity(trees.source_tree(), {"x": np.zeros(3)})
