"""Compare starts of a training: does the transfer help here?

    comparison = train.compare.compare(train.compare.Settings(target="mobilenet_v2", seeds=3))
    print(comparison)

or `python -m train.compare --target mobilenet_v2 --seeds 3` in a shell.
"""

from typing import TYPE_CHECKING, Any

from train.compare.settings import Settings

if TYPE_CHECKING:
    from train.compare.comparison import Comparison, compare

__all__ = ["Comparison", "Settings", "compare"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m train.compare --help` does not wait for JAX and Flax.
    if name in ("Comparison", "compare"):
        from train.compare import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module 'train.compare' has no attribute {name!r}")
