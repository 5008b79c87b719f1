"""`transfer` on the networks of five libraries: what goes in comes out, with the right weights.

Every library has one small network of its own modules. Their names sort in another order than they
are executed in, two branches meet in a sum, and one module is called twice.
"""

import functools

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import relative_error

import tlv_jax
from tlv_jax.methods import BARE

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
CLASSES = 5
ALL = tlv_jax.Method(kinds=("conv", "dense", "norm", "bias"))
LAYERS = ("z_stem", "y_norm", "c_left", "b_right", "x_tied", "a_head")  # as executed

needs_nnx_trees = pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="NNX modules are pytrees since flax 0.12",
)


def linen(width):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            tied = nn.Conv(width, (3, 1), name="x_tied")
            x = nn.Conv(width, (3, 3), name="z_stem")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name="y_norm")(x))
            left = nn.Conv(width, (1, 3), name="c_left")(x)
            x = nn.relu(left + nn.Conv(width, (1, 1), name="b_right")(x))
            x = nn.relu(tied(nn.relu(tied(x))))
            return nn.Dense(CLASSES, name="a_head")(x.mean((1, 2)))

    return Net().apply, jax.eval_shape(Net().init, KEY, IMAGES)


class Module(nnx.Module):
    def __init__(self, width):
        rngs = nnx.Rngs(width)
        self.z_stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.y_norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
        self.c_left = nnx.Conv(width, width, (1, 3), rngs=rngs)
        self.b_right = nnx.Conv(width, width, (1, 1), rngs=rngs)
        self.x_tied = nnx.Conv(width, width, (3, 1), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.a_head = nnx.Linear(width, CLASSES, rngs=rngs)
        self.activation = nnx.relu
        self.steps = nnx.Variable(jnp.int32(7))

    def __call__(self, x):
        x = self.activation(self.y_norm(self.z_stem(x)))
        x = self.activation(self.c_left(x) + self.b_right(x))
        x = self.activation(self.x_tied(self.activation(self.x_tied(x))))
        return self.a_head(self.dropout(x).mean((1, 2)))


def of_nnx(width):
    return lambda model, x: model(x), nnx.eval_shape(lambda: Module(width))


class Equinox(eqx.Module):
    z_stem: eqx.nn.Conv2d
    y_norm: eqx.nn.BatchNorm
    c_left: eqx.nn.Conv2d
    b_right: eqx.nn.Conv2d
    x_tied: eqx.nn.Conv2d
    a_head: eqx.nn.Linear
    activation: object
    slope: float
    name: str = eqx.field(static=True)

    def __init__(self, width, mode, key):
        conv = functools.partial(eqx.nn.Conv2d, padding="SAME")
        keys = jax.random.split(key, 5)
        self.z_stem = conv(3, width, (3, 3), key=keys[0])
        self.y_norm = eqx.nn.BatchNorm(width, "batch", mode=mode)
        self.c_left = conv(width, width, (1, 3), key=keys[1])
        self.b_right = conv(width, width, (1, 1), key=keys[2])
        self.x_tied = conv(width, width, (3, 1), key=keys[3])
        self.a_head = eqx.nn.Linear(width, CLASSES, key=keys[4])
        self.activation, self.slope, self.name = jax.nn.leaky_relu, 0.0, "net"

    def __call__(self, x, state):
        def act(x):
            return self.activation(x, self.slope)

        x, state = self.y_norm(self.z_stem(x), state, inference=True)
        x = act(x)
        x = act(self.c_left(x) + self.b_right(x))
        x = act(self.x_tied(act(self.x_tied(x))))
        return self.a_head(x.mean((1, 2))), state


def equinox(width, mode="ema"):
    def fn(tree, x):
        model, state = tree
        return jax.vmap(lambda x: model(x.transpose(2, 0, 1), state)[0])(x)

    return fn, eqx.filter_eval_shape(eqx.nn.make_with_state(Equinox), width, mode, KEY)


def haiku(width):
    def forward(x):
        tied = hk.Conv2D(width, (3, 1), name="x_tied")
        x = hk.Conv2D(width, (3, 3), name="z_stem")(x)
        norm = hk.BatchNorm(True, True, 0.9, name="y_norm")
        x = jax.nn.relu(norm(x, is_training=hk.running_init()))
        left = hk.Conv2D(width, (1, 3), name="c_left")(x)
        x = jax.nn.relu(left + hk.Conv2D(width, (1, 1), name="b_right")(x))
        x = jax.nn.relu(tied(jax.nn.relu(tied(x))))
        return hk.Linear(CLASSES, name="a_head")(x.mean((1, 2)))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(net.init, KEY, IMAGES)
    tree = {"params": params, "state": state}
    return lambda tree, x: net.apply(tree["params"], tree["state"], x)[0], tree


def plain(width):
    def conv(layer, x):
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + layer["bias"].reshape(1, 1, 1, -1)

    def fn(params, x):
        norm = {name: leaf.reshape(1, 1, 1, -1) for name, leaf in params["y_norm"].items()}
        x = conv(params["z_stem"], x)
        x = (x - norm["mean"]) * jax.lax.rsqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = jax.nn.relu(x)
        x = jax.nn.relu(conv(params["c_left"], x) + conv(params["b_right"], x))
        for _ in range(2):
            x = jax.nn.relu(conv(params["x_tied"], x))
        return x.mean((1, 2)) @ params["a_head"]["kernel"] + params["a_head"]["bias"][None]

    def layer(*shape):
        return {"kernel": np.ones(shape, np.float32), "bias": np.ones(shape[-1:], np.float32)}

    params = {
        "z_stem": layer(3, 3, 3, width),
        "y_norm": {name: np.ones(width, np.float32) for name in ("scale", "bias", "mean", "var")},
        "c_left": layer(1, 3, width, width),
        "b_right": layer(1, 1, width, width),
        "x_tied": layer(3, 1, width, width),
        "a_head": layer(width, CLASSES),
        "step": np.int32(7),
    }
    return fn, params


RECIPES = {
    "linen": linen,
    "nnx": of_nnx,
    "equinox": equinox,
    "haiku": haiku,
    "plain": plain,
    "debiased": functools.partial(equinox, mode="batch"),
}
FIVE = list(RECIPES)[:5]


def recipe(*names):
    return pytest.param(*names, marks=needs_nnx_trees if "nnx" in names else ())


@functools.cache
def network(recipe, width, seed):
    """A traced network with random parameters and statistics; its integers are the seed."""
    fn, tree = RECIPES[recipe](width)
    draw = np.random.default_rng(seed)

    def fill(leaf):
        if not hasattr(leaf, "dtype"):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        values = np.full(leaf.shape, seed)
        if jnp.issubdtype(leaf.dtype, jnp.floating):  # variances too, which are positive
            values = draw.uniform(-1 if max(leaf.shape) < leaf.size else 0.1, 1, leaf.shape)
        return (
            np.asarray(values, leaf.dtype) if recipe == "plain" else jnp.asarray(values, leaf.dtype)
        )

    return tlv_jax.trace(fn, jax.tree.map(fill, tree), IMAGES)


@functools.cache
def compiled(recipe, width):
    return eqx.filter_jit(network(recipe, width, 1).fn)


def names_of(plan):
    return [tuple(path.rpartition("/")[2] for path in pair) for pair in plan.pairs]


def leaves_of(tree):
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def pasted(given, own):
    """The middle of one array in the middle of another."""
    sizes = list(zip(given.shape, own.shape, strict=True))
    there = tuple(slice(max(m - n, 0) // 2, max(m - n, 0) // 2 + min(n, m)) for n, m in sizes)
    here = tuple(slice(max(n - m, 0) // 2, max(n - m, 0) // 2 + min(n, m)) for n, m in sizes)
    new = np.array(own)
    new[there] = np.asarray(given)[here]
    return new


def assert_alike(new, old):
    """The very type, structure, shapes and dtypes."""
    assert type(new) is type(old)
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for path, leaf in leaves_of(old).items():
        assert type(leaves_of(new)[path]) is type(leaf)
        if hasattr(leaf, "shape"):
            assert (leaves_of(new)[path].shape, leaves_of(new)[path].dtype) == (
                leaf.shape,
                leaf.dtype,
            )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        recipe(*pair)
        for pair in zip([*FIVE, "plain"], [*FIVE[1:], FIVE[0], "debiased"], strict=True)
    ],
)
def test_a_network_of_one_library_computes_what_one_of_another_did(source, target):
    src, dst = network(source, 4, 1), network(target, 4, 2)
    plan = tlv_jax.plan_transfer(src, dst, ALL)
    assert names_of(plan) == [(name, name) for name in LAYERS]
    new = tlv_jax.transfer(src, dst, method=ALL)
    assert_alike(new, dst.params)
    expected = compiled(source, 4)(src.params, IMAGES)
    assert relative_error(compiled(target, 4)(new, IMAGES), expected) < 1e-5
    assert relative_error(compiled(target, 4)(dst.params, IMAGES), expected) > 0.1


@pytest.mark.parametrize(("wide", "narrow"), [(6, 4), (4, 6)], ids=["narrower", "wider"])
@pytest.mark.parametrize("library", [recipe(name) for name in FIVE])
def test_a_network_of_another_width_gets_the_middle_of_each_array(library, wide, narrow):
    src, dst = network(library, wide, 1), network(library, narrow, 2)
    plan = tlv_jax.plan_transfer(src, dst, ALL)
    assert names_of(plan) == [(name, name) for name in LAYERS]
    new = tlv_jax.transfer(src, dst, method=ALL)
    assert_alike(new, dst.params)
    given, fresh = leaves_of(src.params), leaves_of(new)
    for path, own in leaves_of(dst.params).items():
        parameter = hasattr(own, "dtype") and jnp.issubdtype(own.dtype, jnp.floating)
        if not parameter or "hidden" in path:  # of Haiku's averages, which is not read
            assert fresh[path] is own, path
        else:
            np.testing.assert_array_equal(fresh[path], pasted(given[path], own))
    assert np.isfinite(compiled(library, narrow)(new, IMAGES)).all()


@pytest.mark.parametrize("library", [recipe(name) for name in FIVE])
@pytest.mark.parametrize(
    ("method", "left_out"),
    [(None, ("a_head",)), (BARE, ("y_norm", "a_head"))],
    ids=["default", "bare"],
)
def test_all_but_the_head_is_carried_over_and_by_the_bare_method_convs_alone(
    library, method, left_out
):
    src, dst = network(library, 4, 1), network(library, 4, 2)
    plan = tlv_jax.plan_transfer(src, dst, method)
    assert names_of(plan) == [(name, name) for name in LAYERS if name not in left_out]
    new = tlv_jax.transfer(src, dst, method=method)
    fresh = leaves_of(new)
    same = [path for path, own in leaves_of(dst.params).items() if fresh[path] is own]
    assert len(fresh) - len(same) == len(plan.target_leaves)
    assert len(plan.target_leaves) == 4 if method is BARE else len(plan.target_leaves) >= 8


@pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")
@pytest.mark.parametrize("library", [recipe(name) for name in FIVE])
def test_a_bare_tree_is_read_by_the_names_of_its_leaves(library):
    src, dst = network(library, 6, 1), network(library, 4, 2)
    plan = tlv_jax.plan_transfer(src.params, dst.params, ALL)
    traced = tlv_jax.plan_transfer(src, dst, ALL)
    assert set(plan.pairs) == set(traced.pairs)
    stays = {leaf.path for leaf in plan.untouched} - {leaf.path for leaf in traced.untouched}
    # The averages of an Equinox `State` have no names.
    assert stays == ({"1/1/0", "1/1/1"} if library == "equinox" else set())
    assert_alike(tlv_jax.transfer(src.params, dst.params, method=ALL), dst.params)


@pytest.mark.parametrize("library", [recipe(name) for name in FIVE])
def test_the_plan_says_which_averages_and_counters_stay(library):
    plan = tlv_jax.plan_transfer(network(library, 6, 1), network(library, 4, 2), ALL)
    assert {leaf.path for leaf in plan.untouched} == {
        "linen": set(),
        "nnx": {"dropout/rngs/count", "dropout/rngs/key", "steps"},
        "equinox": {"1/0"},
        "haiku": {
            f"state/y_norm/~/{name}_ema/{leaf}"
            for name in ("mean", "var")
            for leaf in ("counter", "hidden")
        },
        "plain": {"step"},
    }[library]


@pytest.mark.parametrize("seen", [0, 7])
@pytest.mark.parametrize("wide", [4, 3], ids=["of one width", "wider"])
def test_averages_that_a_counter_debiases_count_as_those_of_many_batches(wide, seen):
    src, fresh = network("debiased", wide, 1), network("debiased", 4, 0)
    model, state = fresh.params
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, seen), state)
    dst = tlv_jax.trace(fresh.fn, (model, state), IMAGES)
    new = tlv_jax.transfer(src, dst, method=ALL)
    assert_alike(new, dst.params)
    count, (mean, var) = jax.tree.leaves(new[1])[0], jax.tree.leaves(new[1])[1:]
    given = jax.tree.leaves(src.params[1])[1:]
    own = np.float32([[seen] * 4, [seen or 1] * 4])  # a variance of no batches is no 0
    np.testing.assert_array_equal(mean, pasted(given[0], own[0]))
    np.testing.assert_array_equal(var, pasted(given[1], own[1]))
    assert 0.9999**count < 1e-6  # so both are read as they stand


def test_linen_variables_may_be_frozen():
    src, dst = network("plain", 4, 1), network("linen", 4, 2)
    dst = tlv_jax.trace(dst.fn, flax.core.freeze(dst.params), IMAGES)
    new = tlv_jax.transfer(src, dst, method=ALL)
    assert_alike(new, dst.params)
    expected = tlv_jax.transfer(src, network("linen", 4, 2), method=ALL)
    np.testing.assert_array_equal(
        new["batch_stats"]["y_norm"]["mean"], expected["batch_stats"]["y_norm"]["mean"]
    )


def tied_nnx():
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
    return nnx.List([conv, nnx.relu, conv])


def call_each(modules, x):
    for module in modules:
        x = module(x)
    return x


@needs_nnx_trees
def test_an_nnx_module_at_two_places_is_refused_and_its_state_is_not():
    model = tied_nnx()
    with pytest.raises(tlv_jax.ParameterTreeError, match=r"'0' and '2' are one Conv.*nnx\.split"):
        tlv_jax.trace(call_each, model, IMAGES)
    graph, state = nnx.split(model)
    dst = tlv_jax.trace(lambda state, x: call_each(nnx.merge(graph, state), x), state, IMAGES)
    assert [(layer.path, layer.calls) for layer in dst.layers] == [("0", 2)]
    src = jax.tree.map(lambda leaf: leaf + 1, state)
    new = nnx.merge(graph, tlv_jax.transfer(tlv_jax.trace(dst.fn, src, IMAGES), dst))
    assert new[0] is new[2]
    np.testing.assert_array_equal(new[0].kernel, model[0].kernel + 1)


def test_an_equinox_module_at_two_places_is_refused_and_a_shared_one_is_not():
    conv = eqx.filter_eval_shape(lambda: eqx.nn.Conv2d(3, 3, 3, padding=1, key=KEY))
    image = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    with pytest.raises(tlv_jax.ParameterTreeError, match=r"'0' and '2' are one Conv2d.*nn\.Shared"):
        tlv_jax.trace(call_each, [conv, jax.nn.relu, conv], image)
    shared = eqx.nn.Shared([conv, jax.nn.relu, conv], lambda net: net[2], lambda net: net[0])
    network = tlv_jax.trace(lambda net, x: call_each(net(), x), shared, image)
    assert [(layer.path, layer.calls) for layer in network.layers] == [("pytree/0", 2)]


def test_modules_without_arrays_may_stand_at_several_places():
    conv = eqx.filter_eval_shape(lambda: eqx.nn.Conv2d(3, 3, 3, padding=1, key=KEY))
    pool = eqx.nn.MaxPool2d(2)
    image = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    network = tlv_jax.trace(call_each, [pool, conv, pool], image)
    assert [layer.path for layer in network.layers] == ["1"]
