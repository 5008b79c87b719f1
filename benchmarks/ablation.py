"""Train a target from differently transferred weights, and write down how well it does.

    python -m benchmarks.ablation --target mobilenet_v2 --match index score --rule variance clip

Every combination of the given settings is a treatment, and every treatment is trained with every
seed; `--he` adds the network that starts from noise. A seed decides the initialization, the
transfer, the order of the images and their augmentation, so that treatments are compared in pairs.
The split is the same for all; no choice is made by the images that are not trained on, so all of
them measure.

One row an epoch is appended to a CSV file when a training is complete; what is there already is
not trained again, so a broken sweep is started once more with the same command. `--table` trains
nothing and prints what the file holds, means over seeds.
"""

import csv
import dataclasses
import functools
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import importers
import tlv_jax
from tlv_jax import Method, rules
from tlv_jax.rules.variance import Select
from train import machine
from train.compare.study import over_trainings
from train.config import Config, Dataset
from train.data import LabelledImages, eval_batches, stratified_split, train_order
from train.datasets import load_dataset
from train.linen_target import linen_target
from train.method import MATCHERS, RULES, STANDARDIZATIONS
from train.metrics import merge, summarize
from train.modules import build_module
from train.optimizer import make_optimizer
from train.recipe import PUBLISHED
from train.step import Task, initial_state, make_eval_step, make_train_step
from train.support import Support

RESULTS = Path(__file__).parent / "results" / "ablation.csv"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is the same for all treatments."""

    source: str = "efficientnet_lite0"
    target: str = "mobilenet_v2"
    """An architecture, or package.module:Name."""
    dataset: Dataset = "elpv"
    image_size: int = 64
    images: int = 0
    """How many images are trained on; all if 0."""
    held_out: int = 0
    """How many of the others are measured on; all if 0."""
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How the target starts and what the source lends; `match="none"` leaves it as drawn."""

    standardize: str
    match: str
    rule: str
    shuffle: bool
    norms: bool
    channels: str
    rescale: str
    keep: str = rules.Variance.keep
    remove: str = rules.Variance.remove
    crossover: float = 0.0
    mask: str = PUBLISHED.crossover_mask


HE = Treatment("none", "none", "none", False, False, "none", "none")


@dataclasses.dataclass(frozen=True)
class Options:
    """The experiment, and the settings whose every combination is tried."""

    experiment: tyro.conf.OmitArgPrefixes[Experiment] = dataclasses.field(
        default_factory=Experiment
    )
    standardize: tuple[Literal["flat", "blocks", "graph"], ...] = ("flat",)
    match: tuple[
        Literal["index", "score", "score_flat", "coverage", "bipartite", "random"], ...
    ] = ("index",)
    rule: tuple[Literal["variance", "clip", "full", "magnitude", "uniform"], ...] = ("variance",)
    shuffle: tuple[bool, ...] = (False,)
    """Of the variance rule alone."""
    norms: tuple[bool, ...] = (False,)
    """Carry scales, biases and running statistics over."""
    channels: tuple[Literal["none", "variance", "magnitude", "trace", "first"], ...] = ("none",)
    """Choose channels once for all layers, ranked so."""
    rescale: tuple[Literal["none", "he", "source"], ...] = ("none",)
    keep: tuple[Select, ...] = (rules.Variance.keep,)
    """Of the variance rule alone, as `remove`."""
    remove: tuple[Select, ...] = (rules.Variance.remove,)
    crossover: tuple[float, ...] = (0.0,)
    """Probability that the source replaces a feature in training."""
    mask: tuple[Literal["example", "batch"], ...] = (PUBLISHED.crossover_mask,)
    """Draw the features to replace for each example, or once for the whole batch."""
    he: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also train the network that starts from noise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    seeds_at_once: int = 1
    """Trained together in one program, where the device's memory allows."""
    data_dir: Path | None = None
    """Where a data set lies that does not come as a package."""
    results: Path = RESULTS
    table: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what the results hold, and train nothing."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__.split("\n")[0])
    if options.table:
        print_tables(options.results)
        return
    study = Study(options)
    for treatment in treatments(options):
        missing = [seed for seed in options.seeds if not study.is_done(treatment, seed)]
        for start in range(0, len(missing), options.seeds_at_once):
            study.run(treatment, missing[start : start + options.seeds_at_once])


def treatments(options: Options) -> Iterator[Treatment]:
    """Every combination that makes a difference."""
    axes = [getattr(options, field.name) for field in dataclasses.fields(Treatment)]
    wanted = itertools.starmap(Treatment, itertools.product(*axes))
    if options.he:
        lent = itertools.product(options.crossover, options.mask)
        noise = (dataclasses.replace(HE, crossover=rate, mask=mask) for rate, mask in lent)
        wanted = itertools.chain(noise, wanted)
    return iter(dict.fromkeys(map(_without_effectless, wanted)))


def _without_effectless(treatment: Treatment) -> Treatment:
    """The same treatment with what it does not use as it is by default."""
    unused = {}
    if treatment.rule != "variance" or treatment.channels != "none":
        unused |= {"shuffle": False, "keep": rules.Variance.keep, "remove": rules.Variance.remove}
    if not treatment.crossover:
        unused |= {"mask": PUBLISHED.crossover_mask}
    return dataclasses.replace(treatment, **unused)


class Study:
    """One experiment: its networks, its images, and the file that its rows go to."""

    def __init__(self, options: Options) -> None:
        self.experiment = experiment = options.experiment
        self.results = options.results
        self.source = importers.load(experiment.source)
        config = Config(
            dataset=experiment.dataset, image_size=experiment.image_size, data_dir=options.data_dir
        )
        splits = load_dataset(config)
        train = some_of(splits.train, experiment.images)
        held_out = LabelledImages(
            *(
                np.concatenate([getattr(part, name) for part in (splits.validation, splits.test)])
                for name in ("images", "labels")
            )
        )
        held_out = some_of(held_out, experiment.held_out)
        self.train, self.held_out = jax.device_put((train, held_out))
        size, key = experiment.image_size, jax.random.key(0)
        self.model = build_module(
            experiment.target,
            num_classes=len(splits.classes),
            image_size=size,
            dtype=jnp.dtype("float32"),
            key=key,
        )
        self.target = linen_target(self.model, key, jnp.zeros((1, size, size, 3)))
        self.task = Task(
            self.target, self.source.preprocess.mean, self.source.preprocess.std, jnp.float32
        )
        steps = len(train) // experiment.batch_size * experiment.epochs
        self.optimizer = make_optimizer(experiment.learning_rate, 5e-4, steps)
        self.evaluate = jax.jit(over_trainings(make_eval_step(self.task), (0, 0, None, None, None)))
        self.initialize = jax.jit(self.model.init)
        self.done = {identity(row) for row in read_rows(self.results)}

    @functools.cache  # noqa: B019  one study a process
    def step(self, rate: float, mask: Any) -> Callable[..., Any]:
        """The compiled step of several seeds, in which the source lends features."""
        support = Support(self.source.model, rate) if rate else None
        recipe = dataclasses.replace(PUBLISHED, crossover_mask=mask)
        step = make_train_step(self.task, self.optimizer, support, recipe)
        return jax.jit(over_trainings(step, (0, 0, 0, None, None)), donate_argnums=0)

    def is_done(self, treatment: Treatment, seed: int) -> bool:
        """Whether the file has this training."""
        return identity({**self.settings(treatment), "seed": seed}) in self.done

    def settings(self, treatment: Treatment) -> dict[str, Any]:
        """The columns that name a treatment in this experiment."""
        return {**dataclasses.asdict(self.experiment), **dataclasses.asdict(treatment)}

    def run(self, treatment: Treatment, seeds: Sequence[int]) -> None:
        """Trains with several seeds at once and appends their rows."""
        started = time.perf_counter()
        keys = [jax.random.split(jax.random.key(seed), 4) for seed in seeds]
        starts = [self.start(treatment, init, transfer) for init, transfer, _, _ in keys]
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        step_keys = jnp.stack([key[3] for key in keys])
        rows = []
        size, batch = len(self.train), self.experiment.batch_size
        step = self.step(treatment.crossover, treatment.mask)
        for epoch in range(1, self.experiment.epochs + 1):
            orders = np.stack([train_order(key[2], epoch, size, batch) for key in keys], axis=1)
            trained = None
            for order in orders:
                state, counted = step(state, step_keys, order, self.train, self.source.variables)
                trained = counted if trained is None else merge(trained, counted)
            measured = self.measure(state)
            rows += [
                {
                    "seed": seed,
                    "epoch": epoch,
                    "train_loss": summarize(jax.tree.map(lambda leaf, n=n: leaf[n], trained)).loss,
                    **summarize(jax.tree.map(lambda leaf, n=n: leaf[n], measured))._asdict(),
                    "seconds": time.perf_counter() - started,
                }
                for n, seed in enumerate(seeds)
            ]
        append_rows(self.results, [{**provenance(), **self.settings(treatment), **r} for r in rows])
        last = [row for row in rows if row["epoch"] == self.experiment.epochs]
        scores = " ".join(f"{row['balanced_accuracy']:.3f}" for row in last)
        print(f"{describe(treatment)}: seeds {seeds}: {scores} ({rows[-1]['seconds']:.0f} s)")

    def start(self, treatment: Treatment, key_init: Any, key_transfer: Any) -> Any:
        """The state of one seed before the first step."""
        size = self.experiment.image_size
        variables = self.initialize(key_init, jnp.zeros((1, size, size, 3)))
        if treatment.match != HE.match:
            plan = self.plan(treatment)
            variables = tlv_jax.apply_transfer(plan, key_transfer, self.source.variables, variables)
        return initial_state(*self.target.split(variables), self.optimizer)

    @functools.cache  # noqa: B019
    def plan(self, treatment: Treatment) -> tlv_jax.TransferPlan:
        """The plan, made on traced networks: all matchings see the same order."""
        return tlv_jax.plan_transfer(self.source.network, self.target.network, method_of(treatment))

    def measure(self, state: Any) -> Any:
        """Counts over all images that are not trained on, for each seed."""
        total = None
        for rows, real in eval_batches(len(self.held_out), 128):
            counted = self.evaluate(state.params, state.model_state, rows, real, self.held_out)
            total = counted if total is None else merge(total, counted)
        return total


def some_of(images: LabelledImages, count: int) -> LabelledImages:
    """As many images, the same share of each class; all of them if 0."""
    if not count:
        return images
    # `stratified_subset` would draw others than the rows in `results` were made with.
    return images[stratified_split(images.labels, (count / len(images),), seed=0)[0]]


def method_of(treatment: Treatment) -> Method:
    """How the library makes a transfer of these settings."""
    keep: Any = treatment.keep
    remove: Any = treatment.remove
    rank: Any = treatment.channels
    rescale: Any = treatment.rescale
    rule = rules.Variance(keep=keep, remove=remove, shuffle=treatment.shuffle)
    return Method(
        standardize=STANDARDIZATIONS[treatment.standardize],
        match=MATCHERS[treatment.match](),
        rule=rule if treatment.rule == "variance" else RULES[treatment.rule](),
        channels=None if rank == "none" else tlv_jax.ConsistentChannels(rank),
        head="keep",
        rescale=rescale,
        kinds=("conv", "norm") if treatment.norms else ("conv",),
    )


def describe(treatment: Treatment) -> str:
    """The settings that are not as by default, in words."""
    parts = ["He"]
    if treatment.match != HE.match:
        parts = [f"{treatment.standardize}, {treatment.match}, {treatment.rule}"]
    if (treatment.keep, treatment.remove) != (HE.keep, HE.remove):
        parts.append(f"keep {treatment.keep}, remove {treatment.remove}")
    parts += [name for name in ("shuffle", "norms") if getattr(treatment, name)]
    if treatment.channels != "none":
        parts.append(f"channels by {treatment.channels}")
    if treatment.rescale != "none":
        parts.append(f"rescaled: {treatment.rescale}")
    if treatment.crossover:
        parts.append(f"crossover {treatment.crossover:g}, mask of each {treatment.mask}")
    return ", ".join(parts)


def provenance() -> dict[str, str]:
    known = machine.provenance()
    return {name: known[name] for name in ("date", "machine", "jax")}


SETTINGS = [field.name for kind in (Experiment, Treatment) for field in dataclasses.fields(kind)]


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells one training from every other."""
    return tuple(str(row[name]) for name in (*SETTINGS, "seed"))


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All epochs of some trainings at once, so that the file never holds half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(
            {
                k: f"{v:.4f}" if isinstance(v, float) and k not in SETTINGS else v
                for k, v in r.items()
            }
            for r in rows
        )


def print_tables(path: Path) -> None:
    """One table an experiment: the mean over seeds after each epoch, and the spread at the end."""
    tables: dict[Experiment, dict[str, dict[int, list[float]]]] = {}
    for row in read_rows(path):
        experiment = typed(Experiment, row)
        name = describe(typed(Treatment, row))
        epochs = tables.setdefault(experiment, {}).setdefault(name, defaultdict(list))
        epochs[int(row["epoch"])].append(float(row["balanced_accuracy"]))
    for experiment, table in tables.items():
        images = experiment.images or "all"
        print(
            f"\n{experiment.source} into {experiment.target}, {experiment.dataset}, {images} "
            f"images at {experiment.image_size} pixels, rate {experiment.learning_rate}\n"
        )
        numbers = range(1, experiment.epochs + 1)
        print(f"| treatment | {' | '.join(f'epoch {n}' for n in numbers)} | spread | seeds |")
        print(f"|---|{'---|' * (experiment.epochs + 2)}")
        ranked = sorted(
            table.items(), key=lambda item: -statistics.mean(item[1][experiment.epochs])
        )
        for name, epochs in ranked:
            means = [f"{statistics.mean(epochs[n]):.3f}" for n in numbers]
            last = epochs[experiment.epochs]
            print(f"| {name} | {' | '.join(means)} | {statistics.pstdev(last):.3f} | {len(last)} |")


def typed(kind: Callable[..., Any], row: Mapping[str, str]) -> Any:
    """A record of settings from the words of a row."""
    casts = {int: int, float: float, bool: lambda word: word == "True"}
    return kind(
        **{f.name: casts.get(f.type, str)(row[f.name]) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main()
