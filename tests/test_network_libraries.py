"""What `trace` finds in networks of each library's own modules."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from libraries import KEY, LIBRARIES, NHWC, Equinox, Haiku, HaikuNCHW, Linen, Plain, PlainNCHW

import tlv_jax
from tlv_jax.layers.trees import find_layers

libraries = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
modes = pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])


@functools.cache
def traced(library, body):
    fn, params, statistics = library.build(body)
    return tlv_jax.trace(fn, params, statistics, library.images)


def short(path):
    return path.rpartition("/")[2]


def graph(network):
    return {short(layer.path): {short(path) for path in layer.inputs} for layer in network.layers}


def straight(library, x, train=False):
    x = library.conv("stem", x, 8, (3, 5), strides=2)
    x = jax.nn.relu(library.batch_norm("bn", x, train=train))
    x = library.conv("grouped", x, 8, (3, 3), groups=4)
    x = library.pool(jax.nn.gelu(library.group_norm("gn", x)))
    x = library.layer_norm("ln", library.conv("depthwise", x, 8, (3, 3), groups=8))
    return library.dense("head", library.flatten(x), 5)


@modes
@libraries
def test_a_chain_through_norms_activations_pools_and_reshapes(library, train):
    layers = traced(library, functools.partial(straight, train=train)).layers
    names = [short(layer.path) for layer in layers]
    # A tree sorts its keys: there `bn` comes before `stem`.
    assert [(name, layer.kind, layer.shape) for name, layer in zip(names, layers, strict=True)] == [
        ("stem", "conv", (3, 5, 3, 8)),
        ("bn", "norm", (8,)),
        ("grouped", "conv", (3, 3, 2, 8)),
        ("gn", "norm", (8,)),
        ("depthwise", "conv", (3, 3, 1, 8)),
        ("ln", "norm", (8,)),
        ("head", "dense", (32, 5)),
    ]
    assert [list(map(short, layer.inputs)) for layer in layers] == [[], *([n] for n in names[:-1])]
    convs = [layer for layer in layers if layer.kind == "conv"]
    assert [layer.groups for layer in convs] == [1, 4, 8]
    assert [layer.strides for layer in convs] == [(2, 2), (1, 1), (1, 1)]
    assert [layer.size for layer in convs] == [(4, 4), (4, 4), (2, 2)]
    assert all(layer.calls == 1 for layer in layers)
    first = library in (Equinox, PlainNCHW)  # the libraries that keep kernels as OIHW
    assert {layer.axes for layer in convs} == {(2, 3, 1, 0) if first else (0, 1, 2, 3)}
    assert layers[-1].axes == ((1, 0) if first else (0, 1))


@libraries
def test_norms_of_their_own_input_are_told_from_batch_norms(library):
    own = {short(layer.path): layer.own_statistics for layer in traced(library, straight).layers}
    assert {name: own[name] for name in ("bn", "gn", "ln")} == {"bn": False, "gn": True, "ln": True}
    assert own["stem"] is own["head"] is None


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


@libraries
def test_channels_are_followed_through_norms_splits_and_sums(library):
    channels = traced(library, branched).channels
    named = {short(path): labels for path, labels in channels.items()}
    shared = named["a"].writes
    assert named["n"].writes == named["d"].reads == named["o"].writes == shared
    assert named["b"].reads + named["c"].reads == named["b"].writes + named["c"].writes == shared
    assert set(named["head"].reads) == set(shared)


@pytest.mark.parametrize("norm", ["layer_norm", "group_norm", "batch_norm"])
@libraries
def test_a_residual_around_a_norm_alone_has_two_sources(library, norm):
    def body(library, x):
        x = library.conv("a", x, 8, (1, 1))
        return library.conv("b", x + getattr(library, norm)("n", x), 8, (1, 1))

    assert graph(traced(library, body)) == {"a": set(), "n": {"a"}, "b": {"a", "n"}}


@modes
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

    network = traced(library, body)
    assert {short(layer.path): layer.calls for layer in network.layers} == {
        "stem": 1, "shared": 3, "norm": 3, "head": 1,
    }  # fmt: skip
    assert graph(network)["shared"] == {"stem", "norm"}


@pytest.mark.parametrize(
    ("library", "collection"),
    [(Linen, "batch_stats"), (Haiku, "state"), (HaikuNCHW, "state"), (Plain, "batch_stats")],
    ids=["Linen", "Haiku", "HaikuNCHW", "Plain"],
)
def test_a_norm_has_its_bias_and_running_statistics(library, collection):
    fn, params, statistics = library.build(straight)
    statistics = statistics.get(collection, statistics)

    def call(tree, x):
        mine = tree[collection]
        return fn(tree["params"], {collection: mine} if library is Linen else mine, x)

    tree = {"params": params, collection: statistics}
    layers = tlv_jax.trace(call, tree, library.images).layers
    names = {short(layer.path): [name for name, _ in layer.vectors] for layer in layers}
    assert names["bn"] == ["bias", "mean", "var"]
    assert names["gn"] == names["ln"] == names["stem"] == names["head"] == ["bias"]
    found = {layer.path: layer.vectors for layer in find_layers(tree, name="tree")[0]}
    assert found == {layer.path: layer.vectors for layer in layers}


@pytest.mark.parametrize("version", [1, 2])
def test_a_network_that_comes_with_haiku(version):
    def forward(x):
        return hk.nets.ResNet18(5, resnet_v2=version == 2)(x, is_training=hk.running_init())

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(net.init, KEY, NHWC)
    layers = tlv_jax.trace(lambda *trees: net.apply(*trees)[0], params, state, NHWC).layers
    kinds = [layer.kind for layer in layers]
    assert [kinds.count(kind) for kind in ("conv", "dense")] == [20, 1]
    assert [layer.path for layer in layers][-1].endswith("logits")
    blocks = tlv_jax.layers.standardize_graph(layers, ("conv",))
    assert sum(isinstance(block, tuple) for block in blocks) >= 8
