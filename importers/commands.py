"""What the commands of `python -m importers` do. Each returns its exit status."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from importers.conversion import arrays_of, convert
from importers.entries import entries_of, model_of
from importers.exporting import export, write_safetensors
from importers.families import FAMILIES
from importers.loading import available
from importers.sources import state_dict_of
from importers.weights import WEIGHTS, Weights, choose
from tlv_jax.tables import format_table

__all__ = ["convert_file", "list_weights", "show", "verify"]

TOLERANCE = 1e-4
"""Largest difference of the logits over the largest logit that `verify` lets pass.

Real weights differ by a few 1e-6; a wrong layout or a forgotten norm by far more than this.
"""


def list_weights(*, as_json: bool = False) -> int:
    """Prints one line for each set of weights, or JSON with one object for each."""
    if as_json:
        print(json.dumps([_row(name, each) for name in available() for each in WEIGHTS[name]]))
        return 0
    rows = [
        (
            name,
            f"{weights.parameters:,}",
            weights.tag + (" (DEFAULT)" if weights.default else ""),
            _percentage(weights.acc_at_1),
            f"{weights.megabytes:.1f}",
            weights.license or "",
        )
        for name in available()
        for weights in WEIGHTS[name]
    ]
    print(format_table(("name", "parameters", "weights", "acc@1", "MiB", "license"), rows))
    return 0


def _row(name: str, weights: Weights) -> dict[str, Any]:
    return {
        "architecture": name,
        "weights": weights.tag,
        "default": weights.default,
        "parameters": weights.parameters,
        "acc_at_1": weights.acc_at_1,
        "acc_at_5": weights.acc_at_5,
        "megabytes": weights.megabytes,
        "license": weights.license,
    }


def show(name: str) -> int:
    """Prints the weights of an architecture, then one line for each key of its checkpoints."""
    choose(name)
    for weights in WEIGHTS[name]:
        pictures = weights.preprocess
        print(
            f"{weights.tag}: {weights.package or weights.url}\n"
            f"  {weights.megabytes:.1f} MiB, SHA-256 begins with {weights.sha256_prefix}; "
            f"accuracy {_percentage(weights.acc_at_1)} (top 1), "
            f"{_percentage(weights.acc_at_5)} (top 5)\n"
            f"  pictures: resized to {pictures.resize} ({pictures.interpolation}), cropped to "
            f"{pictures.crop}, mean {pictures.mean}, standard deviation {pictures.std}"
        )
    entries = entries_of(name, model_of(name, {}))
    rows = [(key, str(entry.shape), entry.leaf) for key, entry in entries.items()]
    buffers = FAMILIES[name].buffers(name)
    rows += [(key, str(array.shape), "a constant") for key, array in buffers.items()]
    print("\n" + format_table(("key", "shape in torch", "leaf"), rows))
    return 0


def convert_file(file: Path, arch: str, out: Path, prefix: str | None) -> int:
    """Checks a checkpoint and writes it as `.safetensors`."""
    params, batch_stats = convert(arch, state_dict_of(file), prefix=prefix)
    write_safetensors(out, arch, params, batch_stats)
    print(f"{out}: {_count(params):,} parameters of {arch}")
    return 0


def verify(file: Path, arch: str, prefix: str | None) -> int:
    """Checks a checkpoint and prints the result; returns 1 if the logits differ."""
    arrays = arrays_of(arch, state_dict_of(file), prefix)
    params, batch_stats = convert(arch, arrays)
    model = model_of(arch, arrays)
    print(
        f"{file}: all {_count(params):,} parameters of {arch} with "
        f"{model.num_classes} classes are there, finite and of the right shape"  # type: ignore[attr-defined]
    )
    variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
    try:
        error = _difference_from_torchvision(arch, model, variables)
    except _IncomparableError as reason:
        print(f"not compared with torchvision, {reason}")
        return 0
    print(
        f"largest difference from torchvision's logits, over the largest: {error:.1e} "
        f"({'within' if error <= TOLERANCE else 'beyond'} {TOLERANCE:.0e})"
    )
    return 0 if error <= TOLERANCE else 1


class _IncomparableError(Exception):
    """torchvision cannot tell what the logits should be."""


def _difference_from_torchvision(
    name: str, model: nn.Module, variables: Mapping[str, Any]
) -> float:
    """The relative error of the logits of two random images."""
    channels: int = model.in_channels  # type: ignore[attr-defined]
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError) as error:  # its operators may be of another build
        raise _IncomparableError(f"which cannot be imported ({error})") from error
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _IncomparableError("which does not have this architecture")
    if channels != 3:
        raise _IncomparableError(f"whose networks take 3 channels, not {channels}")
    side = getattr(model, "image_size", choose(name).preprocess.crop)
    options: dict[str, Any] = {"num_classes": model.num_classes}  # type: ignore[attr-defined]
    if hasattr(model, "aux_logits"):
        options |= {"aux_logits": model.aux_logits, "init_weights": False}
    if name.startswith("vit"):
        options["image_size"] = side
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    network.load_state_dict(export(name, variables["params"], variables.get("batch_stats")))
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    actual = np.asarray(model.apply(variables, images))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _percentage(accuracy: float | None) -> str:
    return "not published" if accuracy is None else f"{accuracy:.2f}%"


def _count(tree: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
