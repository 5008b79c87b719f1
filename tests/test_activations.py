"""What chosen layers read and write, beside what the libraries' own modules take and return."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import KEY, LIBRARIES, NHWC, compiled, drawn
from small_models import SMALL_MODELS
from trees import leaves, normal, random_variables

import tlv_jax
from tlv_jax.errors import OptionError
from tlv_jax.layers.activations import activations


def watched(fn, params, *inputs, names):
    """The layers with these last names, and their calls."""
    layers = tlv_jax.trace(fn, params, *inputs).layers
    named = {layer.path.rpartition("/")[2]: layer for layer in layers if layer.kind != "norm"}
    chosen = [named[name] for name in names]
    paths = [layer.path for layer in chosen]
    calls = compiled(functools.partial(activations, fn, paths=paths), params, *inputs)
    return [(layer, calls[layer.path]) for layer in chosen]


def channels_last(array, axes):
    return jnp.moveaxis(array, axes, range(-len(axes), 0))


def check(params, layer, call, read, output):
    """Compares a call with what a module takes and returns, both with their channels last."""
    bias = leaves(params)[dict(layer.vectors)["bias"]].reshape(-1) if layer.vectors else 0
    near(channels_last(call.reads, call.read_axes), read)
    near(
        channels_last(call.writes, call.written_axes) + jnp.broadcast_to(bias, output.shape), output
    )


def near(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def body(library, x, watch=False):
    stem = library.conv("stem", x, 4, (3, 3))
    normed = jax.nn.relu(library.batch_norm("norm", stem))
    deep = library.conv("deep", normed, 6, (3, 3), strides=2, groups=2)
    flat = library.flatten(jax.nn.gelu(deep))
    head = library.dense("head", flat, 5)
    return [(x, stem), (normed, deep), (flat, head)] if watch else head


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_layers_read_and_write_what_the_modules_of_each_library_do(library):
    fn, params, statistics = library.build(body)
    whole, _, _ = library.build(functools.partial(body, watch=True))
    params, statistics = drawn(params), drawn(statistics)
    images = jnp.asarray(normal(0, 3, *library.images.shape[1:]))  # not two, as it is built for
    expected = compiled(whole, params, statistics, images)
    expected = expected if isinstance(expected, list) else expected[0]
    place = -1 if library.images is NHWC else 1
    seen = watched(fn, params, statistics, images, names=["stem", "deep", "head"])
    for (layer, (call,)), pair in zip(seen, expected, strict=True):
        check(params, layer, call, *(jnp.moveaxis(each, place, -1) for each in pair))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32"])
def test_the_head_of_a_zoo_model_reads_its_features(name):
    model = SMALL_MODELS[name]
    images = jnp.asarray(normal(0, 3, 32, 32, 3))
    variables = random_variables(jax.eval_shape(model.init, KEY, images), seed=0)
    head = tlv_jax.trace(model.apply, variables, images[:1]).layers[-1].path

    @jax.jit
    def both(variables, images):
        calls = activations(model.apply, variables, images, paths=[head])
        return calls[head], model.apply(variables, images, method="features")

    (call,), features = both(variables, images)
    near(call.reads, features)
    assert (call.read_axes, call.written_axes) == ((1,), (1,))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Conv(3, (3, 3), name="conv")(x)), x.mean()


class Blocks(nn.Module):
    """Three blocks, one after another, each in `jit` and `remat`, or scanned over in `remat`."""

    how: str = "plain"

    @nn.compact
    def __call__(self, x):
        if self.how == "scan":
            axes, split = {"params": 0}, {"params": True}
            many = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs=split, length=3)
            x, means = many(name="block")(x, None)
        else:
            block, means = Block if self.how == "plain" else nn.jit(nn.remat(Block)), []
            for step in range(3):
                x, mean = block(name=f"block{step}")(x)
                means.append(mean)
        return nn.Dense(2, name="head")(x * jnp.stack(list(means)).sum())


@pytest.fixture(scope="module")
def intercepted():
    """What Linen's own modules take and return in three blocks, by their paths."""
    seen = {}
    images = jnp.asarray(normal(0, 2, 6, 6, 3))
    variables = drawn(jax.eval_shape(Blocks().init, KEY, images))

    def interceptor(call, args, kwargs, context):
        result = call(*args, **kwargs)
        seen["/".join(("params", *context.module.path))] = args[0], result
        return result

    with nn.intercept_methods(interceptor):
        Blocks().apply(variables, images)
    return variables, images, seen


def test_layers_within_jit_and_remat_are_watched(intercepted):
    variables, images, seen = intercepted
    names = ["conv", "head"]
    for layer, (call,) in watched(Blocks("calls").apply, variables, images, names=names):
        check(variables, layer, call, *seen[layer.path])


def test_every_step_of_a_scan_over_stacked_layers_is_watched(intercepted):
    variables, images, seen = intercepted
    blocks = [variables["params"][f"block{step}"] for step in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params = {"params": {"block": stacked, "head": variables["params"]["head"]}}
    model = Blocks("scan")
    names = [*(f"conv[{step}]" for step in range(3)), "head"]
    calls = watched(model.apply, params, images, names=names)
    for step, (_, (call,)) in enumerate(calls[:-1]):
        read, output = seen[f"params/block{step}/conv"]
        near(call.reads, read)
        near(call.writes + blocks[step]["conv"]["bias"][None, None, None], output)
    check(variables, calls[-1][0], calls[-1][1][0], *seen["params/head"])


def test_a_layer_that_runs_twice_has_two_calls_the_same_outside_of_jit():
    shift = jnp.asarray(normal(2, 2, 3))  # not an argument

    def fn(params, x):
        return jax.jit(lambda x: jnp.tanh(x + shift))(x @ params["w"]) @ params["w"]

    w, x = jnp.asarray(normal(0, 3, 3)), jnp.asarray(normal(1, 2, 3))
    first, second = activations(fn, {"w": w}, x, paths=["w"])["w"]
    near(first.reads, x)
    near(first.writes, x @ w)
    near(second.reads, jnp.tanh(x @ w + shift))
    near(second.writes, second.reads @ w)
    ((_, calls),) = watched(fn, {"w": w}, x, names=["w"])
    for eager, call in zip((first, second), calls, strict=True):
        near(call.writes, eager.writes)


def test_what_lies_behind_a_loop_is_watched_and_what_lies_in_it_is_refused():
    def fn(params, x):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params["loop"]), x)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ params["branch"], lambda x: x, x)
        x = jax.lax.scan(lambda x, _: (x @ params["scan"], x), x, length=2)[0]
        return x @ params["head"]

    names = ["loop", "branch", "scan", "head"]
    params = {name: jnp.asarray(normal(number, 3, 3)) for number, name in enumerate(names)}
    x = jnp.asarray(normal(9, 2, 3))
    ((_, (call,)),) = watched(fn, params, x, names=["head"])
    near(call.writes, fn(params, x))
    for name, operation in zip(names, ("while|scan", "cond", "scan"), strict=False):
        with pytest.raises(OptionError, match=f"'{name}' runs inside `({operation})`"):
            activations(fn, params, x, paths=[name])


def test_a_path_that_is_no_conv_or_dense_layer_is_refused():
    def fn(params, x):
        return x @ params["w"]

    with pytest.raises(OptionError, match=r"uses no conv or dense layer 'v'\. Its layers are w"):
        activations(fn, {"w": jnp.ones((3, 3))}, jnp.ones((2, 3)), paths=["v"])
