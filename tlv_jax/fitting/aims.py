"""What each conv of the target is to write, in numbers.

`N` images, `P` places of each, `C` channels of the source, `O` of the target.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tlv_jax.fitting.goals import Goal
from tlv_jax.fitting.roles import Labels, Role
from tlv_jax.fitting.signals import Signal, Size


class Aim(NamedTuple):
    """What a conv is to write, with its norm.

    Attributes:
      source: path of the matched conv.
      values: makes them, float32 `[N, P, O']`, for the first O' outputs.
      rest: whether they are the values of a state, of which the conv adds what this lacks yet.
    """

    source: str
    values: Callable[[], np.ndarray]
    rest: bool


def aims_of(
    goals: Mapping[str, Goal], roles: Mapping[str, Role], found: Mapping[Signal, np.ndarray]
) -> dict[str, Aim]:
    """What each conv is to write, from what the source computes."""
    values = {
        path: functools.partial(_sum, found, roles[path].layer.size, goal)
        for path, goal in goals.items()
    }
    mapped: dict[tuple[Labels, int], list[str]] = {}
    for path, goal in goals.items():
        if goal.space:  # one map leads from as many channels, where a state begins at another level
            mapped.setdefault((goal.space, len(goal.parts[0].channels)), []).append(path)
    for (space, _), paths in mapped.items():
        # Each state of the source once.
        states = {(goals[path].source, roles[path].layer.size): values[path] for path in paths}
        mean, components = principal_components([each() for each in states.values()], len(space))
        for path in paths:
            values[path] = functools.partial(_mapped, values[path], mean, components)
    return {path: Aim(goal.source, values[path], goal.rest) for path, goal in goals.items()}


def _sum(found: Mapping[Signal, np.ndarray], size: Size, goal: Goal) -> np.ndarray:
    parts = [
        found[Signal(part.layer, part.read, size)][..., list(part.channels)] for part in goal.parts
    ]
    return functools.reduce(np.add, parts)


def _mapped(
    values: Callable[[], np.ndarray], mean: np.ndarray, components: np.ndarray
) -> np.ndarray:
    return (values() - mean) @ components


def principal_components(values: Sequence[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean `[C]` and the principal components `[C, count]` of values `[..., C]`.

    Where there are no more than `count` channels, they stay as they are, with mean zero.
    """
    flat = np.concatenate([each.reshape(-1, each.shape[-1]) for each in values])
    channels = flat.shape[1]
    if channels <= count:
        return np.zeros(channels, np.float32), np.eye(channels, dtype=np.float32)
    _, vectors = np.linalg.eigh(np.cov(flat.T, dtype=np.float64))
    mean = flat.mean(0, dtype=np.float64)
    return mean.astype(np.float32), vectors[:, ::-1][:, :count].astype(np.float32)
