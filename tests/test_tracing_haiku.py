"""Haiku's own networks, and a transfer from one Haiku network to another."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tlv_jax

KEY = jax.eval_shape(lambda: jax.random.key(0))
NHWC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


@pytest.mark.parametrize("version", [1, 2])
def test_a_network_that_comes_with_haiku(version):
    def forward(x):
        return hk.nets.ResNet18(5, resnet_v2=version == 2)(x, is_training=hk.running_init())

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(net.init, KEY, NHWC)
    layers = tlv_jax.trace_layers(lambda *trees: net.apply(*trees)[0], params, state, NHWC)
    kinds = [layer.kind for layer in layers]
    assert [kinds.count(kind) for kind in ("conv", "dense")] == [20, 1]
    assert [layer.path for layer in layers][-1].endswith("logits")
    blocks = tlv_jax.standardize_graph(layers, ("conv",))
    assert sum(isinstance(block, tuple) for block in blocks) >= 8


def haiku_net(width):
    def forward(x):
        x = hk.Conv2D(width, 3, name="a")(x)
        # The statistics are there only after a call in training.
        x = hk.BatchNorm(True, True, 0.9, name="n")(x, is_training=hk.running_init())
        x = hk.Conv2D(width, 3, name="b")(jax.nn.relu(x))
        return hk.Linear(5, name="head")(hk.Flatten()(x))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    shapes = dict(zip(("params", "state"), jax.eval_shape(net.init, KEY, NHWC), strict=True))

    def fn(tree, x):
        return net.apply(tree["params"], tree["state"], x)

    draw = np.random.default_rng(width)
    tree = jax.tree.map(lambda leaf: draw.uniform(1, 2, leaf.shape).astype(leaf.dtype), shapes)
    return tree, tlv_jax.trace_layers(fn, shapes, NHWC)


@pytest.mark.parametrize("trace", [False, True], ids=["found", "traced"])
def test_a_haiku_network_takes_over_another(key, trace):
    (source, source_layers), (target, target_layers) = haiku_net(6), haiku_net(4)
    traced = {"src_layers": source_layers, "dst_layers": target_layers} if trace else {}
    kinds = ("conv", "dense", "norm", "bias")
    plan = tlv_jax.plan_transfer(source, target, kinds=kinds, **traced)
    assert set(plan.pairs) == {(f"params/{name}",) * 2 for name in ("a", "b", "n", "head")}
    assert {leaf.path for leaf in plan.untouched} == {
        f"state/n/~/{name}_ema/{leaf}" for name in ("mean", "var") for leaf in ("counter", "hidden")
    }
    fitted = tlv_jax.apply_transfer(plan, key, source, target)
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, target)
    for kind, module, leaf in (
        ("params", "n", "scale"),
        ("params", "n", "offset"),
        ("params", "a", "b"),
        ("state", "n/~/mean_ema", "average"),
        ("state", "n/~/var_ema", "average"),
    ):
        middle = source[kind][module][leaf][..., 1:5]
        np.testing.assert_array_equal(fitted[kind][module][leaf], middle)
