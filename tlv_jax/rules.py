"""How one kernel is fitted into another's shape.

A rule is a function `(key, source, target) -> kernel` on kernels in Flax's layout: source
`[*spatial, I, O]`, target `[*spatial', I', O']`, whose shape and dtype the answer has. Any function
of that form is a rule; settings are keyword-only and bound with `functools.partial`:

    rule = functools.partial(tlv_jax.rules.variance, keep="max", shuffle=False)
    plan = tlv_jax.plan_transfer(src_params, dst_params, rule=rule)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlv_jax import variance_rule
from tlv_jax.errors import OptionError, check_option
from tlv_jax.finiteness import sums
from tlv_jax.layer_keys import typed_key
from tlv_jax.types import Array, Rule
from tlv_jax.variance_layout import Settings, Spec, lay_out
from tlv_jax.variance_rule import Described, Fitted, variance

__all__ = [
    "RULES",
    "Batch",
    "BoundRule",
    "Fitted",
    "bind",
    "call",
    "clip",
    "fit_batches",
    "full",
    "magnitude",
    "trace",
    "uniform",
    "variance",
]

# What a plan in JSON may name.
RULES = ("clip", "full", "magnitude", "trace", "uniform", "variance")


def clip(key: Array, source: Array, target: Array) -> Array:
    """Copies the centre of the source into the centre of the target (DPIAT's "clip").

    Along every axis the middle `min(n, n')` entries are copied, one step towards the start where
    the difference is odd; all others keep the target's value. Serves parameters of any one rank,
    vectors among them.

    Args:
      key: ignored.
      source: of the target's rank, `[*spatial, I, O]` for a kernel.
      target: the target's own initial value; its shape and dtype are kept.
    """
    del key
    sizes = tuple(map(min, source.shape, target.shape))
    starts = tuple((n - m) // 2 for n, m in zip(source.shape, sizes, strict=True))
    centre = lax.dynamic_slice(source, starts, sizes).astype(target.dtype)
    before = tuple((n - m) // 2 for n, m in zip(target.shape, sizes, strict=True))
    return lax.dynamic_update_slice(target, centre, before)


def full(key: Array, source: Array, target: Array) -> Array:
    """Fills the whole target from the source (DPIAT's "full").

    Along every axis a larger source gives its middle entries, as with `clip`; a smaller one lies in
    the middle, and each place around it repeats one of its entries, drawn at random. The published
    code fails where the difference is 1; ours does not.

    Args:
      key: random key, consumed.
      source: of the target's rank.
      target: gives shape and dtype; none of its values is kept.
    """
    keys = jax.random.split(key, target.ndim)
    for axis, (n, m) in enumerate(zip(source.shape, target.shape, strict=True)):
        if n >= m:
            chosen = (n - m) // 2 + jnp.arange(m)
        else:
            drawn = jax.random.randint(keys[axis], (m,), 0, n)
            chosen = lax.dynamic_update_slice(drawn, jnp.arange(n), ((m - n) // 2,))
        source = jnp.take(source, chosen, axis=axis)
    return source.astype(target.dtype)


def magnitude(
    key: Array, source: Array, target: Array, *, keep: str = "max", constrained: bool = False
) -> Array:
    """Copies the channels with the largest weights (DPIAT's "magnitude").

    Of too many output channels, and then input channels, those are kept whose absolute weights sum
    to the most, in their own order, and stand first; too few stand first likewise, and the rest of
    the target keeps its values. Spatial axes are clipped to their centres.

    Args:
      key: ignored.
      source: `[*spatial, I, O]`.
      target: `[*spatial', I', O']` of the same rank, the target's own initial kernel.
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).
      constrained: rank inputs over the outputs already kept, not over all. The published option of
        this meaning, `input_constrained_by_output`, has no effect there, whatever its value.

    Raises:
      OptionError: for another value of `keep`.
    """
    del key
    check_option("keep", keep, ("max", "min"))
    sign = -1 if keep == "max" else 1
    ranked = source
    for axis in (-1, -2):
        count = target.shape[axis]
        if source.shape[axis] > count:
            others = [a for a in range(source.ndim) if a != axis % source.ndim]
            sums = jnp.abs(ranked.astype(jnp.float32)).sum(others)
            kept = jnp.sort(jnp.argsort(sign * sums)[:count])
            source = jnp.take(source, kept, axis=axis)
            if constrained:
                ranked = source
    spatial = target.shape[:-2]
    centre = tuple(map(min, source.shape[:-2], spatial))
    starts = tuple((n - m) // 2 for n, m in zip(source.shape, centre, strict=False))
    source = lax.dynamic_slice(source, (*starts, 0, 0), centre + source.shape[-2:])
    before = tuple((m - n) // 2 for n, m in zip(centre, spatial, strict=True))
    return lax.dynamic_update_slice(target, source.astype(target.dtype), (*before, 0, 0))


def trace(key: Array, source: Array, target: Array, *, keep: str = "max") -> Array:
    """Copies the outputs with the largest weights, and the inputs that the layer before kept.

    The "trace" rule of DPIAT for one kernel. Of too many output channels those are kept whose
    absolute weights sum to the most, in their own order, and stand first. All other axes are
    clipped to their centres: what the layer before kept is known to a plan alone, whose

        channels=ConsistentChannels(source_graph, target_graph, rank="trace")

    hands the rule a source that has the right inputs and outputs already. In a sequence of layers
    that only grow narrower this is the published rule; beyond, channels are followed through
    residual adds and concatenations, where the published code takes those that came last.

    Args:
      key: ignored.
      source: of the target's rank, `[*spatial, I, O]` for a kernel.
      target: the target's own initial value.
      keep: `max`, or `min` for the smallest (published: `reverse_priority`).

    Raises:
      OptionError: for another value of `keep`.
    """
    check_option("keep", keep, ("max", "min"))
    if source.shape[-1] > target.shape[-1]:
        sums = jnp.abs(source.astype(jnp.float32)).sum(tuple(range(source.ndim - 1)))
        kept = jnp.argsort(-sums if keep == "max" else sums)[: target.shape[-1]]
        source = jnp.take(source, jnp.sort(kept), axis=-1)
    return clip(key, source, target)


def uniform(key: Array, source: Array, target: Array) -> Array:
    """Takes evenly spaced channels of a larger source ("weight selection").

    Along each of the two channel axes, n entries of N: those at `round(i * (N - 1) / (n - 1))`. Of
    a smaller source all entries stand first, and the rest of the target keeps its values; spatial
    axes are clipped to their centres.

    "Initializing Models with Larger Ones" (ICLR 2024, arXiv 2311.18823), which selects along every
    axis and asks that the source be larger. A kernel is seen through a window: evenly spaced pixels
    of it would not be one, so ours clips.

    Args:
      key: ignored.
      source: of the target's rank, `[*spatial, I, O]` for a kernel, `[C]` for a vector.
      target: the target's own initial value.
    """
    for axis in range(max(target.ndim - 2, 0), target.ndim):
        n, m = source.shape[axis], target.shape[axis]
        if n > m:
            source = jnp.take(source, np.linspace(0, n - 1, m).round().astype(int), axis=axis)
    spatial = range(max(target.ndim - 2, 0))
    sizes = tuple(map(min, source.shape, target.shape))
    starts = [(source.shape[a] - sizes[a]) // 2 if a in spatial else 0 for a in range(target.ndim)]
    before = [(target.shape[a] - sizes[a]) // 2 if a in spatial else 0 for a in range(target.ndim)]
    centre = lax.dynamic_slice(source, starts, sizes).astype(target.dtype)
    return lax.dynamic_update_slice(target, centre, before)


@dataclasses.dataclass(frozen=True)
class BoundRule:
    """A rule with its settings, compared and hashed by value.

    `functools.partial` compares by identity: a plan that held one would make `jit` compile anew for
    every equal plan.

    Attributes:
      function: the rule.
      settings: its keyword arguments as `(name, value)`, sorted by name.
    """

    function: Callable[..., Array]
    settings: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, key: Array, source: Array, target: Array) -> Array:
        """Applies the rule."""
        return self.function(key, source, target, **dict(self.settings))

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return f"{name}({', '.join(f'{name}={value!r}' for name, value in self.settings)})"


class Batch(NamedTuple):
    """Kernels that are fitted together.

    Attributes:
      sources: shape and dtype of each.
      served: the number of the source of each target.
      targets: in any order, likewise.
      load: returns the kernels themselves, sources and targets.
      describe: returns what a program for these kernels is lowered for, likewise.
    """

    sources: tuple[Spec, ...]
    served: tuple[int, ...]
    targets: tuple[Spec, ...]
    load: Callable[[], tuple[Sequence[Array], Sequence[Array]]]
    describe: Callable[[], Described]


def fit_batches(
    rule: Rule,
    key_type: Hashable,
    words: np.ndarray,
    batches: Sequence[Batch],
    *,
    check_finite: bool,
) -> Iterator[Fitted]:
    """Fits many kernels on the device where they are, nothing being traced.

    Of `variance` a few programs serve a batch, which is measured while channels of the last one are
    ordered. Of other rules each kernel takes one, compiled once for each combination of shapes.

    Args:
      rule: as a plan has it.
      key_type: the implementation whose keys the rule expects; None for raw words.
      words: of a random key for each target of each batch, `[L, W]`, see `layer_keys`.
      batches: loaded one by one, at most one ahead of what is returned.
      check_finite: find evidence of the sources being finite.
    """
    loaded = (batch.load() for batch in batches)
    if isinstance(rule, BoundRule) and rule.function is variance:
        chosen: dict[str, Any] = dict(rule.settings)
        settings = Settings(**chosen)
        layouts = tuple(lay_out(settings, b.sources, b.served, b.targets) for b in batches)
        yield from variance_rule.fit_batches(
            layouts,
            key_type,
            words,
            loaded,
            described=(batch.describe() for batch in batches),
            check_finite=check_finite,
        )
        return
    each = iter(words)
    for batch, (sources, targets) in zip(batches, loaded, strict=True):
        evidence = sums(sources) if check_finite else []
        pairs = zip(batch.served, targets, strict=True)
        fitted = [call(rule, key_type, next(each), sources[n], target) for n, target in pairs]
        yield Fitted(fitted, evidence)


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(rule: Rule, key_type: Hashable, words: Array, source: Array, target: Array) -> Array:
    """Fits one kernel in one program."""
    return rule(typed_key(words, key_type), source, target)


def bind(rule: Rule) -> BoundRule:
    """Turns a rule, plain or from `functools.partial`, into one that is compared by value.

    Raises:
      OptionError: if it is not callable, has positional arguments bound, or a setting that cannot
        be hashed.
    """
    if isinstance(rule, BoundRule):
        return rule
    if not callable(rule):
        raise OptionError(
            f"rule: expected a function (key, source, target) -> kernel, got {rule!r}."
        )
    settings: dict[str, Hashable] = {}
    while isinstance(rule, functools.partial):
        if rule.args:
            raise OptionError(
                f"rule: {rule!r} binds positional arguments, but key, source and target are filled "
                "in by the transfer. Bind settings by keyword."
            )
        settings = {**rule.keywords, **settings}
        rule = rule.func
    # With the defaults written out, a plan says what it will do, and equal rules compare equal.
    for name, parameter in inspect.signature(rule).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            settings.setdefault(name, parameter.default)
    bound = BoundRule(rule, tuple(sorted(settings.items())))
    try:
        hash(bound)
    except TypeError as error:
        raise OptionError(f"rule: a setting of {bound} cannot be hashed ({error}).") from error
    return bound
