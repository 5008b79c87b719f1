"""Where a training starts from: the target's variables, by the name of the start."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import importers
import tlv_jax
from tlv_jax import matching, methods
from train.augment import normalize
from train.compare.settings import CROSSOVER, FITS, HEAD, distills
from train.compare.study import Study
from train.data import LabelledImages
from train.errors import ConfigError
from train.fitting import check_source, first_images, first_rows, source_of_fit
from train.method import METHODS
from train.networks import fixed_size, keys_of
from train.normalization import seen_by_source
from train.statistics import Statistics

__all__ = ["Start", "start_of"]

OF_IMAGES = ("lsuv", *FITS)
LABELLED = 2000  # images that a head is solved for by


class Start(NamedTuple):
    """The beginning of one training.

    Attributes:
      variables: of the target, of the type of its network's `params`.
      statistics: by which images are normalized.
      crossover: whether the source lends features.
      distill: whether the source teaches.
    """

    variables: Any
    statistics: Statistics
    crossover: bool
    distill: bool


def start_of(study: Study, name: str, seed: int) -> Start:
    """Makes a start.

    Args:
      study: what all trainings share.
      name: of `STARTS` but `CLASSIFIERS`, also with `+crossover`, `+distill`, `+head`.
      seed: of the target's own initialization and of the transfer.

    Raises:
      TLVError: if the transfer cannot be planned, or there are no weights of the target.
    """
    base, *additions = name.split("+")
    preprocess = study.source.preprocess
    if base == "finetune":
        variables, preprocess = _pretrained(study, seed)
    elif base in ("he", "distill", *OF_IMAGES):
        variables = study.target(seed).network.params
    else:
        variables = _transferred(study, base, seed)
    statistics = study.statistics(Statistics(preprocess.mean, preprocess.std))
    if base in OF_IMAGES:
        variables = _made_of_images(study, base, seed, statistics)
    if HEAD in additions:
        variables = _with_head(study, variables, seed, statistics)
    return Start(variables, statistics, CROSSOVER in additions, distills(name))


def _with_head(study: Study, variables: Any, seed: int, statistics: Statistics) -> Any:
    """The same with a last layer solved for by the labels of the training's first images."""
    images = study.splits.train
    assert isinstance(images, LabelledImages)  # a comparison does not stream
    rows = first_rows(images, keys_of(seed).order, study.settings.batch_size, LABELLED)
    seen = normalize(images.images[rows], statistics.mean, statistics.std, study.dtype)
    network = dataclasses.replace(study.target(seed).network, params=variables)
    return tlv_jax.ridge_head(network, seen, np.asarray(images.labels[rows]))


def _made_of_images(study: Study, name: str, seed: int, statistics: Statistics) -> Any:
    """What `lsuv` and the fits make of the images that the training sees first."""
    target, keys, settings = study.target(seed).network, keys_of(seed), study.settings
    images = first_images(
        study.splits.train, keys.order, settings.batch_size, statistics, study.dtype
    )
    if name == "lsuv":
        return tlv_jax.lsuv(target, images, key=keys.transfer)
    check_source(settings.source)
    expected = study.source.preprocess
    seen = seen_by_source(statistics, Statistics(expected.mean, expected.std))
    source = source_of_fit(study.source, seen)
    if name == "fit_random":
        source = dataclasses.replace(source, params=_random_weights(study, keys.transfer))
    return tlv_jax.fit(source, target, images, key=keys.transfer)


def _transferred(study: Study, name: str, seed: int) -> Any:
    source, target = study.source.network, study.target(seed).network
    key = keys_of(seed).transfer
    method = methods.DEFAULT
    if name == "random_matching":
        method = dataclasses.replace(method, match=matching.Random(seed))
    elif name == "random_source":
        source = dataclasses.replace(source, params=_random_weights(study, key))
    else:
        method = METHODS[name]
    plan = tlv_jax.plan_transfer(source, target, method)
    return tlv_jax.apply_transfer(plan, key, source, target)


def _random_weights(study: Study, key: jax.Array) -> Any:
    """The source's own initialization."""
    # Another key than that of the transfer, of which it is independent.
    return study.draw_source(jax.random.fold_in(key, 1))


def _pretrained(study: Study, seed: int) -> tuple[Any, importers.Preprocess]:
    """The target's own pretrained weights, with the last layer of the seed's initialization."""
    settings = study.settings
    if settings.target not in importers.available():
        raise ConfigError(
            f"finetune: there are no published weights of target={settings.target!r}. Leave "
            "finetune out."
        )
    given = importers.load(settings.target, image_size=fixed_size(settings.target, settings))
    leaves = dict(jax.tree_util.tree_leaves_with_path(given.variables))

    def chosen(path: Any, own: Any) -> Any:
        leaf = leaves.get(path)
        return own if leaf is None or leaf.shape != own.shape else jnp.asarray(leaf, own.dtype)

    own = study.target(seed).network.params
    return jax.tree_util.tree_map_with_path(chosen, own), given.preprocess
