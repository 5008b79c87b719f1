"""Runs a network and its torchvision twin side by side, on the same random weights."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import torch
from flax import traverse_util
from helpers import import_torchvision, relative_error

import importers
from importers.entries import entries_of, model_of
from tlv_jax import models

torchvision = import_torchvision()

Outputs = dict[str, np.ndarray]
Rate = tuple[str, float]
_RANDOM = (torch.nn.Dropout, torchvision.ops.StochasticDepth)


def random_network(name: str, *, num_classes: int = 10, seed: int = 0) -> torch.nn.Module:
    """A torchvision network by name in which no norm, scale, bias or embedding is trivial."""
    torch.manual_seed(seed)
    # The two Inceptions draw their weights from SciPy's truncated normal, which takes minutes.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return randomized(network)


def randomized(network: torch.nn.Module) -> torch.nn.Module:
    """The network itself, of which nothing keeps a value at which its mistakes would not show."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        for parameter in network.parameters():
            # Whatever starts at zero or at a tiny constant would hide its own mistakes.
            if parameter.std(unbiased=False) == 0:
                parameter.copy_(torch.empty_like(parameter).uniform_(0.1, 0.5))
    return network


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


class Twins(NamedTuple):
    """The same network in torch, and in Flax with its variables."""

    network: torch.nn.Module
    model: nn.Module
    variables: dict[str, Any]


def twins_of(name: str) -> Twins:
    """A network of torchvision by name, with random weights, and ours."""
    network = random_network(name)
    state_dict = network.state_dict()
    params, batch_stats = importers.convert(name, state_dict)
    variables = {"params": params, "batch_stats": batch_stats}
    return Twins(network, model_of(name, state_dict), variables)


def twins_like(name: str, network: torch.nn.Module, model: nn.Module) -> Twins:
    """Members of a family that have no name; `name` is that of another member."""
    state_dict = randomized(network).state_dict()
    # Copies, since torch updates its statistics in place.
    leaves = {
        entry.leaf: np.array(entry.layout.to_flax(state_dict[key].numpy()))
        for key, entry in entries_of(name, model).items()
    }
    return Twins(network, model, traverse_util.unflatten_dict(leaves, sep="/"))


def torch_outputs(network: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module in order of execution; the logits' name is empty."""
    outputs = {}

    def record(name, _module, _inputs, output):
        if isinstance(output, torch.Tensor):
            # Copied at once: the ReLU that follows works in place.
            outputs[name] = output.detach().numpy().copy()

    handles = [
        module.register_forward_hook(functools.partial(record, name))
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        network(to_torch(images))
    for handle in handles:
        handle.remove()
    return outputs


def flax_outputs(model: nn.Module, variables: Mapping, images: np.ndarray) -> Outputs:
    """The same for a Linen module, by torch's names."""
    run = jax.jit(
        functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    )
    _, state = run(variables, images)
    outputs = traverse_util.flatten_dict(state["intermediates"])
    return {
        ".".join(path[:-1]): np.asarray(value[0])
        for path, value in outputs.items()
        if isinstance(value[0], jax.Array)
    }


def evaluation_errors(twins: Twins, sides: tuple[int, int], *, batch: int = 2) -> dict[str, float]:
    """The relative error of every module that both networks have, in order of execution.

    Raises:
      AssertionError: where a module with parameters of its own is not among them.
    """
    network, model, variables = twins
    images = random_images(batch, *sides, 3)
    expected = torch_outputs(network.eval(), images)
    actual = flax_outputs(model, variables, images)
    parametrized = {
        key for key, module in network.named_modules() if list(module.parameters(recurse=False))
    }
    missed = (parametrized & expected.keys()) - actual.keys()
    assert not missed, sorted(missed)
    return {
        key: relative_error(actual[key], _aligned(expected[key], actual[key].shape))
        for key in expected
        if key in actual
    }


def training_errors(
    twins: Twins, sides: tuple[int, int], *, batch: int = 4
) -> tuple[list[float], dict[str, float]]:
    """Relative errors in training mode: of the logits (and the auxiliary ones), of the statistics.

    Dropout and stochastic depth draw other numbers in torch, so both are switched off, in torch for
    good, and their rates compared instead.
    """
    network, model, variables = twins
    images = random_images(batch, *sides, 3)
    expected, expected_rates = _torch_training(network.train(), images)

    actual_rates: list[Rate] = []

    def passes_through(call, args, kwargs, context):
        if not isinstance(context.module, nn.Dropout):
            return call(*args, **kwargs)
        kind = "row" if context.module.broadcast_dims else "element"
        if context.module.rate and not kwargs.get("deterministic", False):
            actual_rates.append((kind, context.module.rate))
        return args[0]

    @jax.jit
    def run(variables, images):
        with nn.intercept_methods(passes_through):
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

    outputs, updated = run(variables, images)
    assert len(actual_rates) == len(expected_rates), (actual_rates, expected_rates)
    for actual, wanted in zip(actual_rates, expected_rates, strict=True):
        assert actual[0] == wanted[0], (actual, wanted)
        np.testing.assert_allclose(actual[1], wanted[1], rtol=1e-6)
    leaves = jax.tree.leaves(outputs)
    assert len(leaves) == len(expected)
    logits = [relative_error(a, b) for a, b in zip(leaves, expected, strict=True)]
    buffers, stats = dict(network.named_buffers()), {}
    for path, leaf in traverse_util.flatten_dict(updated.get("batch_stats", {})).items():
        key = ".".join((*path[:-1], f"running_{path[-1]}"))
        stats[key] = relative_error(leaf, buffers[key])
    return logits, stats


def _torch_training(
    network: torch.nn.Module, images: np.ndarray
) -> tuple[list[np.ndarray], list[Rate]]:
    rates: list[Rate] = []

    def note(rate, module, _inputs, _output):
        rates.append(("element" if isinstance(module, torch.nn.Dropout) else "row", rate))

    for module in network.modules():
        if isinstance(module, _RANDOM):
            if module.p > 0:
                module.register_forward_hook(functools.partial(note, module.p))
            module.p = 0.0
    with torch.no_grad():
        outputs = network(to_torch(images))
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return [tensor.numpy() for tensor in tensors], rates


def _aligned(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Torch's output with its channels last, if they are not already."""
    if array.shape[2:] == (1, 1) and len(shape) == 2:
        return array.reshape(shape)
    if array.ndim == 4 and array.transpose(0, 2, 3, 1).shape == shape:
        return array.transpose(0, 2, 3, 1)
    return array


def parameter_count(name: str) -> int:
    params = models.abstract_variables(models.create(name))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))
