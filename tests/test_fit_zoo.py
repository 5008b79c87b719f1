"""A fit of a small member of each family of the zoo, as a target and as a source."""

import functools
import math

import chex
import jax
import pytest
from small_models import SMALL_MODELS
from trees import normal, random_variables

import tlv_jax

SETTINGS = tlv_jax.Fit(rows=2048)
SOURCE, TARGET = "resnet18", "mobilenet_v2"
# Their dense layers read 4096 values, which take long to draw.
HEAVY = ("alexnet", "vgg11_bn")
TOKENS = ("vit_b_32", "swin_t", "swin_v2_t")  # in a sequence or in windows, without a grid
IN_TESTS = [
    pytest.param(name, marks=() if name == "resnet18" else pytest.mark.slow)
    for name in SMALL_MODELS
    if name not in HEAVY
]


@functools.cache
def network_of(name, seed):
    """The network with random weights, and eight images that it takes."""
    model = SMALL_MODELS[name]
    side = getattr(model, "image_size", max(48, model._smallest))
    images = normal(0, 8, side, side, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])
    return tlv_jax.trace(model.apply, random_variables(shapes, seed), images[:1]), images


def check_fitted(source, target):
    """Fits, and checks the parameters and the report."""
    (src, src_images), (dst, images) = network_of(source, 1), network_of(target, 2)
    given = {"src_images": src_images, "settings": SETTINGS}
    params = tlv_jax.fit(src, dst, images, **given)
    chex.assert_tree_all_finite(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, dst.params)
    report = tlv_jax.fit_report(src, dst, images, params, **given)
    fitted = [row for row in report.rows if row.fitted is not None]
    assert fitted
    assert all(row.fitted <= 1 and math.isfinite(row.std_after) for row in fitted)
    assert {row.source for row in fitted} <= {layer.path for layer in src.layers}
    assert {row.target for row in report.rows} <= {layer.path for layer in dst.layers}
    assert f"{len(fitted)} of {len(report.rows)} convs fitted" in str(report)


@pytest.mark.parametrize("target", IN_TESTS)
def test_every_family_can_be_fitted(target):
    check_fitted(SOURCE, target)


@pytest.mark.slow
@pytest.mark.parametrize("source", [name for name in SMALL_MODELS if name not in HEAVY + TOKENS])
def test_every_family_can_be_the_source(source):
    check_fitted(source, TARGET)


@pytest.mark.parametrize(
    "source", [TOKENS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TOKENS[1:])]
)
def test_a_source_without_a_grid_is_refused(source):
    (src, src_images), (dst, images) = network_of(source, 1), network_of(TARGET, 2)
    with pytest.raises(tlv_jax.OptionError, match="convolutional"):
        tlv_jax.fit(src, dst, images, src_images=src_images)
