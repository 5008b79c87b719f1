"""The settings of a run. Imports neither JAX nor Flax, so that `--help` is quick."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import tyro

__all__ = [
    "DATASETS",
    "ChannelOptions",
    "Config",
    "DatasetDefaults",
    "DistillOptions",
    "HostOptions",
    "MatchOptions",
    "MethodOptions",
    "RecipeOptions",
    "RuleOptions",
]

Dataset = Literal[
    "elpv", "cifar10", "cifar100", "fashion_mnist", "food101", "petimages", "intel", "folder"
]
OnBadImage = Literal["skip", "stop"]
MethodName = Literal["default", "bare", "tlvfc", "dpiat", "weight_selection", "net2net"]
Matcher = Literal["coverage", "score", "score_flat", "index", "bipartite", "random", "each_once"]
Rule = Literal["variance", "clip", "full", "magnitude", "trace", "uniform"]
Channels = Literal["off", "variance", "magnitude", "trace", "first"]


class DatasetDefaults(NamedTuple):
    """Settings that differ between data sets."""

    image_size: int
    epochs: int


DATASETS: Mapping[str, DatasetDefaults] = MappingProxyType(
    {
        # Small enough for two CPU cores. 72 pixels, not 64: on the 2x2 activations that ResNet18
        # ends with at 64, XLA's CPU convolutions are some forty times slower.
        "elpv": DatasetDefaults(image_size=72, epochs=4),
        "cifar10": DatasetDefaults(image_size=32, epochs=200),
        "cifar100": DatasetDefaults(image_size=32, epochs=200),
        "fashion_mnist": DatasetDefaults(image_size=32, epochs=20),
        "food101": DatasetDefaults(image_size=224, epochs=50),
        "petimages": DatasetDefaults(image_size=224, epochs=50),
        "intel": DatasetDefaults(image_size=150, epochs=50),
        "folder": DatasetDefaults(image_size=224, epochs=50),
    }
)

# An option called "" is spelled as the group that it is in: `--method tlvfc --method.head keep`.
GROUP = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True)
class MatchOptions:
    """Which source layer each target layer is given."""

    name: Annotated[Matcher | None, GROUP] = None
    """The matcher, see tlv_jax.matching."""
    score: Literal["shape", "position"] | None = None
    """How well two layers fit each other: by their shapes, or also by their places."""
    seed: int | None = None
    """Of random matching."""


@dataclasses.dataclass(frozen=True)
class RuleOptions:
    """How one kernel is fitted into another's shape."""

    name: Annotated[Rule | None, GROUP] = None
    """The rule, see tlv_jax.rules."""
    keep: Literal["max", "min", "interleaved", "two_tailed", "random"] | None = None
    """Source channels to keep where there are too many (variance; magnitude, trace: max, min)."""
    remove: Literal["max", "min", "interleaved", "two_tailed", "random"] | None = None
    """Target channels to replace where the source has too few (variance)."""
    pad: Literal["zero", "init"] | None = None
    """What surrounds a kernel that is too small (variance)."""
    pool: Literal["avg", "max"] | None = None
    """How a kernel that is too large shrinks (variance)."""
    shuffle: bool | None = None
    """Permute the channels of every kernel at the end (variance)."""
    constrained: bool | None = None
    """Rank inputs over the kept outputs only (magnitude)."""


@dataclasses.dataclass(frozen=True)
class ChannelOptions:
    """Choose channels once for all layers that share them."""

    name: Annotated[Channels | None, GROUP] = None
    """What ranks the channels; off: each kernel chooses its own."""
    grow: Literal["init", "copy"] | None = None
    """New channels: keep their own weights, or copy others (Net2Net)."""


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """How to transfer: a method, and changes to it. None leaves a part as the method has it."""

    name: Annotated[Literal["auto", MethodName, "fit", "none"], GROUP] = "auto"
    """The method, see tlv_jax.methods. fit: solve for the target's kernels, so that it computes
    what the source computes of training images (tlv_jax.fit). none: no transfer. auto: default;
    with --target-weights you have to choose, as a transfer goes over these weights."""
    standardize: Literal["flat", "blocks", "graph"] | None = None
    """What is matched: single layers, or blocks, by module names or by the traced graph."""
    match: MatchOptions = dataclasses.field(default_factory=MatchOptions)
    rule: RuleOptions = dataclasses.field(default_factory=RuleOptions)
    channels: ChannelOptions = dataclasses.field(default_factory=ChannelOptions)
    head: Literal["keep", "statistics"] | None = None
    """The last layer: keep its own weights, or draw them from statistics of the source's."""
    rescale: Literal["none", "he", "source"] | None = None
    """Rescale each kernel to He's standard deviation, or to that of its source, or not."""
    kinds: tuple[Literal["conv", "dense", "norm", "bias"], ...] | None = None
    """Kinds of parameters to transfer."""
    insert: Literal["init", "identity"] | None = None
    """Layers without a source: keep their weights, or make them identities (needs channels)."""


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """How to train: a recipe, and changes to it. None leaves a part as the recipe has it."""

    name: Annotated[Literal["published", "modern"], GROUP] = "published"
    """The recipe, see docs/recipes.md."""
    optimizer: Literal["adamw", "sgd"] | None = None
    """AdamW, or SGD with momentum."""
    momentum: float | None = None
    """Of SGD."""
    nesterov: bool | None = None
    """Nesterov's momentum (SGD)."""
    schedule: Literal["step", "cosine"] | None = None
    """Learning rate: times 0.1 at 60% and again at 80% of all steps, or a cosine down to 0."""
    warmup_epochs: float | None = None
    """Epochs, or a part of one, in which the learning rate rises linearly."""
    clip_norm: float | None = None
    """Largest global norm of the gradients; 0: no clipping."""
    decay_all: bool | None = None
    """Weight decay of all parameters; else not of norms and biases."""
    label_smoothing: float | None = None
    """Share of each label that is spread evenly over all classes."""
    accumulate: int | None = None
    """Parts of a batch whose gradients are averaged: less memory, for the same --batch-size."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is what is evaluated; 0: no average."""
    freeze: tuple[str, ...] | None = None
    """Regular expressions; parameters in whose paths, such as layer1.0/conv1/kernel, one is found
    are not trained."""
    rates: tuple[str, ...] | None = None
    """PATTERN=FACTOR, to multiply the learning rate of the parameters whose paths match."""
    crop: Literal["shift", "resized", "none"] | None = None
    """Random crop: padded by 4 pixels, or a box of the image that is resized, or none."""
    crop_area: float | None = None
    """Smallest share of the image that such a box has (resized)."""
    flip: float | None = None
    """Probability that an image is mirrored."""
    augment_strength: float | None = None
    """Two random changes an image, of colours or geometry, as RandAugment: from 0, none, to 10."""
    mixup: float | None = None
    """Blend images and labels of a batch: parameter of the beta distribution; 0: no mixup."""
    cutmix: float | None = None
    """Exchange boxes between the images of a batch: the same parameter; 0: no cutmix."""
    crossover_schedule: Literal["constant", "linear"] | None = None
    """Crossover rate: the same in all steps, or linear down to 0 at the end."""
    crossover_mask: Literal["example", "batch"] | None = None
    """Draw the features to replace for each example, or once for the whole batch."""
    crossover_adapter: Literal["published", "projection", "learned"] | None = None
    """Where source and target differ in width: lend the first features, or the source's principal
    components, or let a linear layer learn what to lend."""


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """Whether the source teaches the target in training, beside the labels."""

    name: Annotated[Literal["none", "logits", "plan"], GROUP] = "none"
    """logits: the target imitates those of a linear classifier on the source's features, which is
    fitted to the training images first. plan: it imitates the source's activations at some layers
    that the transfer paired."""
    weight: float = 1.0
    """Of the teacher's loss; that of the labels has 1."""
    temperature: float = 4.0
    """Divides both logits, so that also the answers that are not the first count (logits)."""


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """Train on several hosts: start the same command on each, with a shared --out."""

    join: bool = False
    """Join the other processes. They are found by themselves on Slurm, Open MPI and Cloud TPU."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where it is not found."""
    count: int | None = None
    """Number of processes, where it is not found."""
    rank: int | None = None
    """Number of this process, from 0, where it is not found."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: a transfer, a training, and the same training without the transfer."""

    source: str | tuple[str, ...] = "efficientnet_lite0"
    """Architecture of the pretrained network; "python -m importers list" names them all. Of
    several, each target layer takes the layer that fits it best, and the first lends features."""
    target: str = "resnet18"
    """Network to train: an architecture, or MODULE:NAME of your own Flax module, Linen or NNX."""
    target_args: tuple[str, ...] = ()
    """Arguments of your own module: --target-args width=0.5 depth=3."""
    dataset: Dataset = "elpv"
    """Images. elpv: a package. cifar*: downloaded, or in --data-dir.
    fashion_mnist: idx files in --data-dir. food101, petimages, intel: their unpacked archives in
    --data-dir. folder: one sub-folder a class in --data-dir, or in its folders train, val and
    test."""
    source_weights: Path | tuple[Path, ...] | None = None
    """A .pth or .safetensors file of the source; by default its published weights. Of several
    sources one for each."""
    source_prefix: str | tuple[str, ...] | None = None
    """What the names of the source begin with, if that file holds several networks. Of several
    sources one for each; "" for a file that holds one network."""
    target_weights: Path | None = None
    """What the target starts from, before any transfer: a .pth or .safetensors file of its
    architecture, the folder of a run, or an Orbax checkpoint of its parameters. With --method none
    that is fine-tuning."""
    data_dir: Path | None = None
    """Folder of the data set."""
    on_bad_image: OnBadImage = "skip"
    """A picture file that is damaged: skip it and say so, or stop."""
    stream: bool = False
    """Read pictures when their batch comes, not all at the start: for those that do not fit into
    memory (food101, petimages, intel, folder)."""
    workers: int = 0
    """Processes that read streamed pictures; 0: threads, one for each core."""
    train_images: int | None = None
    """Train on so many images only, the same share of each class; by default on all."""
    image_size: int | None = None
    """Pixels a side, to which images are resized; by default the data set's own."""
    normalization: str = "source"
    """Mean and deviation of images in training: source (what the first source expects; with
    --method none, what --target-weights do), dataset (published, or computed from the training
    images), or MEAN,STD or R,G,B,R,G,B: numbers for images scaled to [0, 1]."""
    epochs: int | None = None
    """Passes over the training images; by default the data set's own number."""
    batch_size: int = 128
    """Images in a step, over all devices."""
    learning_rate: float = 1e-4
    """Highest learning rate, from which the schedule of the recipe goes down."""
    weight_decay: float = 5e-4
    """Decoupled from the gradient by AdamW, added to it by SGD, as in torch."""
    crossover_rate: float = 0.1
    """Probability that the first source replaces a feature in training; 0: no crossover."""
    baseline: bool = True
    """Also train the twin: the same network, weights and settings, without transfer, crossover
    and distillation."""
    best_by: Literal["balanced_accuracy", "accuracy"] = "balanced_accuracy"
    """Validation metric by which the epoch to test is chosen."""
    seed: int = 0
    """Of the split, the initialization, the transfer, the batches and the augmentation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; auto is float32 on CPUs and bfloat16 elsewhere."""
    shard_params: bool = False
    """Divide parameters and optimizer state over the devices, too, for networks that fill one."""
    out: Path = Path("runs")
    """Folder of all run folders."""
    name: str | None = None
    """Name of the run folder; by default of source, target, dataset and seed."""
    resume: bool = False
    """Continue the run of that name from its last checkpoint."""
    save_every_steps: int | None = None
    """Also save a checkpoint whenever so many steps are done; by default at ends of epochs only."""
    save_every_minutes: float | None = None
    """Also save a checkpoint so many minutes after the last one."""
    wandb: bool = False
    """Also record settings and metrics with Weights & Biases, in the project tlv-jax or that of
    WANDB_PROJECT."""
    method: MethodOptions = dataclasses.field(default_factory=MethodOptions)
    recipe: RecipeOptions = dataclasses.field(default_factory=RecipeOptions)
    distill: DistillOptions = dataclasses.field(default_factory=DistillOptions)
    hosts: HostOptions = dataclasses.field(default_factory=HostOptions)

    @property
    def sources(self) -> tuple[str, ...]:
        """The architectures of all sources; the first one lends features."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @property
    def uses_source(self) -> bool:
        """Whether a source gives anything: weights, features or hints."""
        return self.method.name != "none" or self.sees_images

    @property
    def sees_images(self) -> bool:
        """Whether the first source sees the images in training: it lends features, or teaches."""
        return self.crossover_rate > 0 or self.distill.name != "none"

    @property
    def folder(self) -> Path:
        """The run folder."""
        sources = ["+".join(self.sources)] if self.uses_source else []
        target = self.target.rpartition(":")[2]  # of MODULE:NAME the name
        parts = [*sources, target, self.dataset, str(self.seed)]
        return self.out / (self.name or "-".join(parts))
