"""The linear classifier on the source's features."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from train.data import LabelledImages, Splits
from train.probe import PENALTIES, fit_linear, fit_probe, pixels_by_part


def test_a_linear_classifier_is_the_minimum_of_its_loss():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((40, 5)).astype(np.float32)
    labels = (features @ generator.standard_normal((5, 3))).argmax(1)
    penalty = 0.1

    def loss(flat):  # in float64, with SciPy's own gradient
        weights, bias = flat[:15].reshape(5, 3), flat[15:]
        logits = features @ weights + bias
        chosen = logits[np.arange(40), labels]
        return np.mean(scipy.special.logsumexp(logits, 1) - chosen) + penalty / 2 * sum(
            flat[:15] ** 2
        )

    expected = scipy.optimize.minimize(loss, np.zeros(18)).x[:15].reshape(5, 3)
    found = fit_linear(features, labels, 3, penalty)
    np.testing.assert_allclose(found.weights, expected, atol=2e-3)
    np.testing.assert_allclose(np.sum(found.bias), 0, atol=1e-3)


@pytest.fixture
def features():
    """Of another scale and mean each; the last one is always the same."""
    drawn = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)
    drawn = drawn * np.float32([1, 100, 0.01, 0]) + np.float32([0, 50, -3, 7])
    return drawn[:40], drawn[40:]


def test_a_probe_classifies_features_as_they_are(features):
    known, unseen = features
    labels = (known[:, 1] > 50).astype(np.int32)
    pictures = np.zeros((40, 1, 1, 3), np.uint8)
    train = LabelledImages(pictures, labels)
    held_out = LabelledImages(pictures[:20], (unseen[:, 1] > 50).astype(np.int32))
    probe = fit_probe(known, unseen, Splits(train, held_out, held_out, ("low", "high"), {}), "loss")
    mean, std = known.mean(0), np.where(known.std(0) > 0, known.std(0), 1)
    scaled, losses = (unseen - mean) / std, []
    for penalty in PENALTIES:
        logits = fit_linear((known - mean) / std, labels, 2, penalty).logits(scaled)
        chosen = np.asarray(logits)[np.arange(20), held_out.labels]
        losses.append(np.mean(scipy.special.logsumexp(logits, 1) - chosen))
        if penalty == probe.penalty:
            np.testing.assert_allclose(probe.linear.logits(unseen), logits, rtol=1e-3, atol=1e-3)
    # The metric is taken for one of which more is better.
    assert probe.penalty == PENALTIES[int(np.argmax(losses))]
    assert probe.score == pytest.approx(max(losses), rel=1e-3)


@pytest.mark.parametrize(
    ("side", "channels", "blocks"),
    [(48, 3, (1, 3)), (24, 1, (2, 3)), (16, 3, (1, 1)), (5, 1, (1, 1))],
)
def test_pixels_are_means_of_equal_areas(side, channels, blocks):
    images = np.random.default_rng(2).integers(0, 256, (7, side, side, channels)).astype(np.uint8)
    part = LabelledImages(images, np.zeros(7, np.int32))
    found = pixels_by_part(Splits(part, part, part, ("one",), {}), batch_size=3)("validation")
    repeat, block = blocks  # each pixel is cut into `repeat` x `repeat` before blocks are averaged
    finer = images.repeat(repeat, 1).repeat(repeat, 2)
    kept = side * repeat // block
    expected = finer.reshape(7, kept, block, kept, block, channels).mean((2, 4)) / 255
    np.testing.assert_allclose(found, expected.reshape(7, -1), rtol=1e-5, atol=1e-6)
