"""Flax Linen twins of torchvision's classifiers.

Every network here is called the same way:

    model = models.create("resnet18", num_classes=10)
    variables = model.init(key, images)                             # images [B, H, W, C]
    logits = model.apply(variables, images)                         # [B, N]
    features = model.apply(variables, images, method="features")    # [B, D]
    logits = model.apply(variables, features, method="head")        # [B, N]
    logits, updated = model.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )

`head` of `features` is what plain `apply` computes, of all but SqueezeNet; see there.

Submodules are named as in the checkpoints: the path `layer1.0/downsample.0`, joined by dots, is
torch's module.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlv_jax.errors import OptionError
from tlv_jax.models import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    efficientnet_lite,
    googlenet,
    inception_v3,
    maxvit,
    mnasnet,
    mobilenet_v2,
    mobilenet_v3,
    regnet,
    resnet,
    shufflenet_v2,
    squeezenet,
    swin,
    vgg,
    vit,
)
from tlv_jax.models.alexnet import AlexNet
from tlv_jax.models.batch_norm import BatchNorm
from tlv_jax.models.classifier import Classifier
from tlv_jax.models.convnext import ConvNeXt
from tlv_jax.models.densenet import DenseNet
from tlv_jax.models.efficientnet import EfficientNet
from tlv_jax.models.efficientnet_lite import EfficientNetLite
from tlv_jax.models.googlenet import GoogLeNet, GoogLeNetOutputs
from tlv_jax.models.images import ImageError
from tlv_jax.models.inception_v3 import InceptionV3, InceptionV3Outputs
from tlv_jax.models.maxvit import MaxViT
from tlv_jax.models.mnasnet import MNASNet
from tlv_jax.models.mobilenet_v2 import MobileNetV2
from tlv_jax.models.mobilenet_v3 import MobileNetV3
from tlv_jax.models.regnet import RegNet
from tlv_jax.models.resnet import ResNet
from tlv_jax.models.shufflenet_v2 import ShuffleNetV2
from tlv_jax.models.squeezenet import SqueezeNet
from tlv_jax.models.swin import Swin
from tlv_jax.models.vgg import VGG
from tlv_jax.models.vit import ViT

__all__ = [
    "VGG",
    "AlexNet",
    "BatchNorm",
    "Classifier",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "EfficientNetLite",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "ImageError",
    "InceptionV3",
    "InceptionV3Outputs",
    "MNASNet",
    "MaxViT",
    "MobileNetV2",
    "MobileNetV3",
    "RegNet",
    "ResNet",
    "ShuffleNetV2",
    "SqueezeNet",
    "Swin",
    "ViT",
    "abstract_variables",
    "create",
    "names",
]

_FAMILIES: tuple[tuple[Callable[..., Classifier], Mapping[str, Any]], ...] = (
    (AlexNet, alexnet.VARIANTS),
    (VGG, vgg.VARIANTS),
    (SqueezeNet, squeezenet.VARIANTS),
    (GoogLeNet, googlenet.VARIANTS),
    (InceptionV3, inception_v3.VARIANTS),
    (ResNet, resnet.VARIANTS),
    (MobileNetV2, mobilenet_v2.VARIANTS),
    (MNASNet, mnasnet.VARIANTS),
    (DenseNet, densenet.VARIANTS),
    (EfficientNet, efficientnet.VARIANTS),
    (MobileNetV3, mobilenet_v3.VARIANTS),
    (RegNet, regnet.VARIANTS),
    (ShuffleNetV2, shufflenet_v2.VARIANTS),
    (ConvNeXt, convnext.VARIANTS),
    (ViT, vit.VARIANTS),
    (Swin, swin.VARIANTS),
    (MaxViT, maxvit.VARIANTS),
    (EfficientNetLite, efficientnet_lite.VARIANTS),
)


def create(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Classifier:
    """Builds an architecture; draws and loads no weights.

    Args:
      name: one of `names()`, spelled as torchvision spells it.
      num_classes: size of the last layer.
      in_channels: of the images.
      dtype: of the computation, for example `jnp.bfloat16`.
      param_dtype: of the parameters.

    Returns:
      A Linen module whose methods are described in `Classifier`.

    Raises:
      OptionError: for a name that is not known, with the closest ones, or for a size below 1.
    """
    for option, size in (("num_classes", num_classes), ("in_channels", in_channels)):
        if size < 1:
            raise OptionError(f"{option}={size!r} for {name!r}, expected at least 1.")
    for family, variants in _FAMILIES:
        if name in variants:
            return family(
                variants[name],
                num_classes=num_classes,
                in_channels=in_channels,
                dtype=dtype,
                param_dtype=param_dtype,
            )
    close = difflib.get_close_matches(name, names()) or names()
    raise OptionError(f"No architecture is called {name!r}. Did you mean {', '.join(close)}?")


def names() -> tuple[str, ...]:
    """Every name that `create` knows."""
    return tuple(name for _, variants in _FAMILIES for name in variants)


def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """Shapes and dtypes of all variables of a network; no array is allocated.

    Args:
      model: of `create`. Nothing depends on the size of its images unless it has an `image_size`.

    Returns:
      What `model.init` returns, with a `jax.ShapeDtypeStruct` for each array.
    """
    side = getattr(model, "image_size", 224)
    images = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)  # type: ignore[attr-defined]
    return jax.eval_shape(model.init, jax.random.key(0), images)
