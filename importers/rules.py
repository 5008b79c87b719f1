"""What a table of conversion rules is made of.

A family of architectures is one table. Its depth need not appear in it, as the checkpoint's own
keys carry that: one table serves ResNet 18 to 152.
"""

import dataclasses
import functools
import re

from importers.layouts import CONV, DENSE, VECTOR, Layout

__all__ = ["IGNORED", "Family", "Rule", "conv", "dense", "norm"]

IGNORED = re.compile(r"(.+\.)?num_batches_tracked")
"""Keys that may be there or not: a counter that torch uses only for cumulative averages."""


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Where one kind of key goes.

    Attributes:
      pattern: regular expression over the whole key, such as `layer(\d)\.(\d+)\.conv(\d)\.weight`.
      target: template of the leaf's path, such as `params/layer\1.\2/conv\3/kernel`. A target that
        the architecture does not have means that the rule does not apply to this key.
      layout: how the axes change on the way.
    """

    pattern: str
    target: str
    layout: Layout = VECTOR

    def target_of(self, key: str) -> str | None:
        """The path that `key` goes to, or `None` when the pattern does not match."""
        match = _compiled(self.pattern).fullmatch(key)
        return match.expand(self.target) if match else None


@dataclasses.dataclass(frozen=True)
class Family:
    """Architectures whose state dicts follow one table.

    Attributes:
      rules: the table; every key finds one leaf in it.
      stem: key of the first convolution's kernel; its second axis is the number of channels.
      head: key of the last layer's kernel; its first axis is the number of classes.
    """

    rules: tuple[Rule, ...]
    stem: str
    head: str


def conv(module: str, path: str) -> tuple[Rule, ...]:
    """Rules for a convolution, with a bias or without."""
    return (
        Rule(rf"{module}\.weight", f"params/{path}/kernel", CONV),
        Rule(rf"{module}\.bias", f"params/{path}/bias"),
    )


def dense(module: str, path: str, *, layout: Layout = DENSE) -> tuple[Rule, ...]:
    """Rules for a dense layer."""
    return (
        Rule(rf"{module}\.weight", f"params/{path}/kernel", layout),
        Rule(rf"{module}\.bias", f"params/{path}/bias"),
    )


def norm(module: str, path: str) -> tuple[Rule, ...]:
    """Rules for a batch norm and its running statistics."""
    return (
        Rule(rf"{module}\.weight", f"params/{path}/scale"),
        Rule(rf"{module}\.bias", f"params/{path}/bias"),
        Rule(rf"{module}\.running_mean", f"batch_stats/{path}/mean"),
        Rule(rf"{module}\.running_var", f"batch_stats/{path}/var"),
    )


# The module `re` forgets its compiled patterns after 512; the search for a fitting architecture
# runs every rule over every key.
_compiled = functools.cache(re.compile)
