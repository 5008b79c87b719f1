"""All choices of a transfer in one record, and the published methods.

A method goes where a transfer is planned; `dataclasses.replace` changes a part of it:

    >>> import dataclasses
    >>> from tlv_jax import methods, rules
    >>> method = dataclasses.replace(methods.DPIAT, rule=rules.Variance(shuffle=False))
    >>> plan = tlv_jax.plan_transfer(src, dst, method)
"""

import dataclasses
from typing import Literal

from tlv_jax import matching, rules
from tlv_jax.consistent.plan import ConsistentChannels
from tlv_jax.errors import OptionError, check_option
from tlv_jax.layers.blocks import Standardize, standardize_blocks, standardize_flat
from tlv_jax.matching import Match
from tlv_jax.types import Rule

KINDS = ("conv", "dense", "norm", "bias")


@dataclasses.dataclass(frozen=True)
class Method:
    """All choices of a transfer. Hashable; equal choices are equal methods.

    The fields' defaults are those of `BARE`, which serves any networks.

    Attributes:
      standardize: `(layers, kinds) -> layers and blocks` for the matcher, see
        `tlv_jax.layers.blocks`. None takes the blocks of the graph if all networks are traced, and
        the blocks of the modules' names otherwise.
      match: `(source, target) -> pairs`, see `tlv_jax.matching`. The default aligns blocks by
        dynamic programming, or single layers where that gives more of the target a source.
      rule: fits a kernel, `(key, source, target) -> kernel`, see `tlv_jax.rules`.
      channels: choose channels once for all layers that share them. The rule then gets a source
        kernel with the target's channels, and must not move them. Needs traced networks.
      head: `keep` leaves each target dense layer without a source as it is. `statistics` draws it
        from the pooled mean and standard deviation of the source's dense layers, with bias zero.
      rescale: `none` leaves each fitted kernel as it is. `he` scales it to the standard deviation
        sqrt(2 / fan-in) of its new shape, `source` to that of the source kernel.
      kinds: what is transferred, of `conv`, `dense`, `norm` and `bias`. `bias` means the biases of
        matched convs and dense layers. All vectors (these, and scale, bias and running statistics
        of norms) are fitted by `rules.Clip`, as in DPIAT.
      insert: what happens to target layers of `kinds` without a source. `init` leaves them their
        initial weights. `identity` makes them change nothing where they can (see
        `tlv_jax.consistent.insert`); the plan says why the others cannot. It needs `channels`, and
        a matching that leaves layers out, such as `matching.EachOnce`.
    """

    standardize: Standardize | None = None
    match: Match = matching.ByCoverage()
    rule: Rule = rules.Clip()
    channels: ConsistentChannels | None = None
    head: Literal["keep", "statistics"] = "keep"
    rescale: Literal["none", "he", "source"] = "none"
    kinds: tuple[str, ...] = ("conv",)
    insert: Literal["init", "identity"] = "init"

    def __post_init__(self) -> None:
        """Raises an `OptionError` for unknown values and contradictory choices."""
        check_option("head", self.head, ("keep", "statistics"))
        check_option("rescale", self.rescale, ("none", "he", "source"))
        check_option("insert", self.insert, ("init", "identity"))
        if isinstance(self.kinds, str) or not self.kinds or not set(self.kinds) <= set(KINDS):
            raise OptionError(
                f"kinds={self.kinds!r}: expected a tuple of some of {', '.join(KINDS)}, "
                "for example ('conv', 'norm')."
            )
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if not callable(self.rule) or isinstance(self.rule, type):
            raise OptionError(
                f"rule={self.rule!r}: expected a function (key, source, target) -> kernel, for "
                "example rules.Variance(keep='max')."
            )
        if not callable(self.match) or isinstance(self.match, type):
            raise OptionError(
                f"match={self.match!r}: expected a function (source, target) -> pairs, for example "
                "matching.ByIndex()."
            )
        if self.channels is not None and getattr(self.rule, "shuffle", False):
            raise OptionError(
                f"rule={self.rule} shuffles channels, and {self.channels} must keep them in place. "
                "Set shuffle=False."
            )
        if self.insert == "identity" and self.channels is None:
            raise OptionError(
                "insert='identity' needs channels too, to know where a layer was inserted. Set "
                "channels=ConsistentChannels()."
            )


BARE = Method()
"""The library's own for a bare tree, whose channels are not known: convs alone, one by one."""

DEFAULT = Method(channels=ConsistentChannels(), kinds=("conv", "norm"))
"""The library's own for traced networks: convs and norms, with the same channels in all layers.

Chosen by measurement (docs/study.md).
"""

TLVFC = Method(
    standardize=standardize_flat,
    match=matching.ByIndex(),
    rule=rules.Variance(keep="interleaved", remove="random", pad="zero", pool="avg", shuffle=True),
    head="statistics",
    kinds=("conv",),
)
"""TLVFC (2024): convs by index and variance, shuffled; heads drawn from statistics."""

DPIAT = Method(
    standardize=standardize_blocks,
    match=matching.ByScore(),
    rule=rules.Clip(),
    kinds=KINDS,
)
"""DPIAT (arXiv 2212.13970): blocks, dynamic programming with shape scores, clip; all layers."""

WEIGHT_SELECTION = Method(
    standardize=standardize_blocks,
    match=matching.ByScore(),
    rule=rules.Uniform(),
    kinds=KINDS,
)
"""Weight selection (ICLR 2024, arXiv 2311.18823): layers by order, evenly spaced channels.

The paper, "Initializing Models with Larger Ones", gives a smaller network of the same family the
first layers of each stage of the larger one. Matching by blocks finds those stages by their shapes.
"""

NET2NET = Method(
    standardize=standardize_flat,
    match=matching.EachOnce(),
    rule=rules.Variance(pad="zero", shuffle=False),
    channels=ConsistentChannels(rank="first", grow="copy"),
    kinds=KINDS,
    insert="identity",
)
"""Net2Net (ICLR 2016, arXiv 1511.05641): a wider and deeper network of the same function.

For a traced target of the source's family with wider layers, more layers or larger kernels. New
channels are copies of the first ones (the paper draws which), and weights that read a channel are
divided by the number of its copies. New layers change nothing. The paper also adds noise, so that
copies become different; ours does not.
"""
