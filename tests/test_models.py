import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from small_models import IN_TESTS, SMALL_MODELS

from tlv_jax import TLVError, models
from tlv_jax.errors import OptionError
from tlv_jax.models import ImageError
from tlv_jax.models.layers import adaptive_average_pool, stochastic_depth

# As torchvision and the published EfficientNet-Lite report them, for 1000 classes. That every other
# network has torchvision's shapes, the tests of conversion say.
PARAMETERS = {
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "efficientnet_lite0": 4_652_008,
}


def abstract_images(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def images_for(model, batch=2):
    """Square images of a size that the model takes."""
    sides = {models.AlexNet: 63, models.InceptionV3: 299}
    side = getattr(model, "image_size", sides.get(type(model), 48))
    return abstract_images(batch, side, side, model.in_channels)


def leaves_by_path(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def resnet():
    """A small ResNet of ten classes, its variables, and four images."""
    model = SMALL_MODELS["resnet18"]
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images[:1]), images


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters_is_the_published_one(name):
    params = models.abstract_variables(models.create(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


def test_every_family_has_a_small_model():
    classes = {type(models.create(name)) for name in models.names()}
    assert {type(model) for model in SMALL_MODELS.values()} == classes


@pytest.mark.parametrize("name", IN_TESTS)
def test_features_are_vectors_and_the_head_takes_them(name):
    model = SMALL_MODELS[name].clone(num_classes=7, in_channels=1)
    variables, images = models.abstract_variables(model), images_for(model)

    def by_parts(variables, images):
        features = model.apply(variables, images, method="features")
        return model.apply(variables, features, method="head"), features

    logits, features = jax.eval_shape(by_parts, variables, images)
    assert features.ndim == 2
    assert features.shape[0] == 2
    assert logits.shape == (2, 7)
    # The same program gives the same numbers, and need not be compiled.
    program = jax.make_jaxpr(lambda *args: by_parts(*args)[0])(variables, images)
    whole = jax.make_jaxpr(model.apply)(variables, images)
    assert (str(program) == str(whole)) is not name.startswith("squeezenet")


def test_squeezenet_averages_features_before_its_last_convolution_and_logits_after():
    model = SMALL_MODELS["squeezenet1_1"]
    images = jax.random.normal(jax.random.key(1), (2, 48, 48, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    @jax.jit
    def run(variables, images):
        features = model.apply(variables, images, method="features")
        logits, state = model.apply(variables, images, capture_intermediates=True)
        (maps,) = state["intermediates"]["features.12"]["__call__"]
        return maps, features, model.apply(variables, features, method="head"), logits

    maps, features, from_features, logits = run(variables, images)
    kernel, bias = (variables["params"]["classifier.1"][leaf] for leaf in ("kernel", "bias"))
    kernel, bias = kernel[0, 0], bias.reshape(1, 10)

    assert maps.shape == (2, 2, 2, 512)
    np.testing.assert_allclose(features, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
    expected = jax.nn.relu(features @ kernel + bias)
    np.testing.assert_allclose(from_features, expected, rtol=1e-4, atol=1e-5)
    expected = jax.nn.relu(maps.reshape(8, 512) @ kernel + bias).reshape(2, 4, 10).mean(1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(from_features, logits, rtol=1e-2)


def test_jit_computes_the_same(resnet):
    model, variables, images = resnet
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images),
        model.apply(variables, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_names_are_torch_modules_joined_by_dots():
    variables = models.abstract_variables(SMALL_MODELS["resnet18"])
    paths = leaves_by_path(variables)
    assert "params/layer2.0/downsample.0/kernel" in paths
    assert "batch_stats/layer2.0/downsample.1/var" in paths
    assert "params/fc/bias" in paths


def test_layers_run_in_the_order_of_torchvision():
    model = SMALL_MODELS["resnet18"]
    variables = models.abstract_variables(model)
    order = []

    def record(next_method, args, kwargs, context):
        if "kernel" in context.module.variables.get("params", {}):
            order.append("/".join(context.module.path))
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, abstract_images(1, 32, 32, 3))
    block = ["layer2.0/conv1", "layer2.0/conv2", "layer2.0/downsample.0", "layer2.1/conv1"]
    start = order.index(block[0])
    assert order[start : start + 4] == block
    assert order[0] == "conv1"
    assert order[-1] == "fc"


@pytest.mark.parametrize("name", IN_TESTS)
def test_dtypes_are_those_asked_for_and_statistics_stay_float32(name):
    model = SMALL_MODELS[name].clone(dtype=jnp.bfloat16, param_dtype=jnp.float16)
    variables = models.abstract_variables(model)
    stats = variables.get("batch_stats", {})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} <= {jnp.dtype("float32")}
    run = functools.partial(
        model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    logits, updated = jax.eval_shape(run, variables, images_for(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(logits)} == {jnp.dtype("bfloat16")}
    assert updated.get("batch_stats", {}) == stats


def test_bfloat16_stays_near_float32(resnet):
    model, variables, images = resnet
    half = model.clone(dtype=jnp.bfloat16)
    expected = model.apply(variables, images)
    actual = jax.jit(half.apply)(variables, images).astype(jnp.float32)
    assert float(jnp.abs(actual - expected).max()) < 0.05 * float(jnp.abs(expected).max())


def test_initial_kernels_have_torchvision_spread(resnet):
    params = leaves_by_path(resnet[1]["params"])
    kernel = params["layer4.0/conv1/kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    for leaf in ("fc/kernel", "fc/bias"):
        assert float(jnp.abs(params[leaf]).max()) <= 512**-0.5
    assert float(params["fc/kernel"].std()) == pytest.approx((3 * 512) ** -0.5, rel=0.05)


def test_training_updates_every_statistic_and_evaluation_none(resnet):
    model, variables, images = resnet
    run = functools.partial(model.apply, mutable=["batch_stats"])
    _, trained = jax.jit(functools.partial(run, train=True))(variables, images)
    _, evaluated = run(variables, images)
    before = variables["batch_stats"]
    for path, leaf in leaves_by_path(trained["batch_stats"]).items():
        assert not np.array_equal(leaf, leaves_by_path(before)[path]), path
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], before)


def test_stochastic_depth_drops_whole_images_and_scales_the_others(key):
    drop = stochastic_depth(0.25)
    images = jnp.ones((64, 2, 3, 4))
    dropped = drop.apply({}, images, deterministic=False, rngs={"dropout": key})
    values = dropped.reshape(64, -1)
    assert (values == values[:, :1]).all()
    np.testing.assert_allclose(np.unique(values), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_array_equal(drop.apply({}, images, deterministic=True), images)


def test_training_drops_by_its_key_and_evaluation_needs_none():
    model = SMALL_MODELS["swin_t"]
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    run = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key}))
    first, same, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert jax.eval_shape(model.apply, variables, images).shape == (8, 10)


@pytest.mark.parametrize(("name", "width"), [("alexnet", 256), ("vgg11_bn", 512)])
def test_a_smaller_pool_gives_channels_of_the_last_stage(name, width):
    model = SMALL_MODELS[name]
    variables = models.abstract_variables(model)
    run = functools.partial(model.clone(pool_size=1).apply, method="features")
    assert jax.eval_shape(run, variables, images_for(model)).shape == (2, width)


@pytest.mark.parametrize("sides", [(1, 1), (2, 9), (7, 7), (14, 10), (3, 30)])
@pytest.mark.parametrize("size", [1, 7])
def test_adaptive_pool_has_torch_windows(sides, size):
    images = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = torch.nn.AdaptiveAvgPool2d(size)(channels_first).permute(0, 2, 3, 1)
    actual = adaptive_average_pool(jnp.asarray(images), size)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet19", "VGG16", "efficientnet_lite_0"])
def test_unknown_names_are_told_their_neighbours(name):
    close = {"resnet19": "resnet18", "VGG16": "vgg", "efficientnet_lite_0": "efficientnet_lite0"}
    with pytest.raises(OptionError, match=close[name]):
        models.create(name)


@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(OptionError, match=f"{option}=0 for 'resnet18', expected at least 1"):
        models.create("resnet18", **{option: 0})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18", (2, 32, 32, 1), r"\[B, H, W, 3\].*in_channels=1"),
        ("resnet18", (2, 3, 32, 32), "transpose them"),
        ("efficientnet_lite0", (32, 32, 3), "batch axis"),
        ("squeezenet1_0", (2, 21, 20, 3), "at least 21 pixels"),
        ("vit_b_32", (2, 224, 256, 3), "expected 224 pixels a side"),
    ],
)
def test_images_of_another_shape_are_refused(name, shape, message):
    model = models.create(name)
    with pytest.raises(ImageError, match=message) as error:
        jax.eval_shape(model.init, jax.random.key(0), abstract_images(*shape))
    assert isinstance(error.value, TLVError)


# The smallest that torch takes as well; the other families take a single pixel.
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("alexnet", 63),
        ("convnext_tiny", 32),
        ("densenet121", 29),
        ("googlenet", 15),
        ("inception_v3", 75),
        ("resnet18", 1),
        ("squeezenet1_1", 17),
        ("swin_t", 4),
        ("vgg11_bn", 32),
    ],
)
def test_images_as_small_as_torch_takes_are_taken(name, side):
    model = SMALL_MODELS[name]
    variables = models.abstract_variables(model)
    logits = jax.eval_shape(model.apply, variables, abstract_images(1, side, side, 3))
    assert logits.shape == (1, 10)
    if side > 1:
        with pytest.raises(ImageError, match=f"at least {side} pixels"):
            jax.eval_shape(model.apply, variables, abstract_images(1, side, side - 1, 3))


def test_training_on_one_value_a_channel_is_refused():
    model = SMALL_MODELS["resnet18"]
    run = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with pytest.raises(ImageError, match=r"layer4\.0/bn1.*larger batch"):
        jax.eval_shape(run, models.abstract_variables(model), abstract_images(1, 32, 32, 3))


def test_the_documentation_lists_every_architecture():
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    table = text[text.index("| family |") : text.index("\n\n", text.index("| family |"))]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(models.names())
