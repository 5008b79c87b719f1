"""A kernel by ridge regression of what it is to write on what it reads.

Shapes: `G` groups, `K` places of a window, `I` inputs and `O` outputs of a group, `D = K I`, `M`
rows, which are places of images. Sums are float64: in float32, the matrices were singular at small
penalties.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

TINY = 1e-12  # the least variance that is divided by: nothing varies below it


class Rows(NamedTuple):
    """Some rows of a regression.

    Attributes:
      reads: the windows, `[M, K, G I]`; in groups `[G, M, D]`.
      goal: what is to be written, `[M, G O]`; in groups `[G, M, O]`.
    """

    reads: np.ndarray
    goal: np.ndarray


class _Sums(NamedTuple):
    """Of `M` rows: the sums and the products of what is read (`a`) and of the goal (`z`)."""

    rows: int
    a: np.ndarray  # [G, D]
    z: np.ndarray  # [G, O]
    aa: np.ndarray  # [G, D, D]
    az: np.ndarray  # [G, D, O]


def ridge_kernel(
    chunks: Iterable[Rows], prior: np.ndarray, groups: int, penalty: float, *, centred: bool
) -> np.ndarray:
    """Solves for the kernel that writes the goal.

        W = (C_AA + l s I)^-1 (C_AZ + l s W0),   s = tr(C_AA) / D

    A are the windows, Z the goal, both centred, and W0 the prior, each output scaled by the factor
    with which it fits best. Each group is solved by itself. Where there are fewer rows than
    columns, the equivalent system of the size of the rows is solved.

    Args:
      chunks: all rows. Where there are enough of them, they are summed chunk by chunk.
      prior: `[*spatial, I, G O]`.
      groups: `G`.
      penalty: l, at least 0.
      centred: whether a bias or a norm follows, which takes up the means.

    Returns:
      The kernel, float64 `[*spatial, I, G O]`. Zero where nothing is read, or nothing varies.
    """
    inputs, outputs = prior.shape[-2], prior.shape[-1] // groups
    start = prior.astype(np.float64).reshape(-1, inputs, groups, outputs)
    start = start.transpose(2, 0, 1, 3).reshape(groups, -1, outputs)
    solved = _solve((_grouped(rows, groups) for rows in chunks), start, penalty, centred)
    solved = solved.reshape(groups, -1, inputs, outputs).transpose(1, 2, 0, 3)
    return solved.reshape(prior.shape)


def _grouped(rows: Rows, groups: int) -> Rows:
    count, window, channels = rows.reads.shape
    reads = rows.reads.reshape(count, window, groups, channels // groups)
    reads = reads.transpose(2, 0, 1, 3).reshape(groups, count, -1)
    goal = rows.goal.reshape(count, groups, -1).transpose(1, 0, 2)
    return Rows(reads.astype(np.float64), goal.astype(np.float64))


def _solve(chunks: Iterable[Rows], start: np.ndarray, penalty: float, centred: bool) -> np.ndarray:
    held: list[Rows] = []
    sums: _Sums | None = None
    for chunk in chunks:
        held.append(chunk)
        # As soon as there are more rows than columns, their sums are smaller than they are.
        if sums is not None or sum(rows.goal.shape[1] for rows in held) >= start.shape[1]:
            for rows in held:
                sums = _added(sums, rows)
            held = []
    if sums is not None:
        return _solve_columns(sums, start, penalty, centred)
    reads, goal = (np.concatenate(parts, axis=1) for parts in zip(*held, strict=True))
    if centred:
        reads, goal = (part - part.mean(1, keepdims=True) for part in (reads, goal))
    return _solve_rows(reads, goal, start, penalty)


def _added(sums: _Sums | None, rows: Rows) -> _Sums:
    a, z = rows
    turned = a.transpose(0, 2, 1)
    new = _Sums(a.shape[1], a.sum(1), z.sum(1), turned @ a, turned @ z)
    if sums is None:
        return new
    for total, part in zip(sums[1:], new[1:], strict=True):
        np.add(total, part, out=total)
    return sums._replace(rows=sums.rows + new.rows)


def _solve_columns(sums: _Sums, start: np.ndarray, penalty: float, centred: bool) -> np.ndarray:
    """`[G, D, O]`, from a system of `D` unknowns."""
    aa, az = sums.aa / sums.rows, sums.az / sums.rows
    if centred:
        a, z = sums.a / sums.rows, sums.z / sums.rows
        aa -= a[:, :, None] * a[:, None]
        az -= a[:, :, None] * z[:, None]
    along, written = (start * az).sum(1), (start * (aa @ start)).sum(1)
    weight = penalty * _mean_variance(np.trace(aa, axis1=1, axis2=2), start)
    columns = np.arange(start.shape[1])
    aa[:, columns, columns] += weight[:, 0]
    return np.linalg.solve(aa, az + weight * _scaled(start, along, written))


def _solve_rows(
    reads: np.ndarray, goal: np.ndarray, start: np.ndarray, penalty: float
) -> np.ndarray:
    """`[G, D, O]`, from a system of `M` unknowns: `W0 + A' (A A' + M l s I)^-1 (Z - A W0)`."""
    count, writes = reads.shape[1], reads @ start
    start = _scaled(start, (writes * goal).sum(1), (writes**2).sum(1))
    turned = reads.transpose(0, 2, 1)
    products = reads @ turned
    trace = np.trace(products, axis1=1, axis2=2) / count
    rows = np.arange(count)
    products[:, rows, rows] += count * penalty * _mean_variance(trace, start)[:, 0]
    return start + turned @ np.linalg.solve(products, goal - reads @ start)


def _mean_variance(trace: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The mean variance of what is read, `[G, 1, 1]`: above zero also where nothing varies."""
    return np.maximum(trace / start.shape[1], TINY)[:, None, None]


def _scaled(start: np.ndarray, along: np.ndarray, written: np.ndarray) -> np.ndarray:
    """The prior with each output scaled by regression of the goal on what it writes."""
    return start * (along / np.maximum(written, TINY))[:, None]
