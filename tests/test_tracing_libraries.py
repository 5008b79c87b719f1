"""Tracing models that are built of each library's own modules.

A network's body is written once, against the few methods of `Library`. Each library makes its own
modules of it, and gives `fn(params, statistics, images)` with abstract arguments: nothing compiles.
"""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tlv_jax
from tlv_jax.standardization import find_layers

KEY = jax.eval_shape(lambda: jax.random.key(0))
NHWC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
NCHW = jax.ShapeDtypeStruct((2, 3, 8, 8), jnp.float32)


class Library:
    """What a body may call. The modules of a body are kept by name, so that it can reuse them."""

    axis = -1  # of the channels
    images = NHWC

    def __init__(self):
        self.modules = {}

    def made(self, name, make):
        if name not in self.modules:
            self.modules[name] = make()
        return self.modules[name]

    def pool(self, x):
        window = (1, 2, 2, 1) if self.axis == -1 else (1, 1, 2, 2)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    def flatten(self, x):
        return x.reshape(len(x), -1)


class Linen(Library):
    def conv(self, name, x, features, size, strides=1, groups=1):
        options = {"strides": strides, "feature_group_count": groups, "name": name}
        return self.made(name, lambda: nn.Conv(features, size, **options))(x)

    def dense(self, name, x, features):
        return self.made(name, lambda: nn.Dense(features, name=name))(x)

    def batch_norm(self, name, x, train=False, bias=True):
        make = functools.partial(nn.BatchNorm, use_bias=bias, name=name)
        return self.made(name, make)(x, use_running_average=not train)

    def layer_norm(self, name, x):
        return self.made(name, lambda: nn.LayerNorm(name=name))(x)

    def group_norm(self, name, x):
        return self.made(name, lambda: nn.GroupNorm(2, name=name))(x)

    def pool(self, x):
        return nn.max_pool(x, (2, 2), (2, 2))

    @classmethod
    def build(cls, body):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return body(cls(), x)

        variables = dict(jax.eval_shape(Net().init, KEY, NHWC))

        def fn(params, statistics, x):
            mutable = list(statistics)
            return Net().apply({"params": params, **statistics}, x, mutable=mutable)

        return fn, variables.pop("params"), variables


class NNX(Library):
    def __init__(self, net):
        self.net = net
        self.rngs = nnx.Rngs(0)

    def made(self, name, make):
        if not hasattr(self.net, name):
            setattr(self.net, name, make(rngs=self.rngs))
        return getattr(self.net, name)

    def conv(self, name, x, features, size, strides=1, groups=1):
        options = {"strides": strides, "feature_group_count": groups}
        make = functools.partial(nnx.Conv, x.shape[-1], features, size, **options)
        return self.made(name, make)(x)

    def dense(self, name, x, features):
        return self.made(name, functools.partial(nnx.Linear, x.shape[-1], features))(x)

    def batch_norm(self, name, x, train=False, bias=True):
        make = functools.partial(nnx.BatchNorm, x.shape[-1], use_bias=bias)
        return self.made(name, make)(x, use_running_average=not train)

    def layer_norm(self, name, x):
        return self.made(name, functools.partial(nnx.LayerNorm, x.shape[-1]))(x)

    def group_norm(self, name, x):
        return self.made(name, functools.partial(nnx.GroupNorm, x.shape[-1], 2))(x)

    @classmethod
    def build(cls, body):
        class Net(nnx.Module):
            pass

        def make():
            net = Net()
            body(cls(net), jnp.zeros(NHWC.shape))
            return net

        graph, params, statistics = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

        def fn(params, statistics, x):
            return body(cls(nnx.merge(graph, params, statistics)), x)

        return fn, params, statistics


class Equinox(Library):
    axis = 0  # of one example
    images = NCHW

    def __init__(self, modules=None, state=None):
        self.modules = {} if modules is None else modules
        self.state = state

    def conv(self, name, x, features, size, strides=1, groups=1):
        options = {"padding": "SAME", "groups": groups, "key": jax.random.key(0)}
        make = functools.partial(eqx.nn.Conv2d, len(x), features, size, strides, **options)
        return self.made(name, make)(x)

    def dense(self, name, x, features):
        make = functools.partial(eqx.nn.Linear, len(x), features, key=jax.random.key(0))
        return self.made(name, make)(x)

    def batch_norm(self, name, x, train=False, bias=True):
        norm = self.made(name, lambda: eqx.nn.BatchNorm(len(x), "batch", mode="batch"))
        if self.state is None:
            return x
        x, self.state = norm(x, self.state, inference=not train)
        return x

    def layer_norm(self, name, x):
        norm = self.made(name, lambda: eqx.nn.LayerNorm(len(x)))
        return jax.vmap(jax.vmap(norm, 1, 1), 2, 2)(x)

    def group_norm(self, name, x):
        return self.made(name, lambda: eqx.nn.GroupNorm(2, len(x)))(x)

    def pool(self, x):
        return eqx.nn.MaxPool2d(2, 2)(x)

    def flatten(self, x):
        return x.reshape(-1)

    @classmethod
    def build(cls, body):
        def make():
            library = cls()
            body(library, jnp.zeros(NCHW.shape[1:]))
            return library.modules

        def fn(params, state, x):
            return jax.vmap(lambda x: body(cls(params, state), x), axis_name="batch")(x)

        return fn, *eqx.filter_eval_shape(eqx.nn.make_with_state(make))


class Haiku(Library):
    layout = "NHWC"

    def conv(self, name, x, features, size, strides=1, groups=1):
        options = {"feature_group_count": groups, "data_format": self.layout, "name": name}
        return self.made(name, lambda: hk.Conv2D(features, size, strides, **options))(x)

    def dense(self, name, x, features):
        return self.made(name, lambda: hk.Linear(features, name=name))(x)

    def batch_norm(self, name, x, train=False, bias=True):
        make = functools.partial(hk.BatchNorm, True, bias, 0.9, data_format=self.layout, name=name)
        # The statistics are there only after a call in training.
        return self.made(name, make)(x, is_training=train or hk.running_init())

    def layer_norm(self, name, x):
        make = functools.partial(hk.LayerNorm, self.axis, True, True, param_axis=self.axis)
        return self.made(name, functools.partial(make, name=name))(x)

    def group_norm(self, name, x):
        make = functools.partial(hk.GroupNorm, 2, data_format=self.layout, name=name)
        return self.made(name, make)(x)

    def pool(self, x):
        window = (1, 2, 2, 1) if self.axis == -1 else (1, 1, 2, 2)
        return hk.max_pool(x, window, window, "VALID")

    def flatten(self, x):
        return hk.Flatten()(x)

    @classmethod
    def build(cls, body):
        net = hk.without_apply_rng(hk.transform_with_state(lambda x: body(cls(), x)))
        params, state = jax.eval_shape(net.init, KEY, cls.images)
        return net.apply, params, state


class HaikuNCHW(Haiku):
    axis = 1
    images = NCHW
    layout = "NCHW"


class Plain(Library):
    """Functions over a dict, kernels as Flax keeps them."""

    kernel = "HWIO"

    def __init__(self, params, statistics):
        self.params, self.statistics = params, statistics

    def leaf(self, name, leaf, shape, tree=None):
        tree = self.params if tree is None else tree
        return tree.setdefault(name, {}).setdefault(leaf, jnp.zeros(shape))

    def channels(self, vector, x):
        return vector.reshape([-1 if n == self.axis % x.ndim else 1 for n in range(x.ndim)])

    def conv(self, name, x, features, size, strides=1, groups=1):
        sizes = dict(zip("HWIO", (*size, x.shape[self.axis] // groups, features), strict=True))
        kernel = self.leaf(name, "kernel", [sizes[letter] for letter in self.kernel])
        layout = "NHWC" if self.axis == -1 else "NCHW"
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            "SAME",
            dimension_numbers=(layout, self.kernel, layout),
            feature_group_count=groups,
        )
        return x + self.channels(self.leaf(name, "bias", features), x)

    def dense(self, name, x, features):
        shape = (x.shape[-1], features)
        if self.kernel == "HWIO":
            return x @ self.leaf(name, "kernel", shape) + self.leaf(name, "bias", features)[None]
        return x @ self.leaf(name, "kernel", shape[::-1]).T

    def scaled(self, name, x, bias=True):
        size = x.shape[self.axis]
        x = x * self.channels(self.leaf(name, "scale", size), x)
        return x + self.channels(self.leaf(name, "bias", size), x) if bias else x

    def batch_norm(self, name, x, train=False, bias=True):
        size = x.shape[self.axis]
        mean, var = (
            self.channels(self.leaf(name, leaf, size, self.statistics), x)
            for leaf in ("mean", "var")
        )
        if train:
            axes = tuple(n for n in range(x.ndim) if n != self.axis % x.ndim)
            mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return self.scaled(name, (x - mean) * jax.lax.rsqrt(var + 1e-5), bias)

    def layer_norm(self, name, x):
        mean, var = (f(x, self.axis, keepdims=True) for f in (jnp.mean, jnp.var))
        return self.scaled(name, (x - mean) / jnp.sqrt(var + 1e-5))

    def group_norm(self, name, x):
        return self.scaled(name, jax.nn.standardize(x, axis=(1, 2, 3)))

    @classmethod
    def build(cls, body):
        def make(x):
            library = cls({}, {})
            body(library, x)
            return library.params, library.statistics

        def fn(params, statistics, x):
            return body(cls(params, statistics), x)

        return fn, *jax.eval_shape(make, cls.images)


class PlainNCHW(Plain):
    """Functions over a dict, kernels as torch keeps them."""

    axis = 1
    images = NCHW
    kernel = "OIHW"


LIBRARIES = (Linen, NNX, Equinox, Haiku, HaikuNCHW, Plain, PlainNCHW)
libraries = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)


def traced(library, body):
    fn, params, statistics = library.build(body)
    return tlv_jax.trace_layers(fn, params, statistics, library.images)


def short(path):
    return path.rpartition("/")[2]


def graph(layers):
    return {short(layer.path): {short(path) for path in layer.inputs} for layer in layers}


def straight(library, x, train=False):
    x = library.conv("stem", x, 8, (3, 5), strides=2)
    x = jax.nn.relu(library.batch_norm("bn", x, train=train))
    x = library.conv("grouped", x, 8, (3, 3), groups=4)
    x = library.pool(jax.nn.gelu(library.group_norm("gn", x)))
    x = library.layer_norm("ln", library.conv("depthwise", x, 8, (3, 3), groups=8))
    return library.dense("head", library.flatten(x), 5)


@libraries
def test_order_kinds_and_shapes(library):
    layers = traced(library, straight)
    # NNX and plain functions make modules in the order of execution, the rest sort or nest them.
    assert [(short(layer.path), layer.kind, layer.shape) for layer in layers] == [
        ("stem", "conv", (3, 5, 3, 8)),
        ("bn", "norm", (8,)),
        ("grouped", "conv", (3, 3, 2, 8)),
        ("gn", "norm", (8,)),
        ("depthwise", "conv", (3, 3, 1, 8)),
        ("ln", "norm", (8,)),
        ("head", "dense", (32, 5)),
    ]
    convs = [layer for layer in layers if layer.kind == "conv"]
    assert [layer.groups for layer in convs] == [1, 4, 8]
    assert [layer.strides for layer in convs] == [(2, 2), (1, 1), (1, 1)]
    assert all(layer.calls == 1 for layer in layers)
    first = library in (Equinox, PlainNCHW)  # the library that keeps kernels as OIHW
    assert {layer.axes for layer in convs} == {(2, 3, 1, 0) if first else (0, 1, 2, 3)}
    assert layers[-1].axes == ((1, 0) if first else (0, 1))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@libraries
def test_a_chain_through_norms_activations_pools_and_reshapes(library, train):
    layers = traced(library, functools.partial(straight, train=train))
    names = [short(layer.path) for layer in layers]
    before = [set(), *({name} for name in names)]
    assert graph(layers) == dict(zip(names, before, strict=False))


def branched(library, x):
    a = library.conv("a", x, 8, (1, 1))
    left, right = jnp.split(library.layer_norm("n", a), 2, library.axis)
    b, c = library.conv("b", left, 4, (3, 3)), library.conv("c", right, 4, (3, 3))
    x = a + jnp.concatenate([b, jax.nn.relu(c)], library.axis)
    x = x + library.batch_norm("o", library.conv("d", x, 8, (1, 1)))
    return library.dense("head", library.flatten(library.pool(x)), 5)


@libraries
def test_splits_concatenations_and_residual_sums(library):
    assert graph(traced(library, branched)) == {
        "a": set(),
        "n": {"a"},
        "b": {"n"},
        "c": {"n"},
        "d": {"a", "b", "c"},
        "o": {"d"},
        "head": {"a", "b", "c", "o"},
    }


@pytest.mark.parametrize("norm", ["layer_norm", "group_norm", "batch_norm"])
@libraries
def test_a_residual_around_a_norm_alone_has_two_sources(library, norm):
    def body(library, x):
        x = library.conv("a", x, 8, (1, 1))
        return library.conv("b", x + getattr(library, norm)("n", x), 8, (1, 1))

    assert graph(traced(library, body)) == {"a": set(), "n": {"a"}, "b": {"a", "n"}}


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@libraries
def test_a_norm_without_bias_whose_statistics_are_another_argument(library, train):
    def body(library, x):
        x = library.conv("a", x, 8, (1, 1))
        return library.conv("b", library.batch_norm("n", x, train=train, bias=False), 8, (1, 1))

    assert graph(traced(library, body)) == {"a": set(), "n": {"a"}, "b": {"n"}}


@libraries
def test_layers_that_are_called_again_are_counted(library):
    def body(library, x):
        x = library.conv("stem", x, 8, (3, 3))
        for _ in range(3):
            x = jax.nn.relu(library.batch_norm("norm", library.conv("shared", x, 8, (3, 3))))
        return library.dense("head", library.flatten(x), 5)

    layers = traced(library, body)
    assert {short(layer.path): layer.calls for layer in layers} == {
        "stem": 1, "shared": 3, "norm": 3, "head": 1,
    }  # fmt: skip
    assert graph(layers)["shared"] == {"stem", "norm"}


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
    return tlv_jax.trace_layers(Net().apply, params, NHWC)


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
    return tlv_jax.trace_layers(lambda params, x: nnx.merge(graph, params)(x), params, NHWC)


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
    return tlv_jax.trace_layers(fn, model, jax.ShapeDtypeStruct((3, 8, 8), jnp.float32))


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
    return tlv_jax.trace_layers(net.apply, params, NHWC)


MAKERS = (linen_blocks, nnx_blocks, equinox_blocks, haiku_blocks)


@pytest.mark.parametrize("remat", [False, True], ids=["stored", "remat"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_scanned_blocks_are_unrolled(make, remat):
    layers = [layer for layer in make(remat, scan=True) if layer.kind != "norm"]
    assert [(short(layer.path), layer.index, layer.shape) for layer in layers] == [
        ("stem", (), (1, 1, 3, 4)),
        ("a[0]", (0,), (3, 3, 4, 4)),
        ("b[0]", (0,), (4, 4)),
        ("a[1]", (1,), (3, 3, 4, 4)),
        ("b[1]", (1,), (4, 4)),
        ("head", (), (1, 1, 4, 2)),
    ]


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
    (layer,) = tlv_jax.trace_layers(*make(NHWC), NHWC)
    assert (short(layer.path), layer.calls) == ("shared", 4)


def test_a_reversed_scan_runs_from_its_last_layer_to_its_first():
    def fn(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["w"], reverse=True)[0]

    layers = tlv_jax.trace_layers(fn, {"w": jnp.zeros((3, 3, 3))}, NHWC)
    assert [layer.index for layer in layers] == [(2,), (1,), (0,)]
    assert layers[1].inputs == ("w[2]",)


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


@pytest.mark.parametrize(
    ("library", "collection"),
    [(Linen, "batch_stats"), (Haiku, "state"), (HaikuNCHW, "state"), (Plain, "batch_stats")],
    ids=["Linen", "Haiku", "HaikuNCHW", "Plain"],
)
def test_a_norm_has_its_bias_and_running_statistics(library, collection):
    fn, params, statistics = library.build(straight)
    statistics = statistics.get(collection, statistics)
    wrapped = library is Linen

    def call(tree, x):
        return fn(
            tree["params"], {collection: tree[collection]} if wrapped else tree[collection], x
        )

    tree = {"params": params, collection: statistics}
    layers = tlv_jax.trace_layers(call, tree, library.images)
    names = {short(layer.path): [name for name, _ in layer.vectors] for layer in layers}
    assert names["bn"] == ["bias", "mean", "var"]
    assert names["gn"] == names["ln"] == names["stem"] == names["head"] == ["bias"]
    found = {layer.path: layer for layer in find_layers(tree, name="tree")[0]}
    assert {path: layer.vectors for path, layer in found.items()} == {
        layer.path: layer.vectors for layer in layers
    }


def haiku_net(width):
    def forward(x):
        library = Haiku()
        x = library.conv("a", x, width, (3, 3))
        x = library.conv("b", jax.nn.relu(library.batch_norm("n", x)), width, (3, 3))
        return library.dense("head", library.flatten(x), 5)

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
