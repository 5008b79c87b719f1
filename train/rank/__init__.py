"""Rank pretrained networks on a data set: which source knows most about these images?

    ranking = train.rank.rank(train.rank.Settings(data_dir=Path("photographs")))
    print(ranking)

or `python -m train.rank --data-dir photographs` in a shell.
"""

from typing import TYPE_CHECKING, Any

from train.rank.settings import Settings

if TYPE_CHECKING:
    from train.rank.running import Ranking, Row, rank

__all__ = ["Ranking", "Row", "Settings", "rank"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m train.rank --help` does not wait for JAX and Flax.
    if name in ("Ranking", "Row", "rank"):
        from train.rank import running

        return getattr(running, name)
    raise AttributeError(f"module 'train.rank' has no attribute {name!r}")
