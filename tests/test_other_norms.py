"""Transfers between networks whose norms are of different kinds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees

import tlv_jax
from tlv_jax import methods

IMAGES = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
NORMS = {
    "batch": lambda: nn.BatchNorm(use_running_average=True),
    "group": lambda: nn.GroupNorm(4),
    "layer": nn.LayerNorm,
}


class Net(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x):
        for width in (8, 16, 16):
            x = nn.relu(NORMS[self.norm]()(nn.Conv(width, (3, 3), use_bias=False)(x)))
        return nn.Dense(5)(x.mean((1, 2)))


def network(norm, seed, closed=False):
    """With values in all norms; `closed` keeps running statistics out of the parameters."""
    model = Net(norm)
    variables = jax.tree.map(
        lambda leaf: jax.random.uniform(jax.random.key(seed), leaf.shape, minval=0.5),
        model.init(jax.random.key(seed), IMAGES),
    )
    if not closed:
        return tlv_jax.trace(model.apply, variables, IMAGES)
    statistics = variables["batch_stats"]
    return tlv_jax.trace(
        lambda params, images: model.apply({"params": params, "batch_stats": statistics}, images),
        variables["params"],
        IMAGES,
    )


def norms_of(network):
    return {layer.path for layer in network.layers if layer.kind == "norm"}


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("closed", [False, True], ids=["in the tree", "closed over"])
@pytest.mark.parametrize("method", [methods.DEFAULT, methods.DPIAT], ids=["default", "dpiat"])
def test_norms_of_another_kind_stay_as_they_are(norm, closed, method):
    batch, other = network("batch", 1, closed), network(norm, 2)
    for source, target in ((batch, other), (other, batch)):
        plan = tlv_jax.plan_transfer(source, target, method)
        convs = {layer.path for layer in target.layers if layer.kind == "conv"}
        assert convs <= {path for _, path in plan.pairs}
        assert not norms_of(target) & {path for _, path in plan.pairs}
        reasons = {leaf.path: leaf.reason for leaf in plan.untouched}
        given = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
        before, after = (trees.leaves(tree) for tree in (target.params, given))
        for layer in target.layers:
            if layer.kind == "norm":
                for path in (layer.weight, *dict(layer.vectors).values()):
                    assert "one is a batch norm" in reasons[path]
                    np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize(
    ("given", "own", "closed"),
    [
        ("batch", "batch", False),
        ("batch", "batch", True),
        ("group", "group", False),
        ("layer", "group", False),
    ],
    ids=["batch norms", "batch norms closed over", "group norms", "layer into group norms"],
)
def test_norms_of_the_same_kind_are_transferred(given, own, closed):
    target = network(own, 2, closed)
    plan = tlv_jax.plan_transfer(network(given, 1), target)
    assert norms_of(target) <= {path for _, path in plan.pairs}


def test_bare_trees_whose_norms_are_not_known_are_transferred():
    source, target = network("group", 1).params, network("group", 2)
    with pytest.warns(tlv_jax.UnknownOrderWarning):
        plan = tlv_jax.plan_transfer(source, target, tlv_jax.Method(kinds=("norm",)))
    assert norms_of(target) == {path for _, path in plan.pairs}


def test_a_deep_network_with_group_norms_still_tells_images_apart():
    class Deep(nn.Module):
        norm: str

        @nn.compact
        def __call__(self, x):
            for _ in range(8):
                x = nn.relu(NORMS[self.norm]()(nn.Conv(16, (3, 3), use_bias=False)(x)))
            return x.mean((1, 2))

    def deep(norm, seed):
        model = Deep(norm)
        return model, model.init(jax.random.key(seed), IMAGES)

    (source, given), (target, own) = deep("batch", 1), deep("group", 2)
    # As in a trained network, norms have biases.
    given = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + (path[-1].key == "bias"), given
    )
    src = tlv_jax.trace(source.apply, given, IMAGES)
    dst = tlv_jax.trace(target.apply, own, IMAGES)
    before, after = (
        jnp.std(target.apply(each, IMAGES), 0).mean() for each in (own, tlv_jax.transfer(src, dst))
    )
    assert after > before / 2
