import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from tlv_jax import TLVError, models
from tlv_jax.errors import OptionError
from tlv_jax.models import ImageError
from tlv_jax.models.layers import adaptive_average_pool

SMALL = ("vgg11_bn", "resnet18", "resnext50_32x4d", "efficientnet_lite0")
# As torchvision and the published EfficientNet-Lite report them, for 1000 classes.
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "efficientnet_lite0": 4_652_008,
}


def abstract_images(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def abstract_variables(model, channels=3):
    images = abstract_images(1, 32, 32, channels)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def leaves_by_path(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def resnet():
    """A ResNet18 of ten classes, its variables, and four images."""
    model = models.create("resnet18", num_classes=10)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images[:1]), images


@pytest.fixture(scope="module")
def lite():
    model = models.create("efficientnet_lite0", num_classes=10)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images[:1]), images


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters_is_the_published_one(name):
    params = abstract_variables(models.create(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.parametrize("name", SMALL)
def test_methods_agree_in_their_shapes(name):
    model = models.create(name, num_classes=7, in_channels=1)
    variables = abstract_variables(model, channels=1)
    images = abstract_images(2, 64, 40, 1)
    shapes = {
        method: jax.eval_shape(functools.partial(model.apply, method=method), variables, images)
        for method in ("features", "__call__")
    }
    head = functools.partial(model.apply, method="head")
    logits = jax.eval_shape(head, variables, shapes["features"])
    assert shapes["features"].ndim == 2
    assert logits.shape == shapes["__call__"].shape == (2, 7)


def test_head_of_features_is_the_whole_network(resnet):
    model, variables, images = resnet
    features = model.apply(variables, images, method="features")
    logits = model.apply(variables, features, method="head")
    np.testing.assert_array_equal(logits, model.apply(variables, images))


def test_jit_computes_the_same(resnet):
    model, variables, images = resnet
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images),
        model.apply(variables, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_names_are_torch_modules_joined_by_dots():
    variables = abstract_variables(models.create("resnet18"))
    paths = leaves_by_path(variables)
    assert "params/layer2.0/downsample.0/kernel" in paths
    assert "batch_stats/layer2.0/downsample.1/var" in paths
    assert "params/fc/bias" in paths


def test_layers_run_in_the_order_of_torchvision():
    model = models.create("resnet18")
    variables = abstract_variables(model)
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


@pytest.mark.parametrize("name", SMALL)
def test_dtypes_are_those_asked_for_and_statistics_stay_float32(name):
    model = models.create(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["batch_stats"])} == {
        jnp.dtype("float32")
    }
    run = functools.partial(
        model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    logits, updated = jax.eval_shape(run, variables, abstract_images(2, 64, 64, 3))
    assert logits.dtype == jnp.bfloat16
    assert updated["batch_stats"] == variables["batch_stats"]


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


def test_drop_connect_drops_whole_images_and_only_in_training(lite):
    model, variables, images = lite
    run = jax.jit(
        lambda key: model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            method="features",
        )[0]
    )
    first, same, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_vgg_with_a_smaller_pool_gives_channels_of_the_last_stage():
    model = models.create("vgg16_bn")
    variables = abstract_variables(model)
    run = functools.partial(model.clone(pool_size=1).apply, method="features")
    assert jax.eval_shape(run, variables, abstract_images(2, 64, 64, 3)).shape == (2, 512)


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
        ("vgg11", (2, 31, 64, 3), "at least 32 pixels"),
        ("alexnet", (2, 62, 64, 3), "at least 63 pixels"),
        ("squeezenet1_0", (2, 21, 20, 3), "at least 21 pixels"),
        ("squeezenet1_1", (2, 16, 17, 3), "at least 17 pixels"),
        ("vit_b_32", (2, 224, 256, 3), "expected 224 pixels a side"),
    ],
)
def test_images_of_another_shape_are_refused(name, shape, message):
    model = models.create(name)
    with pytest.raises(ImageError, match=message) as error:
        jax.eval_shape(model.init, jax.random.key(0), abstract_images(*shape))
    assert isinstance(error.value, TLVError)


# The smallest of each family that torch takes as well; the others take a single pixel.
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("alexnet", 63),
        ("convnext_tiny", 32),
        ("densenet121", 29),
        ("googlenet", 15),
        ("inception_v3", 75),
        ("resnet18", 1),
        ("squeezenet1_0", 21),
        ("squeezenet1_1", 17),
        ("swin_t", 4),
        ("vgg11", 32),
    ],
)
def test_images_as_small_as_torch_takes_are_taken(name, side):
    model = models.create(name)
    variables = models.abstract_variables(model)
    logits = jax.eval_shape(model.apply, variables, abstract_images(1, side, side, 3))
    assert logits.shape == (1, 1000)


def test_training_on_one_value_a_channel_is_refused():
    model = models.create("resnet18")
    run = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with pytest.raises(ImageError, match=r"layer4\.0/bn1.*larger batch"):
        jax.eval_shape(run, abstract_variables(model), abstract_images(1, 32, 32, 3))
