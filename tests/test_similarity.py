"""How alike two networks are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
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


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.width, (1, 1))(nn.Conv(3 * self.width, (3, 3))(x))


class Nested(nn.Module):
    """Each block is a module."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 6, 6, 8, 8):
            y = Block(width)(x)
            x = x + y if x.shape == y.shape else y
        return x


class Flat(nn.Module):
    """The same in one module, where names tell nothing about blocks."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 6, 6, 8, 8):
            y = nn.Conv(width, (1, 1))(nn.Conv(3 * width, (3, 3))(x))
            x = x + y if x.shape == y.shape else y
        return x


def test_names_of_modules_do_not_make_traced_networks_unlike():
    images = jnp.zeros((1, 8, 8, 3))
    shapes = [jax.eval_shape(model.init, jax.random.key(0), images) for model in (Nested(), Flat())]
    nested, flat = (
        tlv_jax.trace(model.apply, tree, images)
        for model, tree in zip((Nested(), Flat()), shapes, strict=True)
    )
    assert tlv_jax.similarity(nested, flat) == tlv_jax.similarity(flat, nested) == 1
    with pytest.warns(tlv_jax.UnknownOrderWarning):
        assert tlv_jax.similarity(*shapes) < 0.5  # by names, as published


def test_similarity_of_a_tree_without_layers_is_an_error():
    with (
        pytest.warns(tlv_jax.UnknownOrderWarning),
        pytest.raises(tlv_jax.ParameterTreeError, match="dst"),
    ):
        tlv_jax.similarity(trees.source_tree(), {"x": np.zeros(3)})
