"""The networks against torch, layer by layer, in evaluation and in training.

Of most families a small member, which torchvision's own class builds as well: it compiles in a
fraction of the time. All published members are compared by `test_parity_sweep.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import import_torchvision, relative_error
from parity import (
    evaluation_errors,
    flax_outputs,
    from_torch,
    random_images,
    to_torch,
    training_errors,
    twins_like,
    twins_of,
)
from small_models import (
    EFFICIENTNET_REPEATS,
    GOOGLENET_OMITS,
    IN_TESTS,
    INCEPTION_OMITS,
    MOBILENET_V3_OMITS,
    SMALL_MODELS,
)
from torch.nn import functional as F

import importers
from importers.loading import locate
from importers.weights import choose
from tlv_jax.models import BatchNorm

tv = import_torchvision().models

TOLERANCE, TRAINING_TOLERANCE = 1e-5, 1e-4


def torch_resnet(config):
    block = tv.resnet.Bottleneck if config.bottleneck else tv.resnet.BasicBlock
    groups = {"groups": config.groups, "width_per_group": config.group_width}
    return tv.resnet.ResNet(block, config.depths, num_classes=10, **groups)


def torch_regnet(config):
    params = tv.regnet.BlockParams(
        depths=config.depths,
        widths=config.widths,
        group_widths=[min(width, config.group_width) for width in config.widths],
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
        se_ratio=0.25 if config.excite else None,
    )
    return tv.regnet.RegNet(params, num_classes=10)


def torch_efficientnet(name, config):
    settings, last_channel = tv.efficientnet._efficientnet_conf(
        name, width_mult=1.0, depth_mult=1.0
    )
    for setting, repeats in zip(settings, EFFICIENTNET_REPEATS[name], strict=True):
        setting.num_layers = repeats
    norm = functools.partial(torch.nn.BatchNorm2d, eps=config.epsilon)
    return tv.EfficientNet(
        settings, config.dropout, num_classes=10, last_channel=last_channel, norm_layer=norm
    )


def torch_mobilenet_v2(config):
    stages = [[s.expansion, s.width, s.repeats, s.stride] for s in config.stages]
    return tv.MobileNetV2(num_classes=10, inverted_residual_setting=stages)


def torch_mobilenet_v3(config):
    settings, last_channel = tv.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    blocks = [s for number, s in enumerate(settings) if number not in MOBILENET_V3_OMITS]
    return tv.MobileNetV3(blocks, last_channel, num_classes=10)


def torch_convnext(config):
    following = (*config.widths[1:], None)
    settings = map(tv.convnext.CNBlockConfig, config.widths, following, config.depths)
    rate = config.stochastic_depth
    return tv.ConvNeXt(list(settings), stochastic_depth_prob=rate, num_classes=10)


def torch_swin(config):
    options = {"block": tv.swin_transformer.SwinTransformerBlock}
    if config.second:
        options["block"] = tv.swin_transformer.SwinTransformerBlockV2
        options["downsample_layer"] = tv.swin_transformer.PatchMergingV2
    return tv.SwinTransformer(
        [4, 4],
        config.width,
        config.depths,
        config.heads,
        [config.window] * 2,
        stochastic_depth_prob=config.stochastic_depth,
        num_classes=10,
        **options,
    )


def torch_maxvit(config):
    return tv.MaxVit(
        (24, 24),
        config.stem_width,
        config.partition,
        list(config.widths),
        config.depths,
        config.head_width,
        config.stochastic_depth,
        num_classes=10,
    )


def torch_inception(network, omitted):
    for name in omitted:
        setattr(network, name, torch.nn.Identity())
    return network


# How torchvision builds the small model of that name. One without an entry is the published one.
TORCH = {
    "convnext_tiny": torch_convnext,
    "densenet121": lambda c: tv.DenseNet(c.growth, c.depths, c.stem_width, num_classes=10),
    "efficientnet_b0": functools.partial(torch_efficientnet, "efficientnet_b0"),
    "efficientnet_v2_s": functools.partial(torch_efficientnet, "efficientnet_v2_s"),
    "googlenet": lambda _: torch_inception(
        tv.GoogLeNet(num_classes=10, init_weights=False), GOOGLENET_OMITS
    ),
    "inception_v3": lambda _: torch_inception(
        tv.Inception3(num_classes=10, init_weights=False), INCEPTION_OMITS
    ),
    "maxvit_t": torch_maxvit,
    "mobilenet_v2": torch_mobilenet_v2,
    "mobilenet_v3_small": torch_mobilenet_v3,
    "regnet_x_400mf": torch_regnet,
    "regnet_y_400mf": torch_regnet,
    "resnet18": torch_resnet,
    "resnext50_32x4d": torch_resnet,
    "shufflenet_v2_x0_5": lambda c: tv.ShuffleNetV2(
        c.depths, [24, *c.widths, c.head_width], num_classes=10
    ),
    "swin_t": torch_swin,
    "swin_v2_t": torch_swin,
    "vit_b_32": lambda c: tv.VisionTransformer(
        32, c.patch, c.depth, c.heads, c.width, c.hidden, num_classes=10
    ),
}
# Height and width of the images in evaluation, and their side in training.
SIDES = dict.fromkeys(SMALL_MODELS, ((65, 48), 64)) | {
    "alexnet": ((79, 63), 63),
    "inception_v3": ((75, 91), 299),  # the least for the auxiliary head
    "maxvit_t": ((24, 24), 24),
    # The windows do not divide the first maps; the second are as wide as one window.
    "swin_t": ((44, 32), 44),
    "swin_v2_t": ((44, 32), 44),
    "vgg11_bn": ((48, 32), 32),
    "vit_b_32": ((32, 32), 32),
}


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """On networks this small several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [p for p in IN_TESTS if p.values != ("efficientnet_lite0",)])
def test_every_layer_matches_torchvision(name):
    model = SMALL_MODELS[name]
    torch.manual_seed(0)
    make = TORCH.get(name)
    twins = twins_like(name, make(model.config), model) if make else twins_of(name)
    sides, training_side = SIDES[name]
    errors = evaluation_errors(twins, sides)
    worst = max(errors, key=errors.get)
    print(f"{len(errors)} outputs, worst {errors[worst]:.1e} at {worst!r}")
    assert errors[worst] <= TOLERANCE, worst

    # Two of Inception's large images have values enough for its batch norms.
    batch = 2 if name == "inception_v3" else 4
    logits, stats = training_errors(twins, (training_side, training_side), batch=batch)
    print(f"in training {max(logits):.1e}, statistics {max(stats.values(), default=0):.1e}")
    assert max(logits) <= TRAINING_TOLERANCE
    assert max(stats.values(), default=0) <= TRAINING_TOLERANCE


@pytest.mark.parametrize(("momentum", "epsilon"), [(0.1, 1e-5), (0.01, 1e-3)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_batch_norm_trains_as_torch_does(key, momentum, epsilon, mean):
    inputs = random_images(3, 2, 2, 5) + np.float32(mean)
    reference = torch.nn.BatchNorm2d(5, eps=epsilon, momentum=momentum)
    norm = BatchNorm(momentum=momentum, epsilon=epsilon)
    variables = norm.init(key, inputs)
    for _ in range(2):
        expected = from_torch(reference(to_torch(inputs)))
        actual, updated = norm.apply(variables, inputs, train=True, mutable=["batch_stats"])
        variables = variables | updated
    stats = variables["batch_stats"]
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(stats["mean"], reference.running_mean) <= TOLERANCE
    assert relative_error(stats["var"], reference.running_var) <= TOLERANCE


def test_batch_norm_has_gradients_of_torch(key):
    inputs = random_images(3, 4, 4, 5)
    norm = BatchNorm()
    variables = norm.init(key, inputs)

    def loss(images):
        outputs, _ = norm.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.sin(outputs).sum()

    tensor = to_torch(inputs).requires_grad_()
    torch.sin(torch.nn.BatchNorm2d(5)(tensor)).sum().backward()
    assert relative_error(jax.grad(loss)(inputs), from_torch(tensor.grad)) <= TOLERANCE


# torchvision has no EfficientNet-Lite: what follows is a second, independent reading of it, which
# takes all sizes but the strides from the checkpoint itself.
LITE_REPEATS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)


def conv_same(inputs: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    pads = []
    for size in reversed(inputs.shape[2:]):
        total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
        pads += [total // 2, total - total // 2]
    groups = inputs.shape[1] // weight.shape[1]
    return F.conv2d(F.pad(inputs, pads), weight, stride=stride, groups=groups)


def lite_outputs(state: dict, name: str, images: np.ndarray) -> dict[str, np.ndarray]:
    def norm(inputs, key):
        vectors = (state[f"{key}.{part}"] for part in ("running_mean", "running_var"))
        affine = (state[f"{key}.{part}"] for part in ("weight", "bias"))
        return F.batch_norm(inputs, *vectors, *affine, eps=1e-3)

    strides = []
    for repeats, stride in zip(LITE_REPEATS[name], LITE_STRIDES, strict=True):
        strides += [stride] + [1] * (repeats - 1)
    x = F.relu6(norm(conv_same(to_torch(images), state["_conv_stem.weight"], 2), "_bn0"))
    outputs = {}
    for number, stride in enumerate(strides):
        block, inputs = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in state:
            x = F.relu6(norm(conv_same(x, state[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        x = conv_same(x, state[f"{block}._depthwise_conv.weight"], stride)
        x = F.relu6(norm(x, f"{block}._bn1"))
        x = norm(conv_same(x, state[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + inputs if x.shape == inputs.shape else x
        outputs[block] = from_torch(x)
    x = F.relu6(norm(conv_same(x, state["_conv_head.weight"]), "_bn1")).mean((2, 3))
    outputs[""] = from_torch(x @ state["_fc.weight"].T + state["_fc.bias"])
    return outputs


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        pytest.param("efficientnet_lite1", marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", marks=pytest.mark.slow),
    ],
)
def test_every_block_matches_with_real_weights(name):
    pretrained = importers.load(name)
    state_dict = importers.read_state_dict(locate(choose(name)))
    state = {key: torch.from_numpy(np.array(array)) for key, array in state_dict.items()}
    # Odd and even sizes, so that the uneven padding falls on either side.
    images = random_images(2, 75, 64, 3)
    expected = lite_outputs(state, name, images)
    actual = flax_outputs(pretrained.model, pretrained.variables, images)
    errors = {key: relative_error(actual[key], value) for key, value in expected.items()}
    worst = max(errors, key=errors.get)
    print(f"{name}: {len(errors)} outputs, worst {errors[worst]:.1e} at {worst!r}")
    assert errors[worst] <= TOLERANCE, worst
