"""Walk through the target once, and make each conv compute its goal as it is met.

`N` images, `P` places of each, `O` channels that a layer writes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tlv_jax.apply import Leaves, put_kernel, put_vector, take_kernel, take_vector
from tlv_jax.fitting.aims import Aim
from tlv_jax.fitting.places import at_places
from tlv_jax.fitting.ridge import TINY, Rows, ridge_kernel
from tlv_jax.fitting.roles import Labels, Role
from tlv_jax.fitting.windows import windows
from tlv_jax.layers.interventions import KernelCall, NormCall
from tlv_jax.network import Network
from tlv_jax.types import Array, Layer

# Of a norm that changes nothing, whatever is added to its variance: the variance is the square of
# the scale, and so large that no usual epsilon changes it in float32.
NEUTRAL = {"scale": 2.0**7, "bias": 0.0, "mean": 0.0, "var": 2.0**14, "count": 2**20}


class Followed(NamedTuple):
    """How a conv was met.

    Attributes:
      path: of the conv.
      source: path of the matched conv of the source; None if it has no goal.
      fitted: the share of the goal's variance that the conv writes with its norm, over the places
        that were solved for; at most 1. None without a goal.
      deviation: standard deviation of what it writes with its norm.
    """

    path: str
    source: str | None
    fitted: float | None
    deviation: float


class _Pending(NamedTuple):
    """A conv that waits for its norm."""

    path: str
    goal: np.ndarray | None


class Follower:
    """What is done with each layer of the target, in order of execution."""

    def __init__(
        self,
        network: Network,
        roles: Mapping[str, Role],
        aims: Mapping[str, Aim],
        places: Mapping[tuple[int, ...], np.ndarray],
        leaves: Leaves,
        *,
        penalty: float,
        deviation: float,
        solve: bool,
    ) -> None:
        """Takes the target's leaves, which are replaced by path if `solve`, and left otherwise."""
        assert network.channels is not None
        self.graph, self.roles, self.aims, self.places = network.channels, roles, aims, places
        self.leaves, self.solve = leaves, solve
        self.penalty, self.deviation = penalty, deviation
        self.norms = {layer.path: layer for layer in network.layers if layer.kind == "norm"}
        self.behind = {role.norm.path: path for path, role in roles.items() if role.norm}
        self.states = {role.space for role in roles.values() if role.state}
        self.read: dict[Labels, tuple[np.ndarray, int]] = {}  # a state, as it was read last
        self.added: dict[Labels, list[tuple[np.ndarray, int]]] = {}  # what was added to it since
        self.pending: dict[str, _Pending] = {}  # by the norm
        self.followed: dict[str, Followed] = {}
        self.normed: set[str] = set()
        self.solved: set[str] = set()

    def neutral(self) -> Leaves:
        """The leaves for the walk: norms and biases, which change nothing there, are added here."""
        leaves = dict(self.leaves)
        for norm in self.norms.values():
            vectors = dict(norm.vectors)
            averaged = "var" in vectors
            scale = NEUTRAL["scale"] if averaged else 1.0
            put_kernel(norm, np.full(norm.shape, scale, np.float32), leaves)
            for name in vectors:
                _fill(norm, name, NEUTRAL[name], leaves)
        for role in self.roles.values():
            if role.norm is None and "bias" in dict(role.layer.vectors):
                _fill(role.layer, "bias", 0.0, leaves)
        return leaves

    def see(self, path: str, call: KernelCall) -> Array:
        """Solves for a conv, and computes what it writes."""
        role, again = self.roles[path], path in self.followed
        self._note_read(role, call)
        goal = None if again else self._goal(role, call)
        if goal is not None and self.solve:
            self._solve(role, call, goal)
        # A function that changes its kernels gets its own: one that is not solved for.
        own = take_kernel(role.layer, self.leaves) if path in self.solved else call.kernel
        written = call.compute(jnp.asarray(own))
        if role.norm is not None:
            self.pending[role.norm.path] = _Pending(path, goal)
            return written
        (axis,) = call.written_axes
        values = np.asarray(written, np.float32)
        if "bias" in dict(role.layer.vectors):
            bias = _vector(role.layer, "bias", self.leaves)
            if goal is not None and self.solve:
                width, some = goal.shape[-1], at_places(values, axis, self._places(role))
                bias[:width] = (goal - some[..., :width]).mean((0, 1), dtype=np.float64)
                _put(role.layer, "bias", bias, self.leaves)
            values = values + _along(bias, axis, values)
        self._finish(path, values, axis, goal)
        return jnp.asarray(values, written.dtype)

    def see_norm(self, path: str, call: NormCall) -> Array:
        """Sets a norm, and computes what it writes."""
        norm, axis, values = self.norms[path], call.axis, np.asarray(call.writes, np.float32)
        conv, goal = self.pending.pop(path, _Pending("", None))
        first = path not in self.normed
        self.normed.add(path)
        if not conv:
            self._note_state(self.graph[path].reads, values, axis)
        if "var" in dict(norm.vectors):
            if first and self.solve:
                self._set_statistics(norm, values, axis)
            mean, var = (_vector(norm, name, self.leaves) for name in ("mean", "var"))
            factor = 1 / np.sqrt(var + (call.epsilon or 1e-5))
            values = (values - _along(mean, axis, values)) * _along(factor, axis, values)
        if goal is not None and self.solve:
            self._regress(norm, values, axis, goal, self._places(self.roles[conv]))
        gain = take_kernel(norm, self.leaves).astype(np.float32)
        values = values * _along(gain, axis, values)
        if "bias" in dict(norm.vectors):
            values = values + _along(_vector(norm, "bias", self.leaves), axis, values)
        if conv:
            self._finish(conv, values, axis, goal)
        return jnp.asarray(values, call.writes.dtype)

    def _places(self, role: Role) -> np.ndarray:
        return self.places[role.layer.size]

    def _note_read(self, role: Role, call: KernelCall) -> None:
        """Notes a state where the conv reads it as it is added to: with no norm before it."""
        shared = [path for path in role.layer.inputs if path in self.norms]
        if all(path in self.behind for path in shared):
            self._note_state(role.reads, np.asarray(call.reads, np.float32), call.read_axes[0])

    def _note_state(self, space: Labels, values: np.ndarray, axis: int) -> None:
        if space in self.states:
            self.read[space], self.added[space] = (values, axis), []

    def _goal(self, role: Role, call: KernelCall) -> np.ndarray | None:
        """What the conv is to write at its places, `[N, P, O']`; None if it has no goal."""
        layer, aim = role.layer, self.aims.get(role.layer.path)
        own = take_kernel(layer, self.leaves).astype(np.float32)
        # A function that changes its kernels would change a solved one, too.
        plain = np.allclose(own, np.asarray(call.kernel, np.float32), rtol=1e-2, atol=1e-6)
        if aim is None or not plain or set(call.params["lhs_dilation"]) != {1}:
            return None
        goal = aim.values()
        if layer.groups > 1 and goal.shape[-1] < layer.shape[-1]:
            return None  # groups that are fitted in part
        return self._lacking(role, goal) if aim.rest else goal

    def _lacking(self, role: Role, goal: np.ndarray) -> np.ndarray:
        """What a state lacks of a goal: less what it held when it was read, and was added since."""
        held = [self.read[role.space]] if role.space in self.read else []
        for values, axis in [*held, *self.added.get(role.space, [])]:
            grid = [size for other, size in enumerate(values.shape) if other not in (0, axis)]
            if tuple(grid) == role.layer.size:
                goal = goal - at_places(values, axis, self._places(role))[..., : goal.shape[-1]]
        return goal

    def _solve(self, role: Role, call: KernelCall, goal: np.ndarray) -> None:
        layer, places, width = role.layer, self._places(role), goal.shape[-1]
        reads = np.asarray(jnp.moveaxis(call.reads, call.read_axes[0], -1), np.float32)
        kernel = take_kernel(layer, self.leaves).astype(np.float32)
        chunks = (
            Rows(read.reshape(-1, *read.shape[2:]), goal[some].reshape(-1, width))
            for some, read in windows(reads, places, layer.shape[:-2], call.params)
        )
        takes_mean = role.norm is not None or "bias" in dict(layer.vectors)
        solved = ridge_kernel(
            chunks, kernel[..., :width], layer.groups, self.penalty, centred=takes_mean
        )
        if not solved.any():  # nothing varies that could be followed
            return
        kernel = np.concatenate([solved, kernel[..., width:]], axis=-1)
        if role.norm is not None and "var" in dict(role.norm.vectors):
            kernel = kernel * (self.deviation / kernel.std())
        put_kernel(layer, kernel, self.leaves)
        self.solved.add(layer.path)

    def _set_statistics(self, norm: Layer, values: np.ndarray, axis: int) -> None:
        flat = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        mean = flat.mean(0, dtype=np.float64).astype(np.float32)
        centred = flat - mean
        _put(norm, "mean", mean, self.leaves)
        _put(norm, "var", np.einsum("nc,nc->c", centred, centred) / len(flat), self.leaves)
        if "count" in dict(norm.vectors):
            _fill(norm, "count", NEUTRAL["count"], self.leaves)

    def _regress(
        self, norm: Layer, values: np.ndarray, axis: int, goal: np.ndarray, places: np.ndarray
    ) -> None:
        """Scale and bias by regression of the goal on the normalized values."""
        width = goal.shape[-1]
        some = at_places(values, axis, places)[..., :width].astype(np.float64)
        mean, wanted = some.mean((0, 1)), goal.mean((0, 1), dtype=np.float64)
        some -= mean
        slope = (some * (goal - wanted)).sum((0, 1)) / np.maximum((some**2).sum((0, 1)), TINY)
        gain = take_kernel(norm, self.leaves).astype(np.float32)
        gain[:width] = slope
        put_kernel(norm, gain, self.leaves)
        if "bias" in dict(norm.vectors):
            bias = _vector(norm, "bias", self.leaves)
            bias[:width] = wanted - slope * mean
            _put(norm, "bias", bias, self.leaves)

    def _finish(self, path: str, values: np.ndarray, axis: int, goal: np.ndarray | None) -> None:
        """Notes what a conv writes with its norm."""
        role, aim = self.roles[path], self.aims.get(path)
        if role.state:
            self.added.setdefault(role.space, []).append((values, axis))
        if path in self.followed:
            return
        fitted = None
        if goal is not None:
            some = at_places(values, axis, self._places(role))[..., : goal.shape[-1]]
            wrong = np.square(some - goal).mean(dtype=np.float64)
            fitted = float(1 - wrong / max(goal.var((0, 1), dtype=np.float64).mean(), TINY))
        source = aim.source if aim is not None and goal is not None else None
        deviation = float(values.std(dtype=np.float64))
        self.followed[path] = Followed(path, source, fitted, deviation)


def _vector(layer: Layer, name: str, leaves: Leaves) -> np.ndarray:
    return np.array(take_vector(layer, dict(layer.vectors)[name], leaves), np.float32)


def _put(layer: Layer, name: str, vector: np.ndarray, leaves: Leaves) -> None:
    put_vector(layer, dict(layer.vectors)[name], vector, leaves)


def _fill(layer: Layer, name: str, value: float, leaves: Leaves) -> None:
    path = dict(layer.vectors)[name]
    _put(layer, name, np.full_like(take_vector(layer, path, leaves), value), leaves)


def _along(vector: np.ndarray, axis: int, values: np.ndarray) -> np.ndarray:
    """The vector along one axis of some values."""
    shape = [1] * values.ndim
    shape[axis] = len(vector)
    return vector.reshape(shape)
