"""What a frozen network is worth on labelled images: features of any library, and a classifier."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
import trees
from flax import nnx
from helpers import compilations

import tlv_jax
from tlv_jax import models
from tlv_jax.probe import probe_features

LABELS = np.repeat([3, 7], [14, 10])
HELD_OUT = np.array([3, 7, 7])
ERROR = tlv_jax.OptionError


def images_of(side, seed=0):
    """Images of two classes, and three that are held out; the second class is brighter."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([LABELS, HELD_OUT])
    images = (
        generator.normal(size=(len(labels), side, side, 3)) + (labels == 7)[:, None, None, None]
    )
    images = images.astype(np.float32)
    return images[: len(LABELS)], images[len(LABELS) :]


def assert_probed_by(features, result, images, held_out):
    """The result is that of the features, which a function computes of all images at once."""
    expected = probe_features(features(images), LABELS, (features(held_out), HELD_OUT))
    assert result.penalty == expected.penalty
    assert result.balanced_accuracy == expected.balanced_accuracy
    scale = np.abs(expected.weights).max()
    np.testing.assert_allclose(result.weights, expected.weights, atol=1e-3 * scale)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "params/fc"),
        ("squeezenet1_1", "params/classifier.1"),  # a convolution
        ("vit_b_32", "params/heads.head"),
    ],
)
def test_features_are_what_the_last_layer_of_an_architecture_reads(name, layer):
    model, side = small_models.SMALL_MODELS[name], 32
    variables = trees.random_variables(models.abstract_variables(model), seed=0)
    images, held_out = images_of(side)
    network = tlv_jax.trace(model.apply, variables, images[:1])
    result = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT), batch_size=9)
    features = jax.jit(lambda images: model.apply(variables, images, method="features"))
    assert_probed_by(features, result, images, held_out)
    assert result.layer == layer


class OfEquinox(eqx.Module):
    """Takes one image `[H, W, C]`, and convolves it with its channels first."""

    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, keys):
        self.conv = eqx.nn.Conv2d(3, 6, 3, key=keys[0])
        self.head = eqx.nn.Linear(6, 4, key=keys[1])

    def features(self, image):
        return jax.nn.relu(self.conv(image.transpose(2, 0, 1))).mean((1, 2))

    def __call__(self, image):
        return self.head(self.features(image))


class OfNNX(nnx.Module):
    """Its last layer classifies each place."""

    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def features(self, images):
        return nnx.relu(self.conv(images)).mean((1, 2))

    def __call__(self, images):
        return self.head(nnx.relu(self.conv(images))).mean((1, 2))


def test_modules_of_other_libraries_are_probed():
    images, held_out = images_of(8)
    model = OfEquinox(jax.random.split(jax.random.key(0)))
    network = tlv_jax.trace(lambda model, images: jax.vmap(model)(images), model, images)
    result = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    assert_probed_by(jax.vmap(model.features), result, images, held_out)
    model = OfNNX(nnx.Rngs(0))
    graph, params = nnx.split(model)
    network = tlv_jax.trace(lambda params, x: nnx.merge(graph, params)(x), params, images)
    result = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    assert_probed_by(model.features, result, images, held_out)


def small_network(seed=0):
    return trees.small_network(seed, width=8, last=12)


def test_batches_are_compiled_once_and_do_not_matter():
    (images, held_out), network = images_of(8), small_network()
    with compilations() as counts:
        small = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT), batch_size=7)
    assert [name for name in counts.elements() if "features" in name] == ["jit(features)"]
    whole = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    np.testing.assert_allclose(small.weights, whole.weights, rtol=1e-3, atol=1e-5)


def test_images_that_differ_are_told_apart_and_random_labels_are_not():
    images = np.concatenate([images_of(8, seed)[0] for seed in range(4)])
    labels = np.tile(LABELS, 4)
    network = small_network()
    apart = tlv_jax.probe(network, images[::2], labels[::2], (images[1::2], labels[1::2]))
    assert apart.balanced_accuracy == apart.accuracy == 1
    assert apart.cross_validated > 0.9
    random = np.random.default_rng(1).integers(0, 2, len(labels))
    chance = tlv_jax.probe(network, images[::2], random[::2], (images[1::2], random[1::2]))
    assert 0.3 < chance.balanced_accuracy < 0.7


def test_a_result_classifies_and_prints():
    images, held_out = images_of(8)
    network = small_network()
    result = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    read = tlv_jax.trace(
        lambda p, x: trees.small_fn({**p, "fc": identity(12)}, x), network.params, images
    )
    features = np.asarray(read.fn(read.params, held_out))
    found = np.array(result.classes)[(features @ result.weights + result.bias).argmax(1)]
    assert np.mean(found == HELD_OUT) == result.accuracy
    assert result.features == 12
    first, second = str(result).splitlines()
    assert first == "balanced accuracy 1.000, accuracy 1.000 on 3 held-out examples of 2 classes"
    assert second.startswith("12 features that fc reads; penalty ")


def identity(size):
    return {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}


def probed(images=None, labels=LABELS, held_out=None, held_out_labels=HELD_OUT, **options):
    given, others = images_of(8)
    images = given if images is None else images
    others = others if held_out is None else held_out
    return tlv_jax.probe(small_network(), images, labels, (others, held_out_labels), **options)


NOT_FINITE = np.where(np.arange(24) == 5, np.nan, 1)[:, None, None, None].astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:-1]}, "images: got 24, and 23 labels"),
        ({"held_out_labels": HELD_OUT[:-1]}, "held_out images: got 3, and 2 labels"),
        ({"labels": LABELS[:, None]}, r"expected integers of shape \[N\], got int64 of shape"),
        ({"labels": LABELS / 2}, "expected integers .* got float64"),
        ({"labels": np.zeros(24, int)}, "expected two classes or more, got only 0"),
        ({"labels": np.r_[LABELS[:-1], 9]}, "expected two examples .* got one of class 9"),
        ({"held_out_labels": np.array([3, 7, 8])}, "held_out labels: 8 is not among .* 3, 7"),
        ({"images": images_of(8)[0] * NOT_FINITE}, "images: image 5 has NaN or infinite"),
        ({"images": np.ones((24, 8, 8, 3), np.float32)}, "got the same 12 of all 24 examples"),
        ({"batch_size": 0}, "batch_size=0, expected at least 1"),
    ],
)
def test_what_cannot_be_probed_is_refused(changes, message):
    with pytest.raises(ERROR, match=message):
        probed(**changes)


def test_a_network_that_computes_nothing_is_refused():
    images, held_out = images_of(8)
    network = small_network()
    with pytest.raises(ERROR, match="got a bare tree, which computes nothing"):
        tlv_jax.probe(network.params, images, LABELS, (held_out, HELD_OUT))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), network.params)
    network = tlv_jax.trace(trees.small_fn, shapes, images)
    with pytest.raises(tlv_jax.ParameterTreeError, match="Trace the network with arrays"):
        tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))


def test_weights_that_are_not_finite_are_refused_but_in_the_head():
    (images, held_out), network = images_of(8), small_network()
    expected = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    network.params["fc"]["kernel"][0] = np.nan
    result = tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))
    np.testing.assert_array_equal(result.weights, expected.weights)
    network.params["block"]["bias"][1] = np.inf
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="leaf 'block/bias' has values"):
        tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))


def test_a_last_layer_that_does_not_keep_images_apart_is_refused():
    images, held_out = images_of(8)
    places = {"head": {"kernel": np.ones((3, 4), np.float32)}}
    network = tlv_jax.trace(lambda p, x: x.reshape(-1, 3) @ p["head"]["kernel"], places, images)
    with pytest.raises(ERROR, match=r"last layer head reads .* 24 images, got .* \(1536, 3\)"):
        tlv_jax.probe(network, images, LABELS, (held_out, HELD_OUT))


def test_features_of_unequal_width_are_refused():
    with pytest.raises(ERROR, match="held_out features: expected 4 of each example"):
        probe_features(np.eye(24, 4), LABELS, (np.ones((3, 5)), HELD_OUT))
    with pytest.raises(ERROR, match=r"features: expected the shape \[24, D\]"):
        probe_features(np.eye(23, 4), LABELS, (np.ones((3, 4)), HELD_OUT))


def test_features_that_are_not_finite_are_refused():
    features = np.array([[1, np.nan], [0, 1], [np.inf, np.nan]])
    with pytest.raises(ERROR, match="held_out features: 2 of 3 examples have NaN or infinite"):
        probe_features(np.eye(24, 2), LABELS, (features, HELD_OUT))
