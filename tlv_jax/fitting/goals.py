"""Which values of the source each conv of the target is to compute. Shapes alone.

Convs are paired by what they do, not by the plan of a transfer: blocks at the same level by their
order, the convs within a block with those of the source's block, a depthwise conv with the one that
reads the channels of the conv before it.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from tlv_jax.fitting.roles import Labels, Role
from tlv_jax.layers.channels import ChannelGraph

Key = TypeVar("Key", int, tuple[int, int])
Run = list[Role]
"""The convs of the source that write to one state, in order."""


class Part(NamedTuple):
    """Values of the source.

    Attributes:
      layer: path of the conv that computes them, or of the layer that reads them.
      read: whether they are read. What is read is the state, after a sum.
      channels: of the layer, by position.
    """

    layer: str
    read: bool
    channels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a conv is to compute.

    Attributes:
      source: path of the matched conv of the source.
      parts: whose sum it is, all of as many channels.
      space: where it is mapped, the channels of the target's state. One map leads from the source's
        channels to those of all convs that write to it.
      rest: whether it is what a state is to be, so that the conv adds what this lacks yet. Of the
        convs of one block, the first adds all that it can.
    """

    source: str
    parts: tuple[Part, ...]
    space: Labels = ()
    rest: bool = False


def plan_goals(
    src: Mapping[str, Role],
    dst: Mapping[str, Role],
    graph: ChannelGraph,
    importance: Mapping[str, np.ndarray],
) -> dict[str, Goal]:
    """The goals of the target's convs, by path; those that nothing stands for have none.

    Args:
      src: what the source's convs do, in order of execution.
      dst: the same of the target's.
      graph: channels of the source.
      importance: of what each conv of the source hands on, by channel.
    """
    states, inner = _offered(src)
    placed, runs = _match_states(dst, states)
    placed = {**placed, **_match_inner(dst, inner, placed, runs)}
    chosen = _Channels(importance)
    goals: dict[str, Goal | None] = {}
    for path, role in dst.items():
        source = placed.get(path)
        if role.depthwise:
            goals[path] = chosen.of_depthwise(role, src) if role.activated else None
        elif source is None:
            goals[path] = None
        elif not role.state:
            goals[path] = _response(source, chosen.of(role, source))
        else:
            goals[path] = _part_of_state(role, source, src, dst, graph, chosen)
    return {path: goal for path, goal in goals.items() if goal is not None}


def _offered(
    src: Mapping[str, Role],
) -> tuple[dict[int, list[Run]], dict[tuple[int, int], list[Role]]]:
    """The source's states by level, and its inner convs by their level and their reader's."""
    states: dict[int, dict[Labels, dict[int, Role]]] = defaultdict(lambda: defaultdict(dict))
    inner: dict[tuple[int, int], list[Role]] = defaultdict(list)
    for role in src.values():
        if role.state and role.reader is not None:
            states[role.level][role.space][role.block] = role
        elif not role.depthwise and not role.state:
            inner[role.level, role.reader_level].append(role)
    # At a level without a state, what is handed on stands for one.
    stateless = [role for roles in inner.values() for role in roles if not states[role.level]]
    for role in stateless:
        states[role.level][role.space][role.block] = role
    offered = {
        level: [list(blocks.values()) for blocks in spaces.values()]
        for level, spaces in states.items()
        if spaces
    }
    return offered, inner


def _match_states(
    dst: Mapping[str, Role], states: Mapping[int, list[Run]]
) -> tuple[dict[str, Role], dict[str, Run]]:
    """A conv of the source, and all that write to the same state, for each that writes to one."""
    by_level: dict[int, dict[Labels, list[Role]]] = defaultdict(lambda: defaultdict(list))
    for role in dst.values():
        if role.state:
            by_level[role.level][role.space].append(role)
    placed: dict[str, Role] = {}
    runs: dict[str, Run] = {}
    for level, spaces in by_level.items():
        offered = _nearest(states, level)
        for number, writers in enumerate(spaces.values() if offered else ()):
            run = offered[_spread(number, len(spaces), len(offered))]
            # A state can begin at another level, as with a pooling behind the first conv.
            blocks = sorted({role.block for role in writers})
            for role in writers:
                path, block = role.layer.path, blocks.index(role.block)
                placed[path], runs[path] = run[_spread(block, len(blocks), len(run))], run
    return placed, runs


def _match_inner(
    dst: Mapping[str, Role],
    inner: Mapping[tuple[int, int], list[Role]],
    placed: Mapping[str, Role],
    runs: Mapping[str, Run],
) -> dict[str, Role]:
    """A conv of the source for each within a block: of the matched block, else by its place."""
    by_levels: dict[tuple[int, int], list[Role]] = defaultdict(list)
    for role in dst.values():
        if not role.state and not role.depthwise:
            by_levels[role.level, role.reader_level].append(role)
    matched: dict[str, Role] = {}
    for levels, roles in by_levels.items():
        anywhere = _nearest(inner, levels)
        for number, role in enumerate(roles):
            siblings = [each for each in roles if _share_block(each.end, role.end)]
            offered = _within(role, inner.get(levels, []), placed, runs)
            if offered:
                place = siblings.index(role)
                matched[role.layer.path] = offered[_spread(place, len(siblings), len(offered))]
            elif anywhere:
                place = _spread(number, len(roles), len(anywhere))
                matched[role.layer.path] = anywhere[place]
    return matched


def _within(
    role: Role, inner: Sequence[Role], placed: Mapping[str, Role], runs: Mapping[str, Run]
) -> list[Role]:
    """Convs within the source's block that the target's block is matched with, or of its run."""
    end = role.end and role.end.layer.path
    if end is None or end not in placed:
        return []
    for last in (placed[end], *runs[end]):
        within = [each for each in inner if _share_block(each.end, last)]
        if within:
            return within
    return []


def _share_block(first: Role | None, second: Role | None) -> bool:
    """Whether two convs write to a state in one block."""
    if first is None or second is None:
        return False
    return (first.space, first.block) == (second.space, second.block)


def _nearest(table: Mapping[Key, list], level: Key) -> list:
    """What a table has at a level, or at the one nearest to it."""
    if not table:
        return []
    return table[min(table, key=lambda each: (np.abs(np.subtract(each, level)).sum(), each))]


def _spread(number: int, count: int, available: int) -> int:
    """Which of `available` one of `count` gets, counted from 0. The last gets the last."""
    return -(-(number + 1) * available // count) - 1


def _response(source: Role, channels: tuple[int, ...]) -> Goal:
    """What a conv of the source computes."""
    return Goal(source.layer.path, (Part(source.layer.path, False, channels),))


def _read(source: Role, labels: Sequence[int], graph: ChannelGraph) -> Part | None:
    """The state after a conv, as it is read; None if it is not read as one."""
    if source.reader is None:
        return None
    places = {label: place for place, label in enumerate(graph[source.reader].reads)}
    channels = tuple(places[label] for label in labels if label in places)
    return Part(source.reader, True, channels) if channels else None


def _all_of(source: Role) -> Part:
    """All that a conv computes."""
    return Part(source.layer.path, False, tuple(range(len(source.space))))


def _part_of_state(
    role: Role,
    source: Role,
    src: Mapping[str, Role],
    dst: Mapping[str, Role],
    graph: ChannelGraph,
    chosen: "_Channels",
) -> Goal | None:
    """What a conv is to add to a state."""
    block = [each for each in dst.values() if each.state and _share_block(each, role)]
    if not role.activated:  # the principal components of the source's state
        part = _read(source, source.space, graph) or _all_of(source)
        return Goal(source.layer.path, (part,), role.space, rest=True)
    if not (source.state and source.activated):
        # A sum under an activation function, where the source has none, gets what the source
        # computes of its state next.
        reader = _next_response(source, src)
        goal = _response(reader, chosen.of(role, reader))
        return dataclasses.replace(goal, rest=True)
    channels = chosen.of(role, source)
    given = [each for each in src.values() if each.state and _share_block(each, source)]
    if len(given) == len(block) > 1:  # a branch and a shortcut each
        return _response(given[block.index(role)], channels)
    return _sum(source, given, channels, src, graph)


def _sum(
    source: Role,
    given: Sequence[Role],
    channels: tuple[int, ...],
    src: Mapping[str, Role],
    graph: ChannelGraph,
) -> Goal:
    """The sum that the source's block ends with, before its activation function."""
    parts = [Part(role.layer.path, False, channels) for role in given]
    before = [
        role
        for role in src.values()
        if role.state and role.space == source.space and role.block == source.block - 1
    ]
    if before:
        labels = [source.space[channel] for channel in channels]
        part = _read(before[-1], labels, graph)
        parts += [part] if part is not None and len(part.channels) == len(channels) else []
    return Goal(source.layer.path, tuple(parts), rest=True)


def _next_response(source: Role, src: Mapping[str, Role]) -> Role:
    """The next conv that reads the state after one, without writing to a state itself."""
    space = set(source.space)
    for role in src.values():
        inner = not role.state and not role.depthwise and role.activated
        if role.position > source.position and inner and space.intersection(role.reads):
            return role
    return source


class _Channels:
    """Gives channels away, the most important ones first."""

    def __init__(self, importance: Mapping[str, np.ndarray]) -> None:
        self.importance = importance
        self.given: Counter[str] = Counter()  # of each conv of the source
        self.by_space: dict[Labels, tuple[Role, tuple[int, ...]]] = {}

    def of(self, role: Role, source: Role) -> tuple[int, ...]:
        """Channels of a source for a target: those that follow what other spaces got."""
        path, width = source.layer.path, role.layer.shape[-1]
        before = self.by_space.get(role.space)
        if before is None or before[0].space != source.space:
            order = np.argsort(-self.importance[path], kind="stable")
            count = min(width, len(order))
            picked = order[(self.given[path] + np.arange(count)) % len(order)]
            self.given[path] += width
            self.by_space[role.space] = source, tuple(np.sort(picked).tolist())
        return self.by_space[role.space][1]

    def of_depthwise(self, role: Role, src: Mapping[str, Role]) -> Goal | None:
        """The same channels as of the conv before it."""
        source, channels = self.by_space.get(role.space, (None, ()))
        for other in src.values():
            if source is not None and other.depthwise and other.space == source.space:
                return _response(other, channels)
        return None
