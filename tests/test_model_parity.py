"""The networks against torch, layer by layer, in evaluation and in training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from helpers import import_torchvision, relative_error
from torch.nn import functional as F

import importers
from importers.loading import locate
from importers.weights import choose
from tlv_jax import models
from tlv_jax.models import BatchNorm

torchvision = import_torchvision()

TOLERANCE = 1e-5
QUICK = ("vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d")
TORCHVISION_NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in models.names()
    if not name.startswith("efficientnet")
]


def random_network(name: str) -> torch.nn.Module:
    """A torchvision network in which no batch norm is the identity."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return network


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def torch_outputs(network: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module, by its name; the logits' is the empty name."""
    outputs = {}

    def record(name, _module, _inputs, output):
        # Copied at once: the ReLU that follows works in place.
        outputs[name] = from_torch(output).copy()

    for name, module in network.named_modules():
        module.register_forward_hook(functools.partial(record, name))
    with torch.no_grad():
        network(to_torch(images))
    return outputs


def flax_outputs(model: nn.Module, variables: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same for a Linen module, by torch's names."""
    run = jax.jit(
        functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    )
    _, state = run(variables, images)
    outputs = traverse_util.flatten_dict(state["intermediates"])
    return {".".join(path[:-1]): value[0] for path, value in outputs.items()}


def variables_of(name: str, state_dict: dict) -> dict:
    params, batch_stats = importers.convert(name, state_dict)
    return {"params": params, "batch_stats": batch_stats}


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_every_layer_matches_torchvision(name):
    network = random_network(name).eval()
    images = random_images(2, 64, 48, 3)
    expected = torch_outputs(network, images)
    model = models.create(name, num_classes=10)
    actual = flax_outputs(model, variables_of(name, network.state_dict()), images)

    with_weights = {key.rpartition(".")[0] for key in network.state_dict()}
    blocks = {key for key in expected if key.startswith("layer") and key.count(".") == 1}
    errors = {
        key: relative_error(actual[key], expected[key]) for key in {"", *with_weights, *blocks}
    }
    worst = max(errors, key=errors.get)
    print(f"{name}: {len(errors)} outputs, worst {errors[worst]:.1e} at {worst!r}")
    assert errors[worst] <= TOLERANCE, worst


@pytest.mark.parametrize(("momentum", "epsilon"), [(0.1, 1e-5), (0.01, 1e-3)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_batch_norm_trains_as_torch_does(key, momentum, epsilon, mean):
    inputs = random_images(3, 2, 2, 5) + np.float32(mean)
    reference = torch.nn.BatchNorm2d(5, eps=epsilon, momentum=momentum)
    reference.running_mean.fill_(mean)
    norm = BatchNorm(momentum=momentum, epsilon=epsilon)
    variables = norm.init(key, inputs)
    # The variance is computed around the running mean, so a large mean is harmless once tracked.
    variables["batch_stats"]["mean"] += mean
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


def test_resnet18_trains_as_torchvision_does():
    network = random_network("resnet18").train()
    variables = variables_of("resnet18", network.state_dict())
    images = random_images(8, 64, 64, 3)
    expected = network(to_torch(images)).detach().numpy()
    _, expected_stats = importers.convert("resnet18", network.state_dict())
    model = models.create("resnet18", num_classes=10)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updated = run(variables, images)
    assert relative_error(logits, expected) <= TOLERANCE
    errors = jax.tree.map(relative_error, updated["batch_stats"], expected_stats)
    assert max(jax.tree.leaves(errors)) <= TOLERANCE


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
