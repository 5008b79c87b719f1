"""The variance rule as one would write it first in PyTorch: kernel by kernel, filter by filter.

Interleaved keep, random remove, zero padding, average pooling, shuffle.
"""

from collections.abc import Sequence

import numpy as np
import torch

import tlv_jax
from tlv_jax.layers.paths import array_leaves


def torch_kernels(plan: tlv_jax.TransferPlan, source: dict, target: dict) -> list[tuple]:
    """The source and target kernels of all pairs as PyTorch lays them out."""
    trees = {"source": source, "target": target}
    leaves = {side: array_leaves(tree, name=side) for side, tree in trees.items()}
    return [
        tuple(
            torch.from_numpy(np.array(leaves[side][layer.weight]).transpose(3, 2, 0, 1).copy())
            for side, layer in (("source", pair.source), ("target", pair.target))
        )
        for pair in plan.layer_pairs
    ]


def fit_all(kernels: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for source, target in kernels:
        fit(source, target)


def fit(kernel: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    size, wanted = kernel.shape[-1], target.shape[-1]
    if size > wanted:
        kernel = torch.nn.functional.avg_pool2d(kernel, size - wanted + 1, stride=1)
    elif size < wanted:
        before = (wanted - size) // 2
        after = wanted - size - before
        kernel = torch.nn.functional.pad(kernel, (before, after, before, after))
    outputs, inputs = target.shape[:2]
    filters = choose([one.var() for one in kernel], outputs)
    places = torch.randperm(outputs)[: len(filters)]
    result = target.clone()
    for place, number in zip(places.tolist(), filters, strict=True):
        one = kernel[number]
        chosen = choose([pixels.var() for pixels in one], inputs)
        slots = torch.randperm(inputs)[: len(chosen)]
        for slot, channel in zip(slots.tolist(), chosen, strict=True):
            result[place, slot] = one[channel]
    result = result[torch.randperm(outputs)]
    for number in range(outputs):
        result[number] = result[number][torch.randperm(inputs)]
    return result


def choose(variances: Sequence[torch.Tensor], count: int) -> list[int]:
    """Every k-th in the order of the variances, or all of them."""
    if len(variances) <= count:
        return list(range(len(variances)))
    order = torch.argsort(torch.stack(variances).nan_to_num())
    return order[:: len(variances) // count][:count].tolist()
