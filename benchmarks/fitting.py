"""What the settings of a fit are worth: a linear classifier on fitted features, without training.

    python -m benchmarks.fitting --dataset fashion_mnist --data-dir FOLDER --image-size 32
    python -m benchmarks.fitting --table   # the tables of docs/fit.md

Each setting is varied alone. A draw decides the images of the fit, the target's initialization and
the classifier's images; the held-out images are the same for all. Controls are the target as it
was transferred to, and a fit to a source with random weights. One row a fit is appended to a CSV
file; what is there already is not computed again.
"""

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import importers
import tlv_jax
from benchmarks.ablation import append_rows, provenance, read_rows, typed
from tlv_jax import models
from train.augment import normalize
from train.config import Config, Dataset
from train.datasets import load_dataset
from train.method import METHODS
from train.networks import source_initializer

RESULTS = Path(__file__).parent / "results" / "fitting.csv"
FITTED, TRANSFERRED, RANDOM = "fit", "transferred", "fit to random weights"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is the same for all fits."""

    source: str = "efficientnet_lite0"
    target: str = "mobilenet_v2"
    dataset: Dataset = "elpv"
    image_size: int = 64
    examples: int = 1500
    """Labelled images that the classifier is fitted to."""
    held_out: int = 3000
    """Others that test it, at most."""


@dataclasses.dataclass(frozen=True)
class Treatment:
    """One fit, or a control."""

    start: str = FITTED
    images: int = 256
    penalty: float = 0.1
    enlarge: int = 2
    rows: int = 16384
    prior: str = "default"


@dataclasses.dataclass(frozen=True)
class Options:
    """The experiment, and the values that are tried for each setting."""

    experiment: tyro.conf.OmitArgPrefixes[Experiment] = dataclasses.field(
        default_factory=Experiment
    )
    images: tuple[int, ...] = (32, 64, 128, 256, 512)
    penalty: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    enlarge: tuple[int, ...] = (1, 2, 4)
    rows: tuple[int, ...] = (4096, 16384)
    prior: tuple[str, ...] = ("default", "bare", "tlvfc")
    draws: int = 3
    data_dir: Path | None = None
    """Where a data set lies that does not come as a package."""
    results: Path = RESULTS
    table: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what the results hold, and fit nothing."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__.split("\n")[0])
    if options.table:
        print(tables_of(options.results))
        return
    study = Study(options)
    done = {identity(row) for row in read_rows(options.results)}
    for draw in range(options.draws):
        for treatment in treatments(options):
            row = {**dataclasses.asdict(options.experiment), **dataclasses.asdict(treatment)}
            row = {name: str(value) for name, value in row.items()}  # written as they are compared
            if identity({**row, "draw": draw}) not in done:
                found = study.measure(treatment, draw)
                append_rows(options.results, [{**provenance(), **row, "draw": draw, **found}])
                print(f"{describe(treatment)}, draw {draw}: {found['balanced_accuracy']:.3f}")


def treatments(options: Options) -> Iterator[Treatment]:
    """The controls, then each setting varied alone."""
    yield from (Treatment(start) for start in (TRANSFERRED, FITTED, RANDOM))
    for name in ("images", "penalty", "enlarge", "rows", "prior"):
        for value in getattr(options, name):
            if value != getattr(Treatment(), name):
                yield dataclasses.replace(Treatment(), **{name: value})


class Study:
    """The networks and the images of one experiment."""

    def __init__(self, options: Options) -> None:
        self.experiment = experiment = options.experiment
        self.source = importers.load(experiment.source)
        size, data = experiment.image_size, options.data_dir
        splits = load_dataset(Config(dataset=experiment.dataset, image_size=size, data_dir=data))
        self.model = models.create(experiment.target, num_classes=len(splits.classes))
        self.initialize = jax.jit(self.model.init)
        self.train = self.normalized(splits.train, max(options.images) + experiment.examples)
        both = [
            self.normalized(part, experiment.held_out) for part in (splits.validation, splits.test)
        ]
        images, labels = (np.concatenate(each) for each in zip(*both, strict=True))
        self.held_out = images[: experiment.held_out], labels[: experiment.held_out]

    def normalized(self, part: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Some images, any of them, as the source expects them, and their labels."""
        chosen = np.random.default_rng(0).permutation(len(part))[:count]
        known, pixels = self.source.preprocess, jnp.asarray(part.images[chosen])
        images = normalize(pixels, known.mean, known.std, jnp.dtype(np.float32))
        return np.asarray(images), np.asarray(part.labels)[chosen]

    def measure(self, treatment: Treatment, draw: int) -> dict[str, float]:
        """Fits, and tells what a classifier makes of the features."""
        images, labels = self.train
        order = np.random.default_rng(draw).permutation(len(images))
        seen, examples = order[: treatment.images], order[: self.experiment.examples]
        variables = self.initialize(jax.random.key(draw), images[:1])
        target = tlv_jax.trace(self.model.apply, variables, images[:1])
        begun = time.perf_counter()
        new = self.start(treatment, target, images[seen], jax.random.key(draw))
        seconds = time.perf_counter() - begun
        network = dataclasses.replace(target, params=new)
        found = tlv_jax.probe(network, images[examples], labels[examples], self.held_out)
        return {"balanced_accuracy": found.balanced_accuracy, "seconds": seconds}

    def start(
        self, treatment: Treatment, target: tlv_jax.Network, images: np.ndarray, key: jax.Array
    ) -> Any:
        """The target's variables by a treatment, for some images."""
        source, method = self.source.network, METHODS[treatment.prior]
        if treatment.start == TRANSFERRED:
            return tlv_jax.transfer(source, target, key=key, method=method)
        if treatment.start == RANDOM:
            draw = source_initializer(self.source)
            source = dataclasses.replace(source, params=draw(jax.random.fold_in(key, 1)))
        settings = tlv_jax.Fit(
            method=method,
            penalty=treatment.penalty,
            enlarge=treatment.enlarge,
            rows=treatment.rows,
        )
        return tlv_jax.fit(source, target, images, settings=settings, key=key)


def describe(treatment: Treatment) -> str:
    """A treatment by what is not as usual."""
    usual = Treatment(treatment.start)
    changed = [
        f"{field.name} {getattr(treatment, field.name)}"
        for field in dataclasses.fields(treatment)
        if getattr(treatment, field.name) != getattr(usual, field.name)
    ]
    return ", ".join([treatment.start, *changed])


SETTINGS = [field.name for kind in (Experiment, Treatment) for field in dataclasses.fields(kind)]


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells one fit from every other."""
    return tuple(str(row[name]) for name in (*SETTINGS, "draw"))


def tables_of(path: Path) -> str:
    """One table an experiment: the mean over draws, and their standard deviation."""
    tables: dict[Experiment, dict[str, list[float]]] = defaultdict(dict)
    for row in read_rows(path):
        found = tables[typed(Experiment, row)].setdefault(describe(typed(Treatment, row)), [])
        found.append(float(row["balanced_accuracy"]))
    lines = []
    for one, table in tables.items():
        lines += [f"{one.source} into {one.target}, {one.dataset} at {one.image_size} pixels:", ""]
        lines += ["| start | balanced accuracy | draws |", "| --- | --- | --- |"]
        for name, found in table.items():
            spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            lines.append(f"| {name} | {statistics.mean(found):.3f}{spread} | {len(found)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
