"""The settings of a run. Imports neither JAX nor Flax, so that `--help` is quick."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

__all__ = [
    "DATASETS",
    "Config",
    "DatasetDefaults",
    "HostOptions",
    "TransferOptions",
    "resolve",
]

Dataset = Literal["elpv", "cifar10", "cifar100", "fashion_mnist", "folder"]
Choice = Literal["max", "min", "interleaved", "two_tailed", "random"]


class DatasetDefaults(NamedTuple):
    """What a data set is trained with unless the settings say otherwise."""

    image_size: int
    epochs: int


DATASETS: Mapping[str, DatasetDefaults] = MappingProxyType(
    {
        # Two runs in a few minutes on two CPU cores. Not 64 pixels: XLA's CPU convolution is some
        # forty times slower on the 2x2 activations that ResNet's last stage then has.
        "elpv": DatasetDefaults(image_size=72, epochs=4),
        "cifar10": DatasetDefaults(image_size=32, epochs=200),
        "cifar100": DatasetDefaults(image_size=32, epochs=200),
        "fashion_mnist": DatasetDefaults(image_size=32, epochs=20),
        "folder": DatasetDefaults(image_size=224, epochs=50),
    }
)


@dataclasses.dataclass(frozen=True)
class TransferOptions:
    """How weights are carried over; the defaults are TLVFC's published ones."""

    keep: Choice = "interleaved"
    """Source channels that stay where there are too many, by variance."""
    remove: Choice = "random"
    """Target channels that give way where the source has too few, by variance."""
    pad: Literal["zero", "init"] = "zero"
    """What surrounds a kernel that is too small."""
    pool: Literal["avg", "max"] = "avg"
    """How a kernel that is too large shrinks."""
    shuffle: bool = True
    """Permute the channels of every kernel at the end, as the published code does."""
    head: Literal["statistics", "keep"] = "statistics"
    """Draw dense layers from the source's statistics, or keep their initialization."""
    norms: bool = False
    """Carry batch norms over too."""


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """Several hosts: one process on each, started with the same settings and a shared `out`."""

    join: bool = False
    """Join the other processes; where they are is found on Slurm, Open MPI and Cloud TPU."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached, where that is not found."""
    count: int | None = None
    """How many processes there are, where that is not found."""
    rank: int | None = None
    """Which of them this is, from 0, where that is not found."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: a transfer, a training, and the same training from a He initialization."""

    source: str = "efficientnet_lite0"
    """Architecture that gives its pretrained weights."""
    target: str = "resnet18"
    """Architecture that receives them and is trained."""
    dataset: Dataset = "elpv"
    """elpv comes as a package; cifar10 and cifar100 are downloaded or read from --data-dir;
    fashion_mnist (idx files) and folder (one sub-folder a class) are read from --data-dir."""
    source_weights: Path | None = None
    """A .pth or .safetensors file of the source, instead of its published weights."""
    data_dir: Path | None = None
    """Where the data set lies."""
    image_size: int | None = None
    """Side in pixels that images are resized to; the data set's own default if left out."""
    epochs: int | None = None
    """Passes over the training images; the data set's own default if left out."""
    batch_size: int = 128
    """Images in a step, over all devices."""
    learning_rate: float = 1e-4
    """AdamW's, times 0.1 at 60% and again at 80% of all steps."""
    weight_decay: float = 5e-4
    """AdamW's, decoupled from the gradient."""
    crossover_rate: float = 0.1
    """Probability that a feature is replaced by the source's; 0 trains without the source."""
    baseline: bool = True
    """Also train the He-initialized twin under the same seed and settings."""
    best_by: Literal["balanced_accuracy", "accuracy"] = "balanced_accuracy"
    """What of the validation images says which epoch's weights are tested."""
    seed: int = 0
    """Of the split, the initialization, the transfer, the batches and the augmentation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation: auto is bfloat16 on accelerators, float32 on CPU."""
    out: Path = Path("runs")
    """Folder that holds the run folders."""
    name: str | None = None
    """Of the run folder; made from source, target, dataset and seed if left out."""
    resume: bool = False
    """Go on with the run folder of that name from its last checkpoint."""
    transfer: TransferOptions = dataclasses.field(default_factory=TransferOptions)
    """How weights are carried over."""
    hosts: HostOptions = dataclasses.field(default_factory=HostOptions)
    """Training on several hosts."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        name = self.name or f"{self.source}-{self.target}-{self.dataset}-{self.seed}"
        return self.out / name


def resolve(config: Config) -> Config:
    """Fills in the data set's defaults and checks the numbers.

    Raises:
      ConfigError: naming the setting, its value and what it may be.
    """
    from train.errors import ConfigError  # late: its root brings JAX

    defaults = DATASETS[config.dataset]
    config = dataclasses.replace(
        config,
        image_size=defaults.image_size if config.image_size is None else config.image_size,
        epochs=defaults.epochs if config.epochs is None else config.epochs,
    )
    for setting in ("image_size", "epochs", "batch_size"):
        if getattr(config, setting) < 1:
            raise ConfigError(f"{setting}={getattr(config, setting)}, expected at least 1.")
    for setting in ("learning_rate", "weight_decay"):
        if not 0 <= getattr(config, setting) < float("inf"):
            raise ConfigError(f"{setting}={getattr(config, setting)}, expected at least 0.")
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed}, expected at least 0.")
    if not 0 <= config.crossover_rate <= 1:
        raise ConfigError(f"crossover_rate={config.crossover_rate}, expected a probability.")
    return config
