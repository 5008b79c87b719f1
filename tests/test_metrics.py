import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.metrics import merge, summarize, tally

LOGITS = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])


def by_hand(logits, labels):
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    right = logits.argmax(axis=1) == labels
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    loss = -log_probabilities[np.arange(len(labels)), labels].mean()
    return loss, right.mean(), np.mean(recalls)


def test_the_means_are_those_computed_by_hand():
    summary = summarize(tally(jnp.asarray(LOGITS), jnp.asarray(LABELS)))
    np.testing.assert_allclose(summary, by_hand(LOGITS, LABELS), rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_merged_parts_equal_the_whole(cut):
    parts = [
        tally(jnp.asarray(LOGITS[rows]), jnp.asarray(LABELS[rows]))
        for rows in (slice(cut), slice(cut, None))
    ]
    np.testing.assert_allclose(summarize(merge(*parts)), by_hand(LOGITS, LABELS), rtol=1e-5)


def test_examples_that_fill_up_do_not_count():
    real = np.arange(12) < 9
    logits = np.where(real[:, None], LOGITS, np.nan)
    summary = summarize(tally(jnp.asarray(logits), jnp.asarray(LABELS), jnp.asarray(real)))
    np.testing.assert_allclose(summary, by_hand(LOGITS[:9], LABELS[:9]), rtol=1e-5)


def test_nothing_counted_is_not_a_number():
    summary = summarize(tally(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.zeros(12, bool)))
    assert np.isnan(summary).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_losses_are_summed_in_float32(dtype):
    total = jax.jit(tally)(jnp.asarray(LOGITS, dtype), jnp.asarray(LABELS))
    assert total.loss.dtype == jnp.float32
    assert total.examples.tolist() == [7, 3, 2]
