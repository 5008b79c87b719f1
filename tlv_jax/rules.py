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
from collections.abc import Callable, Collection, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlv_jax import kernels
from tlv_jax.errors import OptionError
from tlv_jax.selection import SELECTIONS
from tlv_jax.types import Array, Rule

__all__ = ["RULES", "BoundRule", "bind", "clip", "full", "magnitude", "uniform", "variance"]

RULES = ("clip", "full", "magnitude", "uniform", "variance")  # what a plan in JSON may name

PADS = ("zero", "init")
POOLS = ("avg", "max")


def variance(
    key: Array,
    source: Array,
    target: Array,
    *,
    keep: str = "interleaved",
    remove: str = "random",
    pad: str = "zero",
    pool: str = "avg",
    shuffle: bool = True,
) -> Array:
    """The variance rule of TLVFC (2024), which its published code calls `VarTransfer`.

    The source is resized to the target's spatial size. Where it has too many output channels, some
    are kept by the variance of their weights; too many inputs are thinned likewise, for each filter
    on its own. Where it has too few, it takes the place of channels of the target, chosen by the
    variance of the target's own initial values, and the rest of the target stays as it is.

    As published, `remove="two_tailed"` places equal numbers at either end, so that of an odd number
    of source channels the last finds no place.

    Departures from the published code: any kernel size, odd growth and non-square ones included;
    random choice draws without replacement and can reach the last channel; ties go by position. To
    grow the outputs while shrinking the inputs, it thins the source and places it in the target,
    where the published code goes through a freshly drawn temporary kernel.

    Args:
      key: random key, consumed.
      source: `[*spatial, I, O]`.
      target: `[*spatial', I', O']`, the target's own initial kernel.
      keep: which source channels stay when there are too many: `max`, `min`, `interleaved`,
        `two_tailed` or `random` (published: `maxVar`, `minVar`, `interLeaved`, `twoTailed`,
        `random`, the value `keep` of `choice_method`).
      remove: which target channels give way when there are too few; the same names (published:
        the value `remove` of `choice_method`).
      pad: what surrounds a kernel that is too small: `zero`, or `init` for He normal values
        (published: `type_pad`).
      pool: how a kernel that is too large shrinks: `avg` or `max` (published: `type_pool`).
      shuffle: permute the outputs, and the inputs of each filter, at the end. The published code
        always does.

    Returns:
      The fitted kernel, `[*spatial', I', O']` in the target's dtype.

    Raises:
      OptionError: for a value that is not listed here.
    """
    keep_channels = SELECTIONS[_known("keep", keep, SELECTIONS)]
    remove_channels = SELECTIONS[_known("remove", remove, SELECTIONS)]
    _known("pad", pad, PADS)
    _known("pool", pool, POOLS)
    inputs, outputs = target.shape[-2:]
    key_resize, key_outputs, key_inputs, key_shuffle = jax.random.split(key, 4)

    # In the wider of both dtypes: rounding the source first would turn variances into ties.
    dtype = jnp.promote_types(source.dtype, target.dtype)
    around, fitted = jnp.asarray(target, dtype), jnp.asarray(source, dtype)
    fitted = kernels.resize_spatial(key_resize, fitted, target.shape[:-2], pad=pad, pool=pool)
    places = None
    if source.shape[-1] > outputs:
        kept = kernels.chosen_outputs(key_outputs, fitted, outputs, select=keep_channels)
        fitted = fitted[..., kept]
    elif source.shape[-1] < outputs:
        fitted = fitted[..., : _placed(source.shape[-1], remove)]
        count = fitted.shape[-1]
        places = kernels.chosen_outputs(key_outputs, around, count, select=remove_channels)
    if source.shape[-2] > inputs:
        fitted = kernels.keep_inputs(key_inputs, fitted, inputs, select=keep_channels)
    elif source.shape[-2] < inputs:
        fitted = fitted[..., : _placed(source.shape[-2], remove), :]
        under = around if places is None else around[..., places]
        fitted = kernels.place_inputs(key_inputs, under, fitted, select=remove_channels)
    if places is not None:
        fitted = around.at[..., places].set(fitted, unique_indices=True)
    if shuffle:
        fitted = kernels.shuffle_channels(key_shuffle, fitted)
    return fitted.astype(target.dtype)


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
    sign = -1 if _known("keep", keep, ("max", "min")) == "max" else 1
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


def _placed(count: int, remove: str) -> int:
    """How many of `count` source channels find a place in a larger target."""
    return count - count % 2 if remove == "two_tailed" and count > 1 else count


def _known(option: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise OptionError(f"{option}={value!r} is not known; expected one of {', '.join(allowed)}.")
    return value
