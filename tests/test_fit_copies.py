"""A fit into a network of the source's own architecture, and into a narrower one.

Both are measured by what the network's features tell of the source's, on held-out photographs:
features that a linear head can tell from others are as good.
"""

import functools

import fitted_networks
import numpy as np
import pytest
from fitted_networks import Inverted, Plain, Residual

import tlv_jax
from tlv_jax import methods

# Its kernels say nothing of a source's here: channels are drawn at random.
UNKNOWING = methods.TLVFC
METHODS = (
    *(methods.DEFAULT, methods.BARE, methods.TLVFC, methods.DPIAT),
    *(methods.WEIGHT_SELECTION, methods.NET2NET),
)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
PAIRS = [
    slow(Inverted(), Inverted(5, 12, 20), id="inverted"),
    slow(Residual(12), Residual(8), id="residual"),
    slow(Plain(12), Plain(8), id="plain"),
    slow(Plain(12, norm=True), Plain(8, norm=True), id="plain with norms"),
]

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def images():
    return [fitted_networks.photographs(count, 100 + count)[0] for count in (128, 64)]


def traced(model, images, seed):
    return tlv_jax.trace(model.apply, fitted_networks.drawn(model, images, seed), images[:1])


COPIES = [
    pytest.param(Inverted(), id="inverted"),
    slow(Residual(), id="residual"),
    slow(Plain(), id="plain"),
    slow(Plain(norm=True), id="plain with norms"),
]


@pytest.mark.parametrize("model", COPIES)
def test_a_fresh_network_becomes_a_copy_of_its_source(model, images):
    some, held_out = images[0][:32], images[1]
    src, dst = (traced(model, some, seed) for seed in (0, 1))
    settings = tlv_jax.Fit(method=UNKNOWING, penalty=1e-9, enlarge=1)
    params = tlv_jax.fit(src, dst, some, settings=settings)
    # All channels are wanted, so they stay in order: the source's own head can read them.
    wanted, features = (
        fitted_networks.features_of(model, each, held_out) for each in (src.params, params)
    )
    np.testing.assert_allclose(features, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(("model", "narrower"), PAIRS)
def test_a_narrower_network_keeps_more_than_any_transfer_leaves(model, narrower):
    images = [fitted_networks.photographs(count, count)[0] for count in (256, 128)]
    variables = fitted_networks.trained(model, seed=3)
    src = tlv_jax.trace(model.apply, variables, images[0][:1])
    dst = traced(narrower, images[0], 13)
    wanted = [fitted_networks.features_of(model, variables, part) for part in images]

    def kept(params):
        """The share of the source's features that the target's tell with these parameters."""
        given = [fitted_networks.features_of(narrower, params, part) for part in images]
        return fitted_networks.explained(given, wanted)

    transferred = [kept(tlv_jax.transfer(src, dst, method=method)) for method in METHODS]
    settings = tlv_jax.Fit(enlarge=1)
    fitted = kept(tlv_jax.fit(src, dst, images[0][:128], settings=settings))
    assert fitted > max(transferred)


@pytest.mark.slow
def test_a_source_whose_head_reads_all_places_in_a_row_lends_its_last_conv(images):
    model, some = Plain(flat=True), images[0][:32]
    src, dst = traced(model, some, 0), traced(Inverted(), some, 1)
    settings = tlv_jax.Fit(enlarge=1)
    params = tlv_jax.fit(src, dst, some, settings=settings)
    report = tlv_jax.fit_report(src, dst, some, params, settings=settings)
    (row,) = [row for row in report.rows if row.target == "params/project1"]
    # One place of the grid stands for no other: of its values less than 0.1 can be computed.
    assert row.source == "params/conv3"
    assert row.fitted > 0.25
