"""The settings of a ranking. Imports neither JAX nor Flax, so that `--help` is quick."""

import dataclasses
from pathlib import Path

from train.config import Dataset, OnBadImage

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sources, and the images that they are ranked on. What a run has too means the same here."""

    data_dir: Path | None = None
    """Folder of the data set."""
    dataset: Dataset = "folder"
    """Images, see python -m train."""
    sources: tuple[str, ...] = ()
    """Architectures whose published weights are ranked, downloaded if necessary. By default all
    those whose weights are here: in the cache of downloads, or in an installed package."""
    source_weights: tuple[str, ...] = ()
    """ARCHITECTURE=FILE, to rank .pth or .safetensors files of your own, beside --sources if that
    is given and alone if not."""
    download: bool = False
    """Without --sources and --source-weights: rank all architectures, and download 21 GB of weights
    for them."""
    target: str | None = None
    """Also tell how similar each source is to this network: an architecture, or MODULE:NAME."""
    target_args: tuple[str, ...] = ()
    """Arguments of your own module: --target-args width=0.5 depth=3."""
    image_size: int | None = None
    """Pixels a side, to which images are resized; by default the data set's own."""
    limit: int = 2000
    """Most training images, drawn from each class in proportion."""
    on_bad_image: OnBadImage = "skip"
    """A picture file that is damaged: skip it and say so, or stop."""
    stream: bool = False
    """Read only the pictures that are needed, for those that do not fit into memory."""
    batch_size: int = 64
    """Images at once."""
    seed: int = 0
    """Of the split, the drawn training images, and the random weights."""
    out: Path = Path("runs")
    """Folder of all results."""
    name: str | None = None
    """Name of the folder of this one; by default rank-DATASET, with a number if that is there."""
