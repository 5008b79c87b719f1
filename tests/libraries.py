"""Networks built of each library's own modules.

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
from flax import nnx

from tlv_jax.layers.jaxprs import split_arrays
from tlv_jax.layers.paths import is_array

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

    @property
    def window(self):
        return (1, 2, 2, 1) if self.axis == -1 else (1, 1, 2, 2)

    def pool(self, x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *[self.window] * 2, "VALID")

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
        del bias  # always there
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
        return hk.max_pool(x, self.window, self.window, "VALID")

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


def drawn(tree, seed=0):
    """The same tree with numbers in it, none of them negative: some are variances."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        if not is_array(leaf):
            return leaf
        return jnp.asarray(np.abs(generator.standard_normal(leaf.shape)), leaf.dtype)

    return jax.tree.map(draw, tree)


def compiled(fn, *args):
    """Calls the function in `jit`, where arguments that are no arrays stay as they are."""
    arrays, put = split_arrays(args)
    return jax.jit(lambda arrays: fn(*put(arrays)))(arrays)
