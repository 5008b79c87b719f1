"""Transfer, then train with feature crossover: the main job.

    result = train.fit(train.Config(source="efficientnet_lite0", target="resnet18"))

or, from a shell, `python -m train --source efficientnet_lite0 --target resnet18`.
"""

from typing import TYPE_CHECKING, Any

from train.config import Config, HostOptions, TransferOptions

if TYPE_CHECKING:
    from train.loop import Result, fit

__all__ = ["Config", "HostOptions", "Result", "TransferOptions", "fit"]


def __getattr__(name: str) -> Any:
    # Late, so that `python -m train --help` does not wait for JAX, Flax and Orbax.
    if name in ("Result", "fit"):
        from train import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
