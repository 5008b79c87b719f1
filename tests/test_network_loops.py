"""Tracing blocks that libraries scan over or rematerialize, and layers within loops."""

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from trees import random_variables

import tlv_jax

KEY = jax.eval_shape(lambda: jax.random.key(0))
NHWC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def short(path):
    return path.rpartition("/")[2]


def graph(layers):
    return {short(layer.path): {short(path) for path in layer.inputs} for layer in layers}


def linen_blocks(remat, scan):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = x + nn.relu(nn.Conv(4, (3, 3), name="a")(x))
            return nn.Dense(4, name="b")(nn.LayerNorm(name="n")(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (1, 1), name="stem")(x)
            block = nn.remat(Block) if remat else Block
            if scan:
                split = {"params": True}
                block = nn.scan(block, variable_axes={"params": 0}, split_rngs=split, length=2)
            return nn.Conv(2, (1, 1), name="head")(block(name="block")(x, None)[0])

    params = jax.eval_shape(Net().init, KEY, NHWC)
    return tlv_jax.trace(Net().apply, params, NHWC).layers


def nnx_blocks(remat, scan):
    class Block(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.a = nnx.Conv(4, 4, (3, 3), rngs=rngs)
            self.n = nnx.LayerNorm(4, rngs=rngs)
            self.b = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return self.b(self.n(x + nnx.relu(self.a(x))))

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.stem = nnx.Conv(3, 4, (1, 1), rngs=rngs)
            make = lambda _: Block()  # noqa: E731
            make = nnx.vmap(make, in_axes=None, axis_size=2) if scan else make
            self.block = make(0)
            self.head = nnx.Conv(4, 2, (1, 1), rngs=rngs)

        def __call__(self, x):
            call = lambda block, x: block(x)  # noqa: E731
            call = nnx.remat(call) if remat else call
            if scan:
                call = nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return self.head(call(self.block, self.stem(x)))

    graph, params = nnx.split(nnx.eval_shape(Net))
    return tlv_jax.trace(lambda params, x: nnx.merge(graph, params)(x), params, NHWC).layers


def equinox_blocks(remat, scan):
    def block_of(key):
        conv = eqx.nn.Conv2d(4, 4, 3, padding=1, key=key)
        return {"a": conv, "n": eqx.nn.LayerNorm(4), "b": eqx.nn.Linear(4, 4, key=key)}

    def make():
        key = jax.random.key(0)
        return {
            "stem": eqx.nn.Conv2d(3, 4, 1, key=key),
            "block": eqx.filter_vmap(block_of)(jax.random.split(key)) if scan else block_of(key),
            "head": eqx.nn.Conv2d(4, 2, 1, key=key),
        }

    def call(block, x):
        x = x + jax.nn.relu(block["a"](x))
        rows = jax.vmap(block["n"])(x.reshape(4, -1).T)
        return jax.vmap(block["b"])(rows).T.reshape(x.shape)

    def fn(model, x):
        each = eqx.filter_checkpoint(call) if remat else call
        x = model["stem"](x)
        if scan:
            arrays, rest = eqx.partition(model["block"], eqx.is_array)
            step = lambda x, arrays: (each(eqx.combine(arrays, rest), x), None)  # noqa: E731
            x = jax.lax.scan(step, x, arrays)[0]
        else:
            x = each(model["block"], x)
        return model["head"](x)

    model = eqx.filter_eval_shape(make)
    return tlv_jax.trace(fn, model, jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)).layers


def haiku_blocks(remat, scan):
    def block(x):
        x = x + jax.nn.relu(hk.Conv2D(4, 3, name="a")(x))
        return hk.Linear(4, name="b")(hk.LayerNorm(-1, True, True, name="n")(x))

    def forward(x):
        x = hk.Conv2D(4, 1, name="stem")(x)
        each = hk.remat(block) if remat else block
        x = hk.layer_stack(2)(each)(x) if scan else each(x)
        return hk.Conv2D(2, 1, name="head")(x)

    net = hk.without_apply_rng(hk.transform(forward))
    params = jax.eval_shape(net.init, KEY, NHWC)
    return tlv_jax.trace(net.apply, params, NHWC).layers


MAKERS = (linen_blocks, nnx_blocks, equinox_blocks, haiku_blocks)


@pytest.mark.parametrize("remat", [False, True], ids=["stored", "remat"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_scanned_blocks_are_unrolled(make, remat):
    layers = make(remat, scan=True)
    assert [(short(layer.path), layer.index, layer.shape) for layer in layers] == [
        ("stem", (), (1, 1, 3, 4)),
        ("a[0]", (0,), (3, 3, 4, 4)),
        ("n[0]", (0,), (4,)),
        ("b[0]", (0,), (4, 4)),
        ("a[1]", (1,), (3, 3, 4, 4)),
        ("n[1]", (1,), (4,)),
        ("b[1]", (1,), (4, 4)),
        ("head", (), (1, 1, 4, 2)),
    ]
    assert graph(layers) == {
        "stem": set(),
        "a[0]": {"stem"},
        "n[0]": {"stem", "a[0]"},
        "b[0]": {"n[0]"},
        "a[1]": {"b[0]"},
        "n[1]": {"b[0]", "a[1]"},
        "b[1]": {"n[1]"},
        "head": {"b[1]"},
    }


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_rematerialized_blocks_are_entered(make):
    assert graph(make(remat=True, scan=False)) == {
        "stem": set(),
        "a": {"stem"},
        "n": {"stem", "a"},
        "b": {"n"},
        "head": {"b"},
    }
    assert make(remat=True, scan=False) == make(remat=False, scan=False)


def linen_loop(x):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Conv(3, (3, 3), name="shared")(x), None

    step = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False}, length=4)()
    params = jax.eval_shape(step.init, KEY, x, None)
    return lambda params, x: step.apply(params, x, None), params


def nnx_loop(x):
    def make():
        return nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(make))

    def fn(params, x):
        conv = nnx.merge(graph, params["shared"])
        step = lambda x: conv(x)  # noqa: E731
        return nnx.scan(step, in_axes=nnx.Carry, out_axes=nnx.Carry, length=4)(x)

    return fn, {"shared": state}


def haiku_loop(x):
    def forward(x):
        conv = hk.Conv2D(3, 3, name="shared")
        return hk.scan(lambda x, _: (conv(x), None), x, None, length=4)[0]

    net = hk.without_apply_rng(hk.transform(forward))
    return net.apply, jax.eval_shape(net.init, KEY, x)


def plain_loop(x):
    def fn(params, x):
        step = lambda _, x: x @ params["shared"]  # noqa: E731
        return jax.lax.fori_loop(0, 4, step, x)

    return fn, {"shared": jnp.zeros((3, 3))}


@pytest.mark.parametrize(
    "make", [linen_loop, nnx_loop, haiku_loop, plain_loop], ids=lambda make: make.__name__
)
def test_a_layer_within_a_loop_is_called_at_every_step(make):
    (layer,) = tlv_jax.trace(*make(NHWC), NHWC).layers
    assert (short(layer.path), layer.calls) == ("shared", 4)


def test_a_reversed_scan_runs_from_its_last_layer_to_its_first():
    def fn(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["w"], reverse=True)[0]

    layers = tlv_jax.trace(fn, {"w": jnp.zeros((3, 3, 3))}, NHWC).layers
    assert [layer.index for layer in layers] == [(2,), (1,), (0,)]
    assert layers[1].inputs == ("w[2]",)


METHOD = tlv_jax.Method(
    standardize=tlv_jax.layers.standardize_flat,
    match=tlv_jax.matching.ByIndex(),
    kinds=("conv", "norm", "bias"),
)


class NormedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes, split = {"params": 0, "batch_stats": 0}, {"params": True}
        block = nn.scan(NormedBlock, variable_axes=axes, split_rngs=split, length=3)
        return block(name="blocks")(nn.Conv(4, (1, 1), name="stem")(x), None)[0]


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="stem")(x)
        for number in range(3):
            x, _ = NormedBlock(name=f"block{number}")(x, None)
        return x


@pytest.mark.parametrize(
    ("source", "target"),
    [(Unrolled(), Scanned()), (Scanned(), Unrolled())],
    ids=["into scanned", "out of scanned"],
)
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(f, static_argnums=0)])
def test_norms_and_biases_of_scanned_blocks_are_transferred_step_by_step(source, target, wrap):
    images = jax.random.normal(jax.random.key(0), NHWC.shape)

    shapes = [jax.eval_shape(model.init, KEY, NHWC) for model in (source, target)]
    # Positive, so that sums do not cancel and each element can be compared.
    variables = [jax.tree.map(abs, random_variables(tree, n)) for n, tree in enumerate(shapes)]
    networks = [
        tlv_jax.trace(model.apply, tree, NHWC)
        for model, tree in zip((source, target), variables, strict=True)
    ]
    plan = tlv_jax.plan_transfer(*networks, METHOD)
    new = wrap(tlv_jax.apply_transfer)(plan, jax.random.key(3), *variables)
    chex.assert_trees_all_close(
        target.apply(new, images), source.apply(variables[0], images), rtol=1e-5
    )
