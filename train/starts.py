"""What each training of a run starts from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

import importers
import tlv_jax
from tlv_jax.fit import fit_and_report
from train.config import Config
from train.fitting import source_of_fit
from train.step import Task
from train.target import Target

__all__ = ["TRAININGS", "Start", "Transferred", "fit", "starts_of", "transfer"]

TRAININGS = (
    "transferred",
    *("finetune+crossover+distill", "finetune+crossover", "finetune+distill"),
    *("he+crossover+distill", "he+crossover", "he+distill"),
    *("finetune", "he"),
)
"""The names of all trainings. Of those of one run, the twin comes last."""


class Transferred(NamedTuple):
    """A transfer that was made.

    Attributes:
      plan: of the transfer; None for a fit.
      report: of the transfer or the fit, layer by layer.
      variables: of the target, as its network's `params`.
    """

    plan: tlv_jax.TransferPlan | None
    report: tlv_jax.TransferReport | tlv_jax.FitReport
    variables: Any


class Start(NamedTuple):
    """The beginning of one training.

    Attributes:
      name: of the training, one of `TRAININGS`.
      variables: of the target, as its network's `params`.
      lent: whether the first source lends features or teaches, as the settings say.
    """

    name: str
    variables: Any
    lent: bool


def transfer(
    method: tlv_jax.Method,
    key: jax.Array,
    sources: Sequence[importers.Pretrained],
    target: Target,
) -> Transferred:
    """Transfers from one source, or from a mixture of several.

    Args:
      method: how.
      key: consumed.
      sources: of which each target layer takes the layer that fits it best.
      target: with the weights that the transfer goes over.

    Raises:
      TLVError: if it cannot be planned or made.
    """
    networks = [source.network for source in sources]
    plan = tlv_jax.plan_transfer(networks, target.network, method)
    # Plans once more, in milliseconds, and warns if the networks are unlike.
    variables = tlv_jax.transfer(networks, target.network, key=key, method=method)
    report = tlv_jax.report(plan, networks, target.network, variables)
    return Transferred(plan, report, variables)


def fit(
    settings: tlv_jax.Fit,
    key: jax.Array,
    source: importers.Pretrained,
    task: Task,
    images: jax.Array,
) -> Transferred:
    """Solves for the target's kernels, so that it computes what the source does.

    Args:
      settings: how.
      key: consumed.
      source: the pretrained network.
      task: the target, with the weights that the fit goes over, and how its images are normalized.
      images: of the training, normalized, `[N, H, W, 3]`.

    Raises:
      TLVError: if the networks cannot be fitted to each other.
    """
    networks = source_of_fit(source, task.seen_by_source), task.target.network
    variables, report = fit_and_report(*networks, images, settings, key)
    return Transferred(None, report, variables)


def starts_of(config: Config, target: Target, made: Transferred | None) -> tuple[Start, ...]:
    """The starts of all trainings of a run: the one that is asked for, then that of its twin.

    The twin starts from what the target has without a transfer, is lent no features, and is not
    taught. Where the first has none of these, it is its own twin, and there is only one.

    Args:
      config: the settings, resolved.
      target: with its own initialization, or the weights that it was given.
      made: the transfer, if there is one.
    """
    own = target.network.params
    name = "he" if config.target_weights is None else "finetune"
    twin, lent = Start(name, own, False), config.sees_images
    if made is not None:
        first = Start("transferred", made.variables, lent)
    elif lent:
        crossover = "+crossover" if config.crossover_rate else ""
        distill = "+distill" if config.distill.name != "none" else ""
        first = Start(f"{name}{crossover}{distill}", own, True)
    else:
        return (twin,)
    return (first, twin) if config.baseline else (first,)
