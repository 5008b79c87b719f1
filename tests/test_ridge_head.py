"""The last layer in closed form: a ridge regression on labelled images, with calibrated logits."""

import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special
import trees

import tlv_jax
from tlv_jax.ridge import PENALTIES, balanced_accuracy, stratified_folds

LABELS = np.repeat([0, 1, 2], [30, 18, 12])
ERROR = tlv_jax.OptionError


def images_of(labels, spread=1.0, seed=0):
    """Images of 8 pixels a side, with more of a colour of their class the smaller the spread."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(len(labels), 8, 8, 3))
    colours = 0.3 * np.eye(3)[labels][:, None, None] + spread * generator.normal(
        scale=0.2, size=(len(labels), 1, 1, 3)
    )
    return (noise + colours).astype(np.float32)


def apply(params, images):
    features = jax.nn.relu(images.mean((1, 2)) @ params["hidden"])
    logits = features @ params["head"]["kernel"]
    return logits + params["head"]["bias"][None] if "bias" in params["head"] else logits


def network_of(bias=True):
    head = {"kernel": trees.normal(1, 12, 3)} | ({"bias": trees.normal(2, 3)} if bias else {})
    params = {"hidden": 3 * trees.normal(0, 3, 12), "head": head}
    return tlv_jax.trace(apply, params, images_of(LABELS))


def balanced_loss(logits, labels):
    """Cross-entropy whose targets are those of Platt, by a loop over the examples of each class."""
    logs, losses = scipy.special.log_softmax(logits, 1), []
    for label in np.unique(labels):
        count, classes = np.sum(labels == label), logits.shape[1]
        targets = np.full(classes, 1 / (count + classes))
        targets[label] = (count + 1) / (count + classes)
        losses.append(np.mean([-targets @ row for row in logs[labels == label]]))
    return np.mean(losses)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_logits_are_those_of_a_slow_ridge_times_the_best_factor(bias):
    network, images, unseen = network_of(bias), images_of(LABELS), images_of(LABELS, seed=1)
    features = [
        np.maximum(each.mean((1, 2)) @ network.params["hidden"], 0)
        for each in (images.astype(float), unseen.astype(float))
    ]
    folds, options = stratified_folds(LABELS), {"alike": True, "intercept": bias}
    accuracies = [
        oracles.cross_validated(features[0], LABELS, each, folds, **options) for each in PENALTIES
    ]
    penalty = max(zip(accuracies, PENALTIES, strict=True))[1]
    left_out = oracles.left_out_scores(features[0], LABELS, penalty, folds, **options)
    factors = np.exp(np.linspace(-7, 14, 4000))
    factor = min(factors, key=lambda each: balanced_loss(each * left_out, LABELS))
    scores = oracles.ridge_scores(features[0], LABELS, penalty, features[1], **options)
    expected = factor * (scores - scores.mean(1, keepdims=True))
    new = tlv_jax.ridge_head(network, images, LABELS)
    np.testing.assert_allclose(apply(new, unseen), expected, rtol=0.02, atol=0.02)
    assert np.ptp(expected) > 1  # the scores themselves are between 0 and 1


def test_all_but_the_last_layer_stays():
    network = network_of()
    network.params["head"]["kernel"] = jnp.asarray(network.params["head"]["kernel"])
    new = tlv_jax.ridge_head(network, images_of(LABELS), LABELS)
    assert new["hidden"] is network.params["hidden"]
    for name, old in network.params["head"].items():
        found = new["head"][name]
        assert (found.shape, found.dtype) == (old.shape, old.dtype)
        assert isinstance(found, np.ndarray) == isinstance(old, np.ndarray)
        assert not np.array_equal(found, old)


def confidence(logits):
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=1).max(1).mean()


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_softmax_is_as_sure_as_it_is_right(spread):
    labels, others = np.arange(600) % 3, np.arange(3000) % 3
    unseen = images_of(others, spread, seed=3)
    new = tlv_jax.ridge_head(network_of(), images_of(labels, spread, seed=2), labels)
    logits = np.asarray(apply(new, unseen))
    assert confidence(logits) == pytest.approx(np.mean(logits.argmax(1) == others), abs=0.05)


def test_labels_that_say_nothing_give_a_softmax_that_says_nothing_and_clear_ones_a_finite_one():
    images = images_of(LABELS) + 3 * np.eye(3, dtype=np.float32)[LABELS][:, None, None]
    sure = apply(tlv_jax.ridge_head(network_of(), images, LABELS), images)
    assert np.mean(np.argmax(sure, 1) == LABELS) == 1
    assert 0.8 < confidence(sure) < 0.99
    drawn = np.random.default_rng(0).permutation(np.arange(300) % 3)
    images = images_of(np.zeros(300, int))
    unsure = apply(tlv_jax.ridge_head(network_of(), images, drawn), images)
    assert confidence(unsure) < 0.4


def test_a_feature_that_hardly_varies_gets_no_large_weight():
    network, images = network_of(), images_of(LABELS)
    usual = np.abs(tlv_jax.ridge_head(network, images, LABELS)["head"]["kernel"]).max()
    network.params["hidden"][:, 4] *= 1e-4
    new = tlv_jax.ridge_head(network, images, LABELS)
    assert np.abs(new["head"]["kernel"][4]).max() < 0.1 * usual


class OfLinen(nn.Module):
    """Classifies each place, as SqueezeNet does, by a convolution."""

    behind: bool = False

    @nn.compact
    def __call__(self, images):
        features = nn.relu(nn.Conv(12, (3, 3))(images))
        places = nn.Conv(3, (1, 1), name="head")(features)
        return (nn.relu(places) if self.behind else places).mean((1, 2))


class OfEquinox(eqx.Module):
    """Takes one image `[H, W, C]`, and has a last layer without bias."""

    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, keys):
        self.conv = eqx.nn.Conv2d(3, 12, 3, key=keys[0])
        self.head = eqx.nn.Linear(12, 3, use_bias=False, key=keys[1])

    def __call__(self, image):
        return self.head(jax.nn.relu(self.conv(image.transpose(2, 0, 1))).mean((1, 2)))


def assert_classifies(network, images, unseen):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = tlv_jax.ridge_head(network, images, LABELS, batch_size=25)
    assert type(new) is type(network.params)
    predicted = np.argmax(jax.jit(network.fn)(new, unseen), axis=1)
    assert balanced_accuracy(predicted, LABELS) > 0.8


def test_modules_of_libraries_classify_images_that_they_have_not_seen():
    images, unseen = images_of(LABELS, 0.2), images_of(LABELS, 0.2, seed=1)
    model = OfLinen()
    variables = model.init(jax.random.key(0), images[:1])
    assert_classifies(tlv_jax.trace(model.apply, variables, images[:1]), images, unseen)
    model = OfEquinox(jax.random.split(jax.random.key(0)))
    network = tlv_jax.trace(lambda model, images: jax.vmap(model)(images), model, images[:1])
    assert_classifies(network, images, unseen)


def test_an_activation_function_behind_the_last_layer_is_warned_of():
    images, model = images_of(LABELS), OfLinen(behind=True)
    variables = model.init(jax.random.key(0), images[:1])
    network = tlv_jax.trace(model.apply, variables, images[:1])
    with pytest.warns(UserWarning, match="does not return what its last layer writes"):
        tlv_jax.ridge_head(network, images, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "from 0 to 2, all of them, .* head has 3 outputs, got 3 from 1 to 3. Number"),
        (LABELS % 2, "from 0 to 2, .* got 2 from 0 to 1"),
        (np.r_[LABELS[1:], 3, 3][1:], "from 0 to 2, .* got 4 from 0 to 3"),
        (np.r_[LABELS[1:], 3], "expected two examples .* got one of class 3"),
        (LABELS[1:], "images: got 60, and 59 labels"),
        (LABELS / 1, "expected integers .* got float64"),
    ],
)
def test_labels_that_do_not_fit_the_last_layer_are_refused(labels, message):
    with pytest.raises(ERROR, match=message):
        tlv_jax.ridge_head(network_of(), images_of(LABELS), labels)


def test_networks_and_images_that_nothing_can_be_fitted_to_are_refused():
    network, images = network_of(), images_of(LABELS)
    with pytest.raises(ERROR, match="network: expected a traced network, got a bare tree"):
        tlv_jax.ridge_head(network.params, images, LABELS)
    with pytest.raises(ERROR, match="got the same 12 of all 60 examples"):
        tlv_jax.ridge_head(network, np.ones_like(images), LABELS)
    with pytest.raises(ERROR, match="batch_size=0, expected at least 1"):
        tlv_jax.ridge_head(network, images, LABELS, batch_size=0)
    network.params["hidden"][0] = np.nan
    with pytest.raises(tlv_jax.NonFiniteSourceError, match="network: leaf 'hidden' has values"):
        tlv_jax.ridge_head(network, images, LABELS)
    model = nn.Conv(3, (3, 3))
    variables = model.init(jax.random.key(0), images[:1])
    network = tlv_jax.trace(model.apply, variables, images[:1])
    with pytest.raises(
        ERROR, match=r"1x1 convolution, got one with a kernel of shape \(3, 3, 3, 3"
    ):
        tlv_jax.ridge_head(network, images, LABELS)
