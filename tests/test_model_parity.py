"""The networks against torch, layer by layer, in evaluation and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import relative_error
from parity import (
    evaluation_errors,
    flax_outputs,
    from_torch,
    random_images,
    to_torch,
    training_errors,
)
from torch.nn import functional as F

import importers
from importers.loading import locate
from importers.weights import choose
from tlv_jax import models
from tlv_jax.models import BatchNorm

TOLERANCE, TRAINING_TOLERANCE = 1e-5, 1e-4
# One small variant of each family, and the side of images that suits it.
QUICK = {
    "alexnet": 79,
    "convnext_tiny": 65,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 65,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 65,
    "mobilenet_v2": 65,
    "mobilenet_v3_small": 65,
    "regnet_x_400mf": 65,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 128,
    "squeezenet1_1": 65,
    "swin_t": 92,
    "swin_v2_t": 100,
    "vgg11_bn": 64,
    "vit_b_32": 224,
}


@pytest.mark.parametrize("name", QUICK)
def test_every_layer_matches_torchvision(name):
    side = QUICK[name]
    free = not hasattr(models.create(name), "image_size")
    errors = evaluation_errors(name, (side, side - 16 if free else side))
    worst = max(errors, key=errors.get)
    print(f"{name}: {len(errors)} outputs, worst {errors[worst]:.1e} at {worst!r}")
    assert errors[worst] <= TOLERANCE, worst


@pytest.mark.parametrize("name", QUICK)
def test_training_matches_torchvision(name):
    logits, stats = training_errors(name, (QUICK[name], QUICK[name]))
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
