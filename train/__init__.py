"""Transfer weights, then train with feature crossover.

    result = train.run(train.Config(source="efficientnet_lite0", target="resnet18"))

or `python -m train --source efficientnet_lite0 --target resnet18` in a shell.
"""

from typing import TYPE_CHECKING, Any

from train.config import (
    ChannelOptions,
    Config,
    DistillOptions,
    HostOptions,
    MatchOptions,
    MethodOptions,
    RecipeOptions,
    RuleOptions,
)

if TYPE_CHECKING:
    from train.loop import Result, run

__all__ = [
    "ChannelOptions",
    "Config",
    "DistillOptions",
    "HostOptions",
    "MatchOptions",
    "MethodOptions",
    "RecipeOptions",
    "Result",
    "RuleOptions",
    "run",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m train --help` does not wait for JAX, Flax and Orbax.
    if name in ("Result", "run"):
        from train import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
